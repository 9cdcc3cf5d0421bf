"""What the rest of the project asks of an objective; `recipe.objectives` is the table of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from recipe.data.batch import Collate, Collator
    from recipe.model.architecture import Architecture
    from recipe.model.config import EncoderConfig
    from recipe.model.encoder import Backends


@dataclass(frozen=True)
class Counts:
    """What a step, or many of them, worked on; `masked` are the positions that an answer is asked for at."""

    tokens: float
    squared_lengths: float  # summed over the sequences
    masked: float


@dataclass(frozen=True)
class Objective:
    """A row."""

    name: str
    # Of what `forward(batch)` gives: scalars, each a mean over the masked positions. `loss` is what is minimised, and first.
    metrics: tuple[str, ...]
    # (architecture, sizes, sequence length, backends) -> all networks, whose `forward(batch)` gives the metrics by name
    model: Callable[[Architecture, EncoderConfig, int, Backends], nn.Module]
    # (architecture, sizes by name, counts) -> operations of forward and backward, of all networks
    flops: Callable[[Architecture, dict, Counts], float]
    encoder: str = ""  # the sub-module that is saved and scored, an architecture's `masked_lm`; empty: the model itself
    # (masking, as the config says) -> what makes a stream of documents, which is then padded or packed. Of a document it makes
    # the same in any batch, and it asks for no more labels: memory and the room in a packed batch follow from the masking rate.
    collator: Callable[[Collator], Collate] = lambda masking: masking
    # (architecture, sizes) -> why it cannot be learnt by such networks, in words; None: it can
    problem: Callable[[Architecture, EncoderConfig], str | None] = lambda architecture, sizes: None

    def kept(self, model: nn.Module) -> nn.Module:
        """The network that is saved and scored."""
        return model.get_submodule(self.encoder)


def fates(masked: float, swapped: float) -> Callable[[Collator], Collate]:
    """A `collator`: of the chosen tokens the share `masked` becomes [MASK], `swapped` a random token, and the rest stay."""

    def with_fates(masking: Collator) -> Collate:
        masker = dataclasses.replace(masking.masker, mask_share=masked, random_share=swapped)
        return dataclasses.replace(masking, masker=masker)

    return with_fates
