"""Learning rate over a run's whole duration, whatever unit that is in."""

from __future__ import annotations

from composer.core import State
from composer.optim import ComposerScheduler


def linear_with_warmup(progress: float, warmup: float, final: float) -> float:
    """The factor on the learning rate at `progress` in [0, 1]: up from 0 over `warmup`, then in a line down to `final`."""
    if progress < warmup:
        return progress / warmup
    remaining = (1.0 - progress) / (1.0 - warmup) if warmup < 1.0 else 0.0
    return final + (1.0 - final) * max(remaining, 0.0)


class LinearWithWarmup(ComposerScheduler):
    """`linear_with_warmup` over what Composer reports as elapsed."""

    def __init__(self, warmup: float, final: float) -> None:
        self.warmup = warmup
        self.final = final

    def __call__(self, state: State, ssr: float = 1.0) -> float:
        elapsed = state.get_elapsed_duration()
        return linear_with_warmup(0.0 if elapsed is None else float(elapsed), self.warmup, self.final)
