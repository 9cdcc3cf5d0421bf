"""What the rest of the project asks of an architecture; `recipe.model.architectures` is the table of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

    from kernels.backends import Requirements
    from recipe.model.config import EncoderConfig
    from recipe.model.encoder import Backends

Shapes = Callable[[], Mapping[str, tuple[int, ...]]]  # read when it is called

# The forms of a batch (`recipe.data.batch`): what a model takes.
STREAM, PADDED = "stream", "padded"


@dataclass(frozen=True)
class Export:
    """What an architecture's models are to Hugging Face's transformers; `recipe.export` writes them so."""

    classes: str  # what the names of its classes there begin with, as in `BertModel`, `BertForMaskedLM`
    # What config.json says of a model. ValueError: there is no class for one of these blocks.
    settings: Callable[[EncoderConfig], dict[str, Any]]
    name: Callable[[str], str]  # a parameter of `masked_lm` -> its name there
    # The module of these classes where transformers has none: one file that imports nothing of ours and goes along.
    code: Callable[[], ModuleType] | None = None
    # A layer of the heads of `recipe.finetune.kinds` -> its name in the classes for such heads; absent where these compute
    # something else.
    heads: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Architecture:
    """A row. Shapes: see the models' own docstrings."""

    name: str
    form: str  # STREAM or PADDED
    gated: bool  # whether its feed-forward has a third matrix
    # (attention, kernels, needs) -> what runs; `auto` or a name each. ValueError: it cannot run here.
    backends: Callable[[str, str, Requirements], Backends]
    # (sizes, sequence length, backends) -> a model with `forward(batch)`, a dictionary of losses, and `masked_logits(batch)`
    masked_lm: Callable[[EncoderConfig, int, Backends], nn.Module]
    # (sequences, length, masking rate) -> the largest batch, whose values are not looked at (`recipe.model.examples`)
    largest_batch: Callable[[int, int, float], dict[str, Any]]
    save: Callable[[nn.Module, Path], None]  # sizes and weights, as the ecosystem names them or as we do
    save_sizes: Callable[[nn.Module, Path], None]  # sizes alone
    # (sizes, backends) -> the module `encoder` of `masked_lm` alone, for other heads: `forward(batch, keep)` gives hidden states
    # (K, D) at the places `keep` (K,) int64 of the stream, or of the flattened padded rows; of every real token, in order,
    # where `keep` is None. Absent where the row's folders are Hugging Face's own, whose classes come with heads.
    encoder: Callable[[EncoderConfig, Backends], nn.Module] | None = None
    # What the encoder's parameters begin with, in `masked_lm` and in a model with any other head.
    prefix: str = "encoder."
    # (sizes, sequence length, backends) -> the module that the first word of `prefix` names, without a head: `forward(batch)`
    # gives hidden states of every place of a batch of the row's form, (T, D), of padded rows (S L, D). Absent: objectives that
    # ask something of every token cannot be learnt.
    bare: Callable[[EncoderConfig, int, Backends], nn.Module] | None = None
    # Fields of `EncoderConfig` that make a model one of this row where a config does not state them. Absent: its block is not
    # described by the fields `BLOCK`, so that none of them can be stated.
    settings: Mapping[str, Any] | None = None
    export: Export | None = None  # absent where the row's folders are Hugging Face's own
    # Parameters of `masked_lm` that have a row per entry of the vocabulary, the word embeddings first.
    vocabulary_rows: tuple[str, ...] = ()
    # Of folders that others wrote too: (config.json, its tensors' shapes by name) -> the model's sizes; None: another
    # architecture's. ValueError: no encoder's. Absent: only what `save` wrote.
    recognise: Callable[[Mapping[str, Any], Shapes], EncoderConfig | None] | None = None
    # (tensors of such a folder, where they are from) -> the same under the names of `masked_lm`'s parameters, and the names of
    # those that masked-language modelling has no use for. UserError: they cannot be brought under them. Absent: they are.
    named: Callable[[dict[str, Tensor], str], tuple[dict[str, Tensor], list[str]]] | None = None

    def sizes(
        self, stated: Mapping[str, Any], vocab_size: int, source: EncoderConfig | None = None, **more: Any
    ) -> EncoderConfig:
        """What a config's keys `stated` make, None for one that is not; by default as `source`, or as the row has it.

        Raises:
            ValueError: a value that is none, or a key that this row does not have.
        """
        from recipe.block import BLOCK
        from recipe.model.config import EncoderConfig

        own = {f.name for f in dataclasses.fields(EncoderConfig)}
        values = {name: value for name, value in stated.items() if name in own and value is not None}
        if self.settings is None and (given := [name for name in BLOCK if name in values]):
            raise ValueError(f"{given[0]}={values[given[0]]}: the block of {self.name} is as it is; leave the key out")
        base = source or EncoderConfig(**(self.settings or {}))
        return dataclasses.replace(base, **{**values, "vocab_size": vocab_size, **more})

    def sizes_of(self, values: Mapping[str, Any], shapes: Shapes) -> EncoderConfig | None:
        """The sizes of a folder's model, None if it is of another architecture; as `recognise`."""
        from recipe.model.config import EncoderConfig  # brings torch, which the table does without

        if self.recognise:
            return self.recognise(values, shapes)
        return EncoderConfig.from_dict(dict(values)) if values.get("model_type") == self.name else None

    def weights_of(self, tensors: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
        """As `named`."""
        return self.named(tensors, where) if self.named else (tensors, [])
