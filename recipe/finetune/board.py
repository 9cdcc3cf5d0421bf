"""What all jobs of a fine-tuning are doing: in a terminal one line that is drawn anew, elsewhere a line now and then."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Mapping
from typing import TextIO

from recipe.training.callbacks import clock

EVERY_S = 30.0  # between two lines where nothing can be drawn anew
FIRST_S = 1.0  # after its start a job reports for the first time
TOLD_FROM = 0.05  # of the work: what is left before is a guess


class Board:
    """`report` may be called from another thread than the rest."""

    def __init__(self, work: Mapping[str, float], before: int = 0, stream: TextIO | None = None) -> None:
        """
        Args:
            work: of each job that is to be done, by its name, how much of all the work it is, in any unit.
            before: jobs that were done before, which are counted and take no time.
        """
        self.stream = stream or sys.stdout
        self.work = dict(work)
        self.jobs = before + len(work)
        self.ended = before
        self._part = dict.fromkeys(work, 0.0)  # 0..1 of each job
        self._running: dict[str, float | None] = {}  # name: loss
        self._started = self._said = time.perf_counter()
        self._quiet = True  # until a job runs: the start of a pool's processes is no measure of theirs
        self._lock = threading.Lock()
        self._drawn = self.stream.isatty()

    @property
    def left_s(self) -> float:
        """Seconds until all jobs are done, if they go on as fast as so far."""
        done = sum(self.work[name] * part for name, part in self._part.items())
        passed = time.perf_counter() - self._started
        return passed * (sum(self.work.values()) / done - 1) if done else 0.0

    def report(self, name: str, part: float, loss: float | None) -> None:
        """`part`, 0..1, of a job is done, and its loss is now `loss`."""
        with self._lock:
            self._part[name], self._running[name] = part, loss
            now = time.perf_counter()
            if self._quiet:
                self._started, self._quiet = max(self._started, now - FIRST_S), False
            if self._drawn:
                columns = shutil.get_terminal_size().columns
                self.stream.write(f"\r\x1b[K{self._line()[: columns - 1]}")
            elif now - self._said > EVERY_S:
                self._said = now
                self.stream.write(self._line() + "\n")
            self.stream.flush()

    def end(self, name: str) -> None:
        """The job is done, well or not; what it has to say is printed next, on a clean line."""
        with self._lock:
            self._part[name], self._quiet = 1.0, False
            self._running.pop(name, None)
            self.ended += 1
            self._said = time.perf_counter()
            if self._drawn:
                self.stream.write("\r\x1b[K")
                self.stream.flush()

    def _line(self) -> str:
        total = sum(self.work.values())
        done = sum(self.work[name] * part for name, part in self._part.items()) / total if total else 1.0
        running = [
            f"{name}: {self._part[name]:.0%}" + ("" if loss is None else f", loss {loss:.3f}")
            for name, loss in self._running.items()
        ]
        left = f", {clock(self.left_s)} left" if done >= TOLD_FROM else ""
        return f"  [{self.ended}/{self.jobs}] {done:4.0%}{left} | " + " | ".join(running)
