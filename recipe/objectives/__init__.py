"""The table of pretraining objectives: what is learnt from a batch, by which networks. A row's room is imported when it is asked
for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from recipe.objectives.objective import Objective


def _masked_lm() -> Objective:
    from recipe.objectives.masked_lm import MASKED_LM

    return MASKED_LM


def _swapped_lm() -> Objective:
    from recipe.objectives.swapped_lm import SWAPPED_LM

    return SWAPPED_LM


def _swapped_tokens() -> Objective:
    from recipe.objectives.swapped_tokens import SWAPPED_TOKENS

    return SWAPPED_TOKENS


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "masked_lm": _masked_lm,
    "swapped_lm": _swapped_lm,
    "swapped_tokens": _swapped_tokens,
}


def objective(name: str) -> Objective:
    """The row of that name; `recipe.config` has checked that there is one."""
    return OBJECTIVES[name]()


def objective_of(config: Mapping[str, Any]) -> Objective:
    """That of a record's config; runs from before the key learnt what is its default."""
    return objective(config.get("objective", "masked_lm"))
