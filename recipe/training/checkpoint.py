"""From a path to an encoder that can be fine-tuned: a run's folder, one checkpoint of a run, or an encoder's folder, which may be
any BERT-family model's in Hugging Face's form."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers import Tokenizer
from torch import Tensor, nn

from kernels.backends import Requirements, Resolved
from recipe import convert, records
from recipe.config import Tokenizer as TokenizerSettings
from recipe.data import tokenizer
from recipe.errors import UserError, class_and_line
from recipe.model.architecture import PADDED, Architecture
from recipe.model.architectures import ARCHITECTURES, architecture
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.model.encoder import Backends, initialize
from recipe.model.heads import FineTuned
from recipe.model.huggingface import POOLER, HFEncoder, HFFineTuned, HFForMaskedLM, load_tokenizer, read_family
from recipe.objectives import objective_of
from recipe.system.hardware import Hardware
from recipe.training.checkpoint_files import model_of

if TYPE_CHECKING:
    from recipe.finetune.kinds.kind import Kind

Loaded = TypeVar("Loaded", HFEncoder, HFForMaskedLM, HFFineTuned)

FORMS = "give a run's folder, an encoder's folder (config.json, model.safetensors, tokenizer), or RUN/checkpoints/*.pt"
HF_MODEL = "bert."  # of BertForMaskedLM inside `recipe.model.huggingface.HFBertForMaskedLM`, and
HF_PREFIX = "bert.bert."  # of its encoder
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin")  # the first that is there
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model")


@dataclass(frozen=True)
class Checkpoint(ABC):
    """An encoder on disk, found and checked, with its weights not read yet where Hugging Face's library reads them."""

    model: str  # mosaic_bert, hf_bert, or the model_type of another of Hugging Face's encoders
    name: str
    folder: Path  # sizes and tokenizer
    run: Path | None  # the pretraining run that it came from
    batch: int | None  # at which that run wrote it; None for its final encoder
    files: tuple[Path, ...]  # of the weights
    weights: dict[str, Tensor] | None  # of a .pt file, under this project's names
    tokenizer: Tokenizer
    pad_id: int
    mask_id: int | None  # None for a tokenizer that has no mask
    max_length: int | None  # the longest input that the model can take; None where it is not limited

    @property
    @abstractmethod
    def padding(self) -> int | None:
        """What padded rows are filled with; None for a model that takes streams of tokens."""

    @abstractmethod
    def resolve_backends(self, hardware: Hardware) -> Backends:
        """What its operations run on, on this hardware.

        Raises:
            UserError: nothing can run here.
        """

    @abstractmethod
    def fine_tuned(self, kind: Kind, outputs: int, chosen: Backends) -> nn.Module:
        """A model whose `forward(batch)` gives the kind's outputs (R, C); its encoder is as pretrained, its head new, but for a
        pooler that the folder has.

        Raises:
            UserError: a weight of the encoder is missing or has another shape.
        """

    @abstractmethod
    def masked_lm(self, chosen: Backends) -> nn.Module:
        """A model with `masked_logits`, every weight as pretrained.

        Raises:
            UserError: a weight is missing, as the head's are in an encoder that was trained for something else.
        """


@dataclass(frozen=True)
class OwnCheckpoint(Checkpoint):
    """In this project's own form: `model` is a row of the table of architectures."""

    sizes: EncoderConfig

    @property
    def padding(self) -> int | None:
        return self.pad_id if self._row.form == PADDED else None

    @property
    def _row(self) -> Architecture:
        return architecture(self.model)

    def resolve_backends(self, hardware: Hardware) -> Backends:
        needs = Requirements(
            hardware.device, hardware.activation_dtype, self.sizes.head_dim, self.sizes.attention_probs_dropout_prob
        )
        try:
            return self._row.backends("auto", "auto", needs)
        except ValueError as error:
            raise UserError(str(error)) from None

    def fine_tuned(self, kind: Kind, outputs: int, chosen: Backends) -> nn.Module:
        encoder = self._row.encoder(self.sizes, chosen)
        head = kind.head(self.sizes.hidden_size, outputs, self.sizes.hidden_dropout_prob)
        model = FineTuned(encoder, head, kind.keep, kind.pool)
        initialize(model, self.sizes.initializer_range)
        convert.load_encoder_weights(model.encoder, self._weights(), str(self.folder))
        return model

    def masked_lm(self, chosen: Backends) -> nn.Module:
        model = self._row.masked_lm(self.sizes, self.max_length or 0, chosen)
        convert.load_weights(model, self._weights(), str(self.folder))
        return model

    def _weights(self) -> dict[str, Tensor]:
        return convert.read_encoder(self.folder)[1] if self.weights is None else self.weights


