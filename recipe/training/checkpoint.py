"""From a path to an encoder that can be fine-tuned: a run's folder, an encoder's folder, or one checkpoint of a run."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from kernels import backends
from recipe import convert
from recipe.config import Tokenizer as TokenizerSettings
from recipe.cost import records
from recipe.data import tokenizer
from recipe.errors import UserError
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForSequenceClassification
from recipe.model.huggingface import HFForSequenceClassification, longest_input
from recipe.training.hardware import Hardware

FORMS = "give a run's folder, an encoder's folder (config.json, model.safetensors, tokenizer), or RUN/checkpoints/*.pt"
POOLER = "pooler."  # of Hugging Face's encoder; masked-language models have none
HF_PREFIX = "bert.bert."  # of its encoder inside `recipe.model.huggingface.HFBertForMaskedLM`


@dataclass(frozen=True)
class Checkpoint:
    """An encoder on disk, found and checked, with its weights not read yet where Hugging Face's library reads them."""

    model: str  # mosaic_bert | hf_bert
    name: str
    folder: Path  # sizes and tokenizer
    sizes: EncoderConfig
    run: Path | None  # the pretraining run that it came from
    batch: int | None  # at which that run wrote it; None for its final encoder
    file: Path  # of the weights
    weights: dict[str, Tensor] | None  # of a .pt file, under this project's names
    tokenizer: Tokenizer

    @property
    def pad_id(self) -> int:
        return self.tokenizer.token_to_id("[PAD]")

    @property
    def max_length(self) -> int | None:
        """The longest input that the model can take; None where it is not limited."""
        return None if self.model == "mosaic_bert" else longest_input(self.folder)

    def resolve_backends(self, hardware: Hardware) -> Backends:
        if self.model == "hf_bert":
            return Backends(*[backends.Resolved("transformers", "Hugging Face's own code")] * 2)
        needs = backends.Requirements(
            hardware.device, hardware.activation_dtype, self.sizes.head_dim, self.sizes.attention_probs_dropout_prob
        )
        try:
            return Backends(*(backends.resolve(kind, "auto", needs) for kind in ("attention", "kernels")))
        except ValueError as error:
            raise UserError(str(error)) from None

    def classifier(self, outputs: int, chosen: Backends) -> nn.Module:
        """A model with `sequence_logits`, its encoder as pretrained, its pooler and classifier new.

        Raises:
            UserError: a weight of the encoder is missing or has another shape.
        """
        if self.model == "hf_bert":
            return self._hf_classifier(outputs)
        weights = self.weights
        if weights is None:
            _, weights = convert.read_encoder(self.folder)
        model = MosaicBertForSequenceClassification(self.sizes, outputs, chosen)
        convert.load_classification_weights(model, weights, str(self.folder))
        return model

    def _hf_classifier(self, outputs: int) -> nn.Module:
        # The library's own list of new weights is checked here, as an error and not a line to overlook.
        logging.getLogger("transformers").setLevel(logging.ERROR)
        try:
            model = HFForSequenceClassification(self.folder, outputs, pretrained=self.weights is None)
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{self.folder}: cannot be loaded: {_one_line(error)}") from None
        encoder = model.model.base_model
        state = encoder.state_dict()
        if self.weights is not None:
            pooler = {name: tensor for name, tensor in state.items() if name.startswith(POOLER)}
            weights = {n.removeprefix(HF_PREFIX): t for n, t in self.weights.items() if n.startswith(HF_PREFIX)}
            convert.load_weights(encoder, pooler | weights, str(self.folder))
            return model
        missing = sorted(name for name in state.keys() - _hf_names(self.folder) if not name.startswith(POOLER))
        if missing:
            raise UserError(
                f"{self.folder}: no weights for `{missing[0]}` ({len(missing)} missing); "
                "not a BERT encoder under Hugging Face's names"
            )
        return model


