"""The Composer trainer as `python -m recipe.train` runs it, let go a few steps at a time by `benchmarks.throughput`."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from benchmarks.throughput_channel import Channel, Steps
from recipe import train as recipe_train
from recipe.config import TrainConfig, load
from recipe.system.quiet import quiet_libraries
from recipe.training.callbacks import AfterBatch


def train(job: dict[str, Any], channel: Channel) -> None:
    """A run of `recipe.train` with its loader, meter and schedule; a step is all that happens between two ends of a batch."""
    quiet_libraries()
    gate = Gate(job["warm_up"], job["device"], channel)
    tell = AfterBatch(lambda state: gate(state.outputs["loss"]))  # of the last microbatch
    recipe_train.train(load(TrainConfig, job["yaml"], job["words"]), [tell])


class Gate:
    """Lets as many batches pass as the measuring process wants, and tells it how long each took."""

    def __init__(self, warm_up: int, device: str, channel: Channel) -> None:
        self._channel = channel
        self._left = warm_up
        self._ready = False
        self._watch, self._start = Steps(device), time.perf_counter()

    def __call__(self, loss: Tensor) -> None:
        self._watch.step(loss)
        self._left -= 1
        if self._left == 0:
            self._channel.say(**self._answer())
            self._ready = True
            self._left = self._channel.steps()
            if not self._left:
                raise SystemExit(0)  # measured; the run itself is nobody's
            self._watch.start()

    def _answer(self) -> dict[str, Any]:
        answer = self._watch.answer()
        if self._ready:
            return answer
        warm_up = time.perf_counter() - self._start
        return {"ready": True, "note": "Composer, loader, meter", "parameters": None, "warm_up_s": warm_up}
