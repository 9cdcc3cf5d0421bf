"""Where a run's first weights come from: `init_from`, which is whatever `recipe.training.checkpoint` finds an encoder in.

Sizes follow the source. A key of `model` that stands at its default takes the source's value, another value must be the source's.
Dropout is the run's own. The text must have been prepared with the source's tokenizer: other ids would be other words to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from recipe import convert
from recipe.config import Model, TrainConfig
from recipe.data import tokenizer
from recipe.data.shards import DatasetInfo
from recipe.errors import UserError
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.settings import default
from recipe.training.checkpoint import Checkpoint, find_checkpoint

_OWN = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "narrow_layers",
)  # keys of `model` that the run decides


@dataclasses.dataclass(frozen=True)
class Start:
    """Weights to start from, in the form of the architecture `model`."""

    model: str
    sizes: EncoderConfig  # `vocab_size` counts the rows of this run
    weights: dict[str, Tensor]
    longest: int | None  # input that its positions are made for
    said: list[str]  # for the start of the run
    new: tuple[str, ...] = ()  # parameters of a head that the source does not have

    def for_model(self, wanted: Collection[str], prefix: str) -> Start:
        """For a model of the parameters `wanted`, its encoder's behind `prefix`. Where the source learnt something else, and so
        has nothing of the model's head, that is new, and the source's own is left out."""
        heads = {name for name in wanted if not name.startswith(prefix)}
        other = sorted(name for name in self.weights if not name.startswith(prefix))
        if not other or heads & set(other):
            return self
        said = [
            f"  it learnt another objective: its head, {len(other)} tensors, `{other[0]}` the first, is not used; this run's, "
            f"{len(heads)} tensors, is new"
        ]
        weights = {name: tensor for name, tensor in self.weights.items() if name.startswith(prefix)}
        return dataclasses.replace(self, weights=weights, said=[*self.said, *said], new=tuple(sorted(heads)))


def find_start(config: TrainConfig, info: DatasetInfo, dataset: Path) -> Start | None:
    """What `init_from` holds, for shards whose folder is `dataset`; None where the run starts from nothing.

    Raises:
        UserError: no encoder there, none that can be trained on, or one of another tokenizer or with too few positions.
    """
    if config.init_from is None:
        return None
    said, length = f"init_from={config.init_from}", config.data.sequence_length
    found = find_checkpoint(config.init_from, "init_from")
    source = found.pretrained()
    _check_tokenizer(said, found, info, dataset, config.data.path)
    if found.max_length is not None and length > found.max_length:
        raise UserError(
            f"data.sequence_length={length}, but {said} has {found.max_length} position embeddings; set "
            f"data.sequence_length={found.max_length}: only an encoder without them, such as MosaicBERT, goes beyond its own"
        )
    rows = padded_vocab_size(info.vocabulary.size)
    weights, before = convert.fit_rows(source.weights, source.architecture.vocabulary_rows, rows)
    if before < info.vocabulary.size:
        raise UserError(
            f"{said}: its embedding has {before:,} rows and its tokenizer {info.vocabulary.size:,} entries; they are not of one "
            "model, copy both again"
        )
    lines = [f"start: the weights of {config.init_from}"]
    if before != rows:
        how = f"padded from {before:,} rows" if before < rows else f"trimmed from {before:,} rows"
        lines.append(f"  embedding {how} to {rows:,}; no token's is touched")
    if source.left_out:
        lines.append(f"  {len(source.left_out)} tensors not used here, `{source.left_out[0]}` the first")
    sizes = dataclasses.replace(source.sizes, vocab_size=rows)
    return Start(source.architecture.name, sizes, weights, found.max_length, lines)


def adopt(config: TrainConfig, model: str, sizes: EncoderConfig) -> TrainConfig:
    """The config with the source's architecture and sizes in `model`.

    Raises:
        UserError: a key of `model` that is neither at its default nor the source's value.
    """
    theirs: dict[str, Any] = {"name": model, **dataclasses.asdict(sizes)}
    adopted = {}
    for field in dataclasses.fields(Model):
        if field.name in _OWN or field.name == "vocab_size" or field.name not in theirs:
            continue
        here, there, absent = getattr(config.model, field.name), theirs[field.name], default(field)
        if here not in (there, absent):
            raise UserError(
                f"model.{field.name}={here}, but init_from={config.init_from} has {there}; leave it out to follow the source"
            )
        if absent is not None:  # else none is what stands for the source's too
            adopted[field.name] = there
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **adopted))


def _check_tokenizer(said: str, found: Checkpoint, info: DatasetInfo, dataset: Path, path: str) -> None:
    different = tokenizer.differences(found.tokenizer, tokenizer.encoder(dataset / "tokenizer"))
    for role in ("pad", "mask"):
        if getattr(found, f"{role}_id") != getattr(info.vocabulary, f"{role}_id"):
            different.append(f"{role} token")
    if different:
        raise UserError(
            f"{said} was trained with another tokenizer than that of {path} (another {', '.join(different)}); prepare the text "
            f"again with tokenizer.name={found.folder}"
        )
