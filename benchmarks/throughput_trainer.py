"""The Composer trainer as `python -m recipe.train` runs it, let go a few steps at a time by `benchmarks.throughput`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from recipe import train as recipe_train
from recipe.config import TrainConfig, load
from recipe.training.callbacks import AfterBatch
from recipe.training.quiet import quiet_libraries

if TYPE_CHECKING:
    from benchmarks.throughput_worker import Channel


def train(job: dict[str, Any], channel: Channel) -> None:
    """A run of `recipe.train` with its loader, meter and schedule; a step is all that happens between two ends of a batch."""
    quiet_libraries()
    gate = Gate(job["warm_up"], channel)
    tell = AfterBatch(lambda state: gate(float(state.outputs["loss"])))  # of the last microbatch; the host waits here
    recipe_train.train(load(TrainConfig, job["yaml"], job["words"]), [tell])


class Gate:
    """Lets as many batches pass as the measuring process wants, and tells it how long each took."""

    def __init__(self, warm_up: int, channel: Channel) -> None:
        self._channel = channel
        self._left = warm_up
        self._ready = False
        self._done: list[tuple[float, float]] = []
        self._begin = self._start = time.perf_counter()

    def __call__(self, loss: float) -> None:
        now = time.perf_counter()
        self._done.append((now - self._begin, loss))
        self._left -= 1
        if self._left == 0:
            self._channel.say(**self._answer(now))
            self._ready, self._done = True, []
            self._left = self._channel.steps()
            if not self._left:
                raise SystemExit(0)  # measured; the run itself is nobody's
        self._begin = time.perf_counter()

    def _answer(self, now: float) -> dict[str, Any]:
        from benchmarks.throughput_worker import measured

        if self._ready:
            return measured(self._done)
        return {"ready": True, "note": "Composer, loader, meter", "parameters": None, "warm_up_s": now - self._start}
