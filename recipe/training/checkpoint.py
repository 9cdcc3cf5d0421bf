"""From a path to an encoder that can be fine-tuned, or trained on: a run's folder, one checkpoint of a run, an encoder's folder,
which may be any BERT-family model's in Hugging Face's form, or such a model's name on the hub."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tokenizers import Tokenizer
from torch import Tensor, nn

from kernels.backends import Resolved
from recipe import convert, records
from recipe.config import Tokenizer as TokenizerSettings
from recipe.data import tokenizer
from recipe.errors import UserError, class_and_line
from recipe.model.architecture import PADDED, Architecture, Shapes
from recipe.model.architectures import ARCHITECTURES, architecture
from recipe.model.config import EncoderConfig, check_sizes, padded_vocab_size
from recipe.model.encoder import Backends, initialize
from recipe.model.heads import FineTuned
from recipe.model.huggingface import (
    POOLER,
    HFEncoder,
    HFFineTuned,
    HFForMaskedLM,
    download,
    load_tokenizer,
    read_family,
)
from recipe.objectives import objective_of
from recipe.objectives.detector import HEADS, Detector
from recipe.system.files import leaving, read_json
from recipe.system.hardware import Hardware
from recipe.training.checkpoint_files import model_of

if TYPE_CHECKING:
    from recipe.finetune.kinds.kind import Kind

Loaded = TypeVar("Loaded", HFEncoder, HFForMaskedLM, HFFineTuned)

FORMS = "give a run's folder, an encoder's folder (config.json, model.safetensors, tokenizer), RUN/checkpoints/*.pt or a hub name"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
HF_MODEL = "bert."  # of BertForMaskedLM inside `recipe.model.huggingface.HFBertForMaskedLM`, and
HF_PREFIX = "bert.bert."  # of its encoder
# The first that is there.
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin")
TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model", "spm.model")


@dataclass(frozen=True)
class Pretrained:
    """What training goes on from, in the form of a row of the table of architectures."""

    architecture: Architecture
    sizes: EncoderConfig
    weights: dict[str, Tensor]  # under the names of the row's `masked_lm`
    left_out: list[str]  # tensors that masked-language modelling has no use for


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
    sizes: EncoderConfig | None  # None for a model that is no row of the table of architectures

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

    @property
    def detects(self) -> bool:
        """Whether its head is that of an objective that detects."""
        names = convert.read_shapes(self.files) if self.weights is None else self.weights
        return any(head <= names.keys() for head in HEADS)

    def detector(self, chosen: Backends) -> Detector:
        """The encoder with such a head, every weight as pretrained.

        Raises:
            UserError: as `pretrained`.
        """
        source = self.pretrained()
        model = Detector(source.architecture, source.sizes, self.max_length or 0, chosen)
        convert.load_weights(model, source.weights, str(self.folder))
        return model

    def trained_as(self) -> Architecture:
        """The row of the table of architectures that it is of.

        Raises:
            UserError: none is.
        """
        if self.sizes is None:
            raise UserError(
                f"{self.folder}: a `{self.model}`, which recipe.train cannot go on with; it trains {', '.join(ARCHITECTURES)}, "
                "and as hf_bert an ELECTRA whose embedding_size is its hidden_size"
            )
        return architecture(self.model)

    def _no_decoder(self) -> UserError:
        return UserError(
            f"{self.folder}: an encoder without a head for masked language modelling, as objectives that detect leave it; "
            "fine-tune it with recipe.glue or recipe.finetune"
        )

    def pretrained(self) -> Pretrained:
        """Sizes and weights for `recipe.train`.

        Raises:
            UserError: as `trained_as`, or weights that cannot be brought into the row's form.
        """
        row = self.trained_as()
        if self.weights is not None:
            return Pretrained(row, self.sizes, self.weights, [])
        return Pretrained(row, self.sizes, *row.weights_of(convert.read_weights(self.files), str(self.folder)))


@dataclass(frozen=True)
class OwnCheckpoint(Checkpoint):
    """In this project's own form."""

    @property
    def padding(self) -> int | None:
        return self.pad_id if self._row.form == PADDED else None

    @property
    def _row(self) -> Architecture:
        return architecture(self.model)

    def resolve_backends(self, hardware: Hardware) -> Backends:
        needs = self.sizes.requirements(hardware.device, hardware.activation_dtype)
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
        model, weights = self._row.masked_lm(self.sizes, self.max_length or 0, chosen), self._weights()
        lacking = model.state_dict().keys() - weights.keys()
        if lacking and not any(name.startswith(self._row.prefix) for name in lacking):
            raise self._no_decoder()
        convert.load_weights(model, weights, str(self.folder))
        return model

    def _weights(self) -> dict[str, Tensor]:
        return self.pretrained().weights


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
        if self.detects:
            raise self._no_decoder()
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


