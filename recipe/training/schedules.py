"""The table of schedules: the learning rate over a run's whole duration, whatever unit that is in, as a share of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipe.config import Schedule


@dataclass(frozen=True)
class Row:
    factor: Callable[[float, Schedule], float]  # at a progress in [0, 1]
    problem: Callable[[Schedule], str | None] = lambda settings: None  # what cannot be, in words


def linear_with_warmup(progress: float, warmup: float, final: float) -> float:
    """The factor at `progress` in [0, 1]: up from 0 over `warmup`, then in a line down to `final`."""
    if progress < warmup:
        return progress / warmup
    remaining = (1.0 - progress) / (1.0 - warmup) if warmup < 1.0 else 0.0
    return final + (1.0 - final) * max(remaining, 0.0)


def warmup_stable_decay(progress: float, warmup: float, decay: float, final: float) -> float:
    """The factor at `progress`: up from 0 over `warmup`, 1, and over the last `decay` down to `final` as 1 - sqrt does."""
    if progress < warmup:
        return progress / warmup
    into = progress - (1.0 - decay)
    if decay == 0.0 or into <= 0.0:
        return 1.0
    return final + (1.0 - final) * (1.0 - math.sqrt(min(into / decay, 1.0)))


def _wsd_problem(settings: Schedule) -> str | None:
    if settings.warmup + settings.decay <= 1:
        return None
    return f"schedule.warmup={settings.warmup} and schedule.decay={settings.decay} are more than the run; lower one"


SCHEDULES = {
    "linear": Row(lambda progress, settings: linear_with_warmup(progress, settings.warmup, settings.final_lr)),
    "wsd": Row(
        lambda progress, settings: warmup_stable_decay(progress, settings.warmup, settings.decay, settings.final_lr),
        _wsd_problem,
    ),
}


def fallen(progress: float, settings: Schedule) -> float:
    """How much of its fall the learning rate has behind it: 0 until it first falls, warm-up included, 1 at the end."""
    factor = SCHEDULES[settings.shape].factor
    return (1.0 - factor(max(progress, settings.warmup), settings)) / (1.0 - factor(1.0, settings))
