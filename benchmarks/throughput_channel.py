"""How the measured processes of `benchmarks.throughput` time their steps, and talk to the process that measures."""

from __future__ import annotations

import itertools
import json
import os
import resource
import sys
import time
from typing import Any

import torch
from torch import Tensor


class Stopwatch:
    """Times the steps of a turn. On a GPU by the device's own clock: the host may run ahead and waits at the turn's end alone."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self.start()

    def start(self) -> None:
        self._losses: list[Tensor] = []
        self._marks = [self._mark()]

    def step(self, loss: Tensor) -> None:
        """A step is over; its loss is copied, as a CUDA graph's next run overwrites it."""
        self._losses.append(loss.detach().clone())
        self._marks.append(self._mark())

    def read(self) -> tuple[list[float], list[float]]:
        """(seconds of each step, losses)."""
        losses = [float(loss) for loss in self._losses]
        if not self._on_gpu:
            return [b - a for a, b in itertools.pairwise(self._marks)], losses
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(self._marks)], losses

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark


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


def measured(seconds: list[float], losses: list[float]) -> dict[str, Any]:
    """The answer about steps that took so many seconds and had such losses, with the peak memory so far: GiB of a GPU's tensors,
    or of the whole process on a CPU."""
    on_gpu = torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0
    peak = (
        torch.cuda.max_memory_allocated() / 2**30
        if on_gpu
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    )
    return {"seconds": seconds, "loss": losses, "peak_mem_gib": peak}
