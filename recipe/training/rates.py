"""A schedule as Composer's trainer wants it, and how much of a run is over."""

from __future__ import annotations

from composer.core import State, TimeUnit
from composer.optim import ComposerScheduler

from recipe.config import Schedule
from recipe.training.schedules import SCHEDULES


def elapsed(state: State) -> float:
    """How much of the run is over, in [0, 1]. Composer itself counts an epoch only when it is whole, and the batch that reaches a
    number of tokens usually exceeds it."""
    duration = state.max_duration
    if duration.unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        now = state.timestamp
        return (now.epoch.value + now.batch_in_epoch.value / state.dataloader_len.value) / duration.value
    return min(float(state.get_elapsed_duration()), 1.0)


class Rate(ComposerScheduler):
    """The factor of the schedule's row over the whole run."""

    def __init__(self, settings: Schedule) -> None:
        self.settings = settings

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        return SCHEDULES[self.settings.shape].factor(elapsed(state), self.settings)
