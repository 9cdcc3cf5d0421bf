"""What an hour costs: keys of every entry point that has a bill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from recipe.settings import setting

# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045


@dataclass
class Cost:
    """What an hour costs."""

    prices: str = setting("yamls/prices.yaml", "the price table", result=False)
    usd_per_hour: Optional[float] = setting(
        None,
        "dollars per hour of one GPU, or of one CPU core; none: from the table, by the device's name",
        above=0,
        result=False,
    )
