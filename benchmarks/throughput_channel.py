"""How the measured processes of `benchmarks.throughput` time their steps, and talk to the process that measures."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from torch import Tensor

from benchmarks.measurement import Stopwatch, peak_mem_gib


class Steps(Stopwatch):
    """Times the steps of a turn and keeps their losses."""

    def start(self) -> None:
        self._losses: list[Tensor] = []
        super().start()

    def step(self, loss: Tensor) -> None:
        """A step is over; its loss is copied, as a CUDA graph's next run overwrites it."""
        self._losses.append(loss.detach().clone())
        self.lap()

    def answer(self) -> dict[str, Any]:
        """What is said of the turn: seconds and losses of its steps, and the peak memory so far."""
        return {"seconds": self.read(), "loss": [float(x) for x in self._losses], "peak_mem_gib": peak_mem_gib()}


class Channel:
    """Lines of JSON to and from the process that measures."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def say(self, **words: Any) -> None:
        print(json.dumps(words), file=self._out, flush=True)

    def steps(self) -> int:
        """How many are wanted next; 0: no more."""
        line = sys.stdin.readline()
        return json.loads(line)["steps"] if line else 0
