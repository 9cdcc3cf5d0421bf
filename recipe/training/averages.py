"""The table of averages of weights; `recipe.training.averaging` keeps them. Composer's EMA would not do: the initial weights stay
in it, it has no window, and it is updated tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    # (batch, from 1 on; the setting's steps; batches of the run) -> the share of the weights after this batch in the mean that
    # there then is; 0: there is none yet
    newest: Callable[[int, int, int], float]
    needs_end: bool = False  # whether the run's number of batches must be known beforehand


def window(batch: int, steps: int, batches: int) -> float:
    """The plain mean over the last `steps` batches of the run; one copy is enough, as only its end is looked at."""
    into = batch - (batches - steps)
    return 1 / into if into > 0 else 0.0


def ema(batch: int, steps: int, batches: int) -> float:
    """An exponential mean; the plain mean of all so far until there are `steps`, so nothing of the initial weights is in it."""
    return max(1 / batch, 1 / steps)


AVERAGES = {"window": Row(window, needs_end=True), "ema": Row(ema)}