@dataclass(frozen=True)
class FamilyCheckpoint(Checkpoint):
    """Of any of Hugging Face's encoders."""

    @property
    def padding(self) -> int | None:
        return self.pad_id

    def resolve_backends(self, hardware: Hardware) -> Backends:
        return Backends(*[Resolved("transformers", "Hugging Face's own code")] * 2)

    def fine_tuned(self, kind: Kind, outputs: int, chosen: Backends) -> nn.Module:
        pretrained = self.weights is None
        if kind.auto_class is None:
            encoder = self._loaded(lambda: HFEncoder(self.folder, pretrained))
            head = kind.head(encoder.width, outputs, encoder.dropout)
            initialize(head, encoder.initializer_range)
            model = FineTuned(encoder, head, kind.keep, kind.pool)
        else:
            model = self._loaded(lambda: HFFineTuned(self.folder, kind.auto_class, outputs, pretrained))
            encoder = model
        if self.weights is not None:
            encoder = encoder.model.base_model
            pooler = {name: tensor for name, tensor in encoder.state_dict().items() if name.startswith(POOLER)}
            weights = {n.removeprefix(HF_PREFIX): t for n, t in self.weights.items() if n.startswith(HF_PREFIX)}
            convert.load_weights(encoder, pooler | weights, str(self.folder))
        return model

    def masked_lm(self, chosen: Backends) -> nn.Module:
        model = self._loaded(lambda: HFForMaskedLM(self.folder, pretrained=self.weights is None))
        if self.weights is not None:
            weights = {n.removeprefix(HF_MODEL): t for n, t in self.weights.items() if n.startswith(HF_MODEL)}
            convert.load_weights(model.model, weights, str(self.folder))
        return model

    def _loaded(self, build: Callable[[], Loaded]) -> Loaded:
        """What `build` returns, every weight of it loaded, or a UserError."""
        # The library's own list of new weights is checked here, as an error and not a line to overlook.
        logging.getLogger("transformers").setLevel(logging.ERROR)
        try:
            model = build()
        except (
            Exception
        ) as error:  # the library raises OSError, RuntimeError, ValueError, safetensors' and pickle's own
            raise UserError(f"{self.folder}: cannot be loaded: {class_and_line(error)}") from None
        if model.unloaded:
            raise UserError(
                f"{self.folder}: no weights for `{model.unloaded[0]}` in the shape that config.json says "
                f"({len(model.unloaded)} missing); not a {self.model} under Hugging Face's names"
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
    """An encoder's folder; its weights are those of `file`, where that is given."""
    of_folder = (tuple(sorted(folder.glob(pattern))) for pattern in WEIGHTS)
    files = (file,) if file else next(filter(None, of_folder), ())
    if not files:
        raise UserError(f"{folder}: no {WEIGHTS[0]}; {FORMS}")
    try:
        values = json.loads((folder / "config.json").read_text("utf-8"))
        opener = _own if values["model_type"] in ARCHITECTURES else _family
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: not the configuration of an encoder ({error!r})") from None
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise UserError(f"{folder}: no tokenizer in it (tokenizer.json or vocab.txt); copy the one it was trained with")
    name = (run or folder).resolve().name + (f"-ba{batch}" if batch is not None else "")
    found = {"name": name, "folder": folder, "run": run, "batch": batch, "files": files, "weights": weights}
    return opener(values, found)


def _own(values: dict[str, Any], found: dict[str, Any]) -> Checkpoint:
    """One in this project's form, from its config.json and what is known of its files."""
    folder = found["folder"]
    try:
        sizes = EncoderConfig.from_dict(values)
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: not the configuration of an encoder ({error!r})") from None
    if sizes.type_vocab_size < 2:
        raise UserError(f"{folder}: type_vocab_size={sizes.type_vocab_size}; pairs of sentences need 2")
    try:
        if (folder / "tokenizer.json").is_file():
            encoder = tokenizer.encoder(folder)
        else:
            encoder = tokenizer.load(TokenizerSettings(name=str(folder))).backend_tokenizer
            encoder.encode_special_tokens = True  # a literal `[MASK]` in a text is plain text
    except UserError:
        raise
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"{folder / 'tokenizer.json'}: not a tokenizer ({class_and_line(error)})") from None
    # The embedding has the vocabulary's size, rounded up; any other tokenizer is another model's.
    if padded_vocab_size(encoder.get_vocab_size()) != sizes.vocab_size:
        raise _mismatch(folder, encoder, sizes.vocab_size)
    ids = {"pad_id": encoder.token_to_id("[PAD]"), "mask_id": encoder.token_to_id("[MASK]")}
    return OwnCheckpoint(model=values["model_type"], sizes=sizes, max_length=None, tokenizer=encoder, **ids, **found)


