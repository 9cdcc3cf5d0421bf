"""Learning rate over a run's whole duration, whatever unit that is in."""

from __future__ import annotations

import math

from composer.core import State, TimeUnit
from composer.optim import ComposerScheduler

from recipe.config import Schedule


def linear_with_warmup(progress: float, warmup: float, final: float) -> float:
    """The factor on the learning rate at `progress` in [0, 1]: up from 0 over `warmup`, then in a line down to `final`."""
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


def elapsed(state: State) -> float:
    """How much of the run is over, in [0, 1]. Composer itself counts an epoch only when it is whole, and the batch that reaches a
    number of tokens usually exceeds it."""
    duration = state.max_duration
    if duration.unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        now = state.timestamp
        return (now.epoch.value + now.batch_in_epoch.value / state.dataloader_len.value) / duration.value
    return min(float(state.get_elapsed_duration()), 1.0)


class LinearWithWarmup(ComposerScheduler):
    """`linear_with_warmup` over the whole run."""

    def __init__(self, warmup: float, final: float) -> None:
        self.warmup = warmup
        self.final = final

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        return linear_with_warmup(elapsed(state), self.warmup, self.final)


class WarmupStableDecay(ComposerScheduler):
    """`warmup_stable_decay` over the whole run."""

    def __init__(self, warmup: float, decay: float, final: float) -> None:
        self.warmup = warmup
        self.decay = decay
        self.final = final

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        return warmup_stable_decay(elapsed(state), self.warmup, self.decay, self.final)


def build_schedule(config: Schedule) -> ComposerScheduler:
    if config.shape == "wsd":
        return WarmupStableDecay(config.warmup, config.decay, config.final_lr)
    return LinearWithWarmup(config.warmup, config.final_lr)
