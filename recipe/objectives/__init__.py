"""The table of pretraining objectives: what is learnt from a batch, by which networks. A row's room is imported when it is asked
for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from recipe.objectives.objective import Objective

Config = Mapping[str, Any]  # of a run, as its record holds it


def _masked_lm(config: Config) -> Objective:
    from recipe.objectives.masked_lm import MASKED_LM

    return MASKED_LM


def _swapped_lm(config: Config) -> Objective:
    from recipe.objectives.swapped_lm import SWAPPED_LM

    return SWAPPED_LM


def _swapped_tokens(config: Config) -> Objective:
    from recipe.objectives.swapped_tokens import SWAPPED_TOKENS

    return SWAPPED_TOKENS


def _replaced_tokens(config: Config) -> Objective:
    from recipe.objectives.replaced_tokens import replaced_tokens

    return replaced_tokens(config)


OBJECTIVES: dict[str, Callable[[Config], Objective]] = {
    "masked_lm": _masked_lm,
    "swapped_lm": _swapped_lm,
    "swapped_tokens": _swapped_tokens,
    "replaced_tokens": _replaced_tokens,
}


def objective_of(config: Config) -> Objective:
    """The row that a run's config names, with what the config says of its networks; runs from before the key learnt what is its
    default."""
    return OBJECTIVES[config.get("objective", "masked_lm")](config)
