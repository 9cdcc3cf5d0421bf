"""How far all jobs of a fine-tuning are, and what those that run are doing.

[3/12]  38%, 3:56 left | MNLI, seed 19: 50%, loss 1.250 | RTE, seed 19: 25%
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from recipe.system.progress import ProgressLine, clock, time_left

FIRST_S = 1.0  # after its start a job reports for the first time
TOLD_FROM = 0.05  # of the work: what is left before is a guess


class JobsProgress:
    def __init__(self, work: Mapping[str, float], before: int = 0, stream: TextIO | None = None) -> None:
        """
        Args:
            work: of each job that is to be done, by its name, how much of all the work it is, in any unit.
            before: jobs that were done before, which are counted and take no time.
        """
        self.work = dict(work)
        self.jobs = before + len(work)
        self.ended = before
        self._part = dict.fromkeys(work, 0.0)  # 0..1 of each job
        self._running: dict[str, float | None] = {}  # name: loss
        self._started = time.monotonic()
        self._quiet = True  # until a job runs: the start of a pool's processes is no measure of theirs
        self._line = ProgressLine(stream or sys.stdout, self._words)

    @property
    def done(self) -> float:
        """The part, 0..1, of all the work."""
        total = sum(self.work.values())
        return sum(self.work[name] * part for name, part in self._part.items()) / total if total else 1.0

    @property
    def left_s(self) -> float:
        """Seconds until all jobs are done, if they go on as fast as so far."""
        return time_left(time.monotonic() - self._started, self.done)

    def report(self, name: str, part: float, loss: float | None) -> None:
        """`part`, 0..1, of a job is done, and its loss is now `loss`."""
        self._part[name], self._running[name] = part, loss
        if self._quiet:
            self._started, self._quiet = max(self._started, time.monotonic() - FIRST_S), False
        self._line.show()

    def end(self, name: str) -> None:
        """The job is done, well or not; what it has to say is printed next, on a clean line."""
        self._part[name], self._quiet = 1.0, False
        self._running.pop(name, None)
        self.ended += 1
        self._line.clear()

    def _words(self) -> str:
        running = [
            f"{name}: {self._part[name]:.0%}" + ("" if loss is None else f", loss {loss:.3f}")
            for name, loss in self._running.items()
        ]
        left = f", {clock(self.left_s)} left" if self.done >= TOLD_FROM else ""
        return f"  [{self.ended}/{self.jobs}] {self.done:4.0%}{left} | " + " | ".join(running)