def find_checkpoint(path: str, key: str = "checkpoint") -> Checkpoint:
    """What `path` holds; `key` is the setting that gave it.

    Raises:
        UserError: nothing there, no encoder in it, no tokenizer beside it, or a tokenizer that does not fit.
    """
    place, said = Path(path).expanduser(), f"{key}={path}"
    if not place.exists():
        if not HUB_NAME.fullmatch(path):
            raise UserError(f"{said}: no such file or folder; {FORMS}")
        return _from_folder(download(path, said), None, name=path.rpartition("/")[2], downloaded=True)
    if place.is_file():
        return _from_file(place, said)
    if (place / records.FILE_NAME).is_file():
        record = records.read_record(place)
        if record["kind"] != "pretrain":
            raise UserError(f"{said}: a run of kind `{record['kind']}`, which has no encoder; {FORMS}")
        if not (place / "encoder" / "model.safetensors").is_file():
            raise UserError(
                f"{said}: no finished encoder in it, the run is `{record['status']}`; finish it with "
                "autoresume=true, or give one of its checkpoints/*.pt"
            )
        return _from_folder(place / "encoder", place)
    if not (place / "config.json").is_file():
        raise UserError(f"{said}: neither {records.FILE_NAME} nor config.json in it; {FORMS}")
    above = place.resolve().parent
    in_run = place.resolve().name == "encoder" and (above / records.FILE_NAME).is_file()
    return _from_folder(place, above if in_run else None)


def _from_folder(
    folder: Path,
    run: Path | None,
    batch: int | None = None,
    weights: Any = None,
    file: Path | None = None,
    name: str = "",
    downloaded: bool = False,
) -> Checkpoint:
    """An encoder's folder; its weights are those of `file`, where that is given."""
    if not downloaded and (link := leaving(folder)):
        raise UserError(f"{link}: a link that leaves the encoder's folder; copy what it leads to into its place")
    if any(folder.glob("*.py")):
        print(f"{folder}: brings code of its own, which is not run", flush=True)
    of_folder = (tuple(sorted(folder.glob(pattern))) for pattern in WEIGHTS)
    files = (file,) if file else next(filter(None, of_folder), ())
    if not files:
        raise UserError(f"{folder}: no {WEIGHTS[0]}; {FORMS}")
    if not any((folder / known).is_file() for known in TOKENIZERS):
        raise UserError(f"{folder}: no tokenizer in it (tokenizer.json or vocab.txt); copy the one it was trained with")
    shapes = cache(lambda: convert.read_shapes(files) if weights is None else _shapes_of(weights))
    name = name or (run or folder).resolve().name + (f"-ba{batch}" if batch is not None else "")
    found = {"name": name, "folder": folder, "run": run, "batch": batch, "files": files, "weights": weights}
    row, sizes = _recognised(folder / "config.json", shapes)
    if row and row.encoder:
        return _own(found | {"model": row.name, "sizes": sizes})
    return _family(found | {"model": row and row.name, "sizes": sizes})


def _recognised(file: Path, shapes: Shapes) -> tuple[Architecture, EncoderConfig] | tuple[None, None]:
    """The row that a folder is of by its config.json and the shapes of its tensors, and its model's sizes."""
    try:
        values = read_json(file)
        if not isinstance(values["model_type"], str):
            raise ValueError("model_type is no name")
        check_sizes(values)
        for name in ARCHITECTURES:
            row = architecture(name)
            if sizes := row.sizes_of(values, shapes):
                return row, sizes
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not the configuration of an encoder ({error!r})") from None
    return None, None


def _shapes_of(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}


def _own(found: dict[str, Any]) -> Checkpoint:
    """One in this project's form."""
    folder, sizes = found["folder"], found["sizes"]
    if sizes.type_vocab_size == 1:
        raise UserError(
            f"{folder}: type_vocab_size=1; pairs of sentences need 2, or 0 for an encoder without token types"
        )
    try:
        if (folder / "tokenizer.json").is_file():
            encoder = tokenizer.encoder(folder)
        else:
            encoder = tokenizer.load(TokenizerSettings(name=str(folder))).backend_tokenizer
            encoder.encode_special_tokens = True  # a literal `[MASK]` in a text is plain text
        special = tokenizer.special_ids(folder, encoder)
    except UserError:
        raise
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"{folder / 'tokenizer.json'}: not a tokenizer ({class_and_line(error)})") from None
    # The embedding has the vocabulary's size, or that rounded up; any other tokenizer is another model's.
    entries = max(encoder.get_vocab().values()) + 1
    if not entries <= sizes.vocab_size <= padded_vocab_size(entries):
        raise _mismatch(folder, encoder, sizes.vocab_size)
    ids = {name: special[name] for name in ("pad_id", "mask_id")}
    return OwnCheckpoint(max_length=None, tokenizer=encoder, **ids, **found)


def _family(found: dict[str, Any]) -> Checkpoint:
    """One in Hugging Face's."""
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
    ids = {"pad_id": pad_id, "mask_id": mask_id}
    found["model"] = found["model"] or family.model_type
    return FamilyCheckpoint(max_length=family.longest, tokenizer=encoder, **ids, **found)


def _mismatch(folder: Path, found: Tokenizer, rows: int) -> UserError:
    return UserError(
        f"{folder}: the tokenizer has {found.get_vocab_size():,} entries, the embedding {rows:,} rows; they are not of one "
        "model, copy the tokenizer that it was trained with"
    )


def _from_file(file: Path, said: str) -> Checkpoint:
    run = file.resolve().parent.parent
    if file.suffix != ".pt" or not (run / records.FILE_NAME).is_file():
        raise UserError(f"{said}: not a checkpoint in a run's folder; {FORMS}")
    if not (run / "encoder" / "config.json").is_file():
        raise UserError(f"{said}: {run / 'encoder'} does not hold the run's sizes and tokenizer any more")
    batch, named = model_of(file)
    kept = objective_of(records.read_record(run)["config"]).encoder
    if kept:
        named = {n.removeprefix(f"{kept}."): tensor for n, tensor in named.items() if n.startswith(f"{kept}.")}
    return _from_folder(run / "encoder", run, batch, named, file)