def find_checkpoint(path: str) -> Checkpoint:
    """What `path` holds.

    Raises:
        UserError: nothing there, no encoder in it, no tokenizer beside it, or a tokenizer that does not fit.
    """
    place = Path(path)
    if not place.exists():
        raise UserError(f"checkpoint={path}: no such file or folder; {FORMS}")
    if place.is_file():
        return _from_file(place)
    if (place / records.FILE_NAME).is_file():
        record = records.read_record(place)
        if record["kind"] != "pretrain":
            raise UserError(f"checkpoint={path}: a run of kind `{record['kind']}`, which has no encoder; {FORMS}")
        if not (place / "encoder" / "model.safetensors").is_file():
            raise UserError(
                f"checkpoint={path}: no finished encoder in it, the run is `{record['status']}`; finish it with "
                "autoresume=true, or give one of its checkpoints/*.pt"
            )
        return _from_folder(place / "encoder", place)
    if not (place / "config.json").is_file():
        raise UserError(f"checkpoint={path}: neither {records.FILE_NAME} nor config.json in it; {FORMS}")
    above = place.resolve().parent
    in_run = place.resolve().name == "encoder" and (above / records.FILE_NAME).is_file()
    return _from_folder(place, above if in_run else None)


def _from_folder(
    folder: Path, run: Path | None, batch: int | None = None, weights: Any = None, file: Path | None = None
) -> Checkpoint:
    if weights is None and not (folder / "model.safetensors").is_file():
        raise UserError(f"{folder}: no model.safetensors; {FORMS}")
    try:
        values = json.loads((folder / "config.json").read_text("utf-8"))
        kind, sizes = values["model_type"], EncoderConfig.from_dict(values)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: not the configuration of an encoder ({error!r})") from None
    if kind not in ("mosaic_bert", "bert"):
        raise UserError(f"{folder / 'config.json'}: model_type `{kind}`; known are mosaic_bert and bert")
    found = _tokenizer(folder)
    if found.get_vocab_size() > sizes.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {found.get_vocab_size():,} entries, the embedding {sizes.vocab_size:,} rows; "
            "they are not of one model"
        )
    if sizes.type_vocab_size < 2:
        raise UserError(f"{folder}: type_vocab_size={sizes.type_vocab_size}; pairs of sentences need 2")
    model = "mosaic_bert" if kind == "mosaic_bert" else "hf_bert"
    name = (run or folder).resolve().name + (f"-ba{batch}" if batch is not None else "")
    return Checkpoint(model, name, folder, sizes, run, batch, file or folder / "model.safetensors", weights, found)


def _tokenizer(folder: Path) -> Tokenizer:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(f"{folder}: no tokenizer in it (tokenizer.json or vocab.txt); copy the one it was trained with")
    try:
        if (folder / "tokenizer.json").is_file():
            return tokenizer.encoder(folder)
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"{folder / 'tokenizer.json'}: not a tokenizer ({_one_line(error)})") from None
    found = tokenizer.load(TokenizerSettings(name=str(folder))).backend_tokenizer
    found.encode_special_tokens = True  # a literal `[MASK]` in a text is plain text
    return found


def _from_file(file: Path) -> Checkpoint:
    run = file.resolve().parent.parent
    if file.suffix != ".pt" or not (run / records.FILE_NAME).is_file():
        raise UserError(f"checkpoint={file}: not a checkpoint in a run's folder; {FORMS}")
    if not (run / "encoder" / "config.json").is_file():
        raise UserError(f"checkpoint={file}: {run / 'encoder'} does not hold the run's sizes and tokenizer any more")
    try:
        # Composer's checkpoints hold clocks and random states beside the tensors, so this unpickles: a user's own file.
        state = torch.load(file, map_location="cpu", weights_only=False)["state"]
        batch = state["timestamp"]["Timestamp"]["batch"]
        named = {name.removeprefix("model."): tensor for name, tensor in state["model"].items()}
    except Exception as error:  # pickle raises whatever the bytes lead it to
        raise UserError(f"checkpoint={file}: not a Composer checkpoint ({_one_line(error)})") from None
    return _from_folder(run / "encoder", run, batch, named, file)


def _hf_names(folder: Path) -> set[str]:
    """The names in model.safetensors as BertModel has them; old files write gamma and beta for weight and bias."""
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise UserError(f"{folder / 'model.safetensors'}: not a safetensors file ({error})") from None
    return {n.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias") for n in names}


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