def _family(values: dict[str, Any], found: dict[str, Any]) -> Checkpoint:
    """The same for one of Hugging Face's."""
    folder = found["folder"]
    try:
        family = read_family(folder)
    except Exception as error:  # a config.json may hold anything
        raise UserError(
            f"{folder / 'config.json'}: not the configuration of an encoder ({class_and_line(error)})"
        ) from None
    try:
        encoder, pad_id, mask_id = load_tokenizer(folder)
    except Exception as error:  # the libraries raise bare exceptions
        raise UserError(f"{folder}: its tokenizer cannot be loaded ({class_and_line(error)})") from None
    if encoder.get_vocab_size() > family.vocab_size:
        raise _mismatch(folder, encoder, family.vocab_size)
    if family.pad_id is not None and family.pad_id != pad_id:
        raise UserError(
            f"{folder}: the tokenizer pads with {pad_id}, config.json with {family.pad_id}; they are not of one model, copy the "
            "tokenizer that it was trained with"
        )
    model = NAMES.get(family.model_type, family.model_type)
    ids = {"pad_id": pad_id, "mask_id": mask_id}
    return FamilyCheckpoint(model=model, max_length=family.longest, tokenizer=encoder, **ids, **found)


# What a record calls one of Hugging Face's, by the model_type in config.json, where that is another name.
NAMES = {"bert": "hf_bert"}


def _mismatch(folder: Path, found: Tokenizer, rows: int) -> UserError:
    return UserError(
        f"{folder}: the tokenizer has {found.get_vocab_size():,} entries, the embedding {rows:,} rows; they are not of one "
        "model, copy the tokenizer that it was trained with"
    )


def _from_file(file: Path) -> Checkpoint:
    run = file.resolve().parent.parent
    if file.suffix != ".pt" or not (run / records.FILE_NAME).is_file():
        raise UserError(f"checkpoint={file}: not a checkpoint in a run's folder; {FORMS}")
    if not (run / "encoder" / "config.json").is_file():
        raise UserError(f"checkpoint={file}: {run / 'encoder'} does not hold the run's sizes and tokenizer any more")
    batch, named = model_of(file)
    kept = objective_of(records.read_record(run)["config"]).encoder
    if kept:
        named = {n.removeprefix(f"{kept}."): tensor for n, tensor in named.items() if n.startswith(f"{kept}.")}
    return _from_folder(run / "encoder", run, batch, named, file)
