"""How every benchmark measures: times taken in turns, their spread, the machine's ceilings, and the file of a result.

What is compared runs in turns within one process or one call, the order turned round each time, so that whatever else the machine
does meets all of it alike. A GPU's times are those of its own clock, because the host runs ahead of it. Needs torch and numpy.
"""

from __future__ import annotations

import itertools
import json
import resource
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from benchmarks import machine
from recipe.system.files import write_whole
from recipe.training import ceilings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COPY_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}
LEAST_ROUNDS = 5

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


# Times.


class Stopwatch:
    """Takes the times of laps. On a GPU nothing waits until they are read."""

    def __init__(self, device: str) -> None:
        self._on_gpu = device == "cuda"
        self.start()

    def start(self) -> None:
        self._marks: list[Any] = []
        self.lap()

    def lap(self) -> None:
        """A lap is over, and the next one begins."""
        if not self._on_gpu:
            self._marks.append(time.perf_counter())
            return
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self._marks.append(mark)

    def read(self) -> list[float]:
        """Seconds of each lap since the start."""
        laps = itertools.pairwise(self._marks)
        if not self._on_gpu:
            return [end - begin for begin, end in laps]
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / 1e3 for begin, end in laps]


def timed(action: Callable[[], Result], device: str = "cpu") -> tuple[float, Result]:
    """(seconds of one call, what it returned)."""
    watch = Stopwatch(device)
    result = action()
    watch.lap()
    return watch.read()[0], result


def turned(items: Iterable[Item], number: int) -> list[Item]:
    """The order of turn `number`: each item is the first in as many turns as any other."""
    items = list(items)
    first = number % max(1, len(items))
    return items[first:] + items[:first]


def in_turns(
    calls: dict[Key, Callable[[], Result]], rounds: int, limit_s: float = float("inf"), warm_up: int = 1
) -> dict[Key, list[Result]]:
    """What each call returns, which is what it has measured of itself, once a round; the first `warm_up` rounds are left out.

    No round starts after `limit_s` seconds, once there are LEAST_ROUNDS.
    """
    found: dict[Key, list[Result]] = {key: [] for key in calls}
    for number in range(warm_up + rounds):
        done = number - warm_up
        if done == 0:
            start = time.perf_counter()
        if done >= LEAST_ROUNDS and time.perf_counter() - start > limit_s:
            break
        for key in turned(calls, number):
            result = calls[key]()
            if done >= 0:
                found[key].append(result)
    return found


def peak_mem_gib() -> float:
    """Most memory so far: of a GPU's tensors where this process has some, else of the whole process."""
    if torch.cuda.is_available() and (peak := torch.cuda.max_memory_allocated()):
        return peak / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


# What is said of them.


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """The percentiles p20, p50 and p80 of `values`, times `scale`."""
    found = np.percentile(values, (20, 50, 80)) * scale
    return dict(zip(("p20", "p50", "p80"), found.tolist(), strict=True))


def ratios(theirs: Sequence[float], ours: Sequence[float], turns: int) -> list[float]:
    """How many times as long theirs took, for each turn, in which both did the same work."""
    return [sum(a) / sum(b) for a, b in zip(np.array_split(theirs, turns), np.array_split(ours, turns), strict=True)]


# What the machine can do.


@dataclass(frozen=True)
class Ceilings:
    flops_per_s: float  # of a matrix product
    bytes_per_s: float  # read and written by a copy


def measure_ceilings(device: str, dtype: torch.dtype, seconds: float = 1.0) -> Ceilings:
    """The best that `device` (cpu or cuda) reaches, a copy being measured for so many seconds."""
    size = COPY_BYTES[device]
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy_s = ceilings.best_seconds(lambda: target.copy_(source), device, seconds)
    return Ceilings(ceilings.matmul_flops(device, dtype, seconds / 3), 2 * size / copy_s)


def small_ceilings() -> None:
    """For a rehearsal on a processor, which would take minutes for what a GPU does in milliseconds."""
    COPY_BYTES["cuda"], ceilings.SIDES["cuda"] = 1 << 20, (128,)


# Results.


def write(file: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write `record` as JSON, and with it `machine.provenance`, unless it brings its own; returns what was written."""
    if "provenance" not in record:
        record = {"provenance": machine.provenance(), **record}
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda draft: draft.write_text(text, "utf-8"))
    return record


def figure(width: float, height: float) -> Figure | None:
    """An empty figure of so many inches, to be saved; None where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), dpi=140, layout="constrained")
