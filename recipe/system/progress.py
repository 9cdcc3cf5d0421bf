"""How far a pass over the parts is, in one line: in place on a terminal, as a line now and then in a log.

    train: 41%, 7/16 parts (4 before), 41,203 documents, 3 left out, 1 failed, 9.4 MB/s [00:42<00:58]

Documents, and megabytes of their text, are what this run has read with all its processes, and the remaining time is reckoned
from its speed; the percentage counts what earlier runs have done as well.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

# What the workers count, and what tells them to give up.
DOCUMENTS, BYTES, LEFT_OUT, WEIGHT, STOP = range(5)
_EVERY_S, _LOG_EVERY_S = 0.5, 30.0


class Progress:
    """The line of one pass. `weight` is what the work is measured in: bytes of files, where there are files."""

    def __init__(self, what: str, parts: int, weight: float, parts_before: int = 0, weight_before: float = 0.0) -> None:
        self.done, self.failed = parts_before, 0
        self._what, self._parts, self._weight = what, parts, weight
        self._parts_before, self._weight_before = parts_before, weight_before
        self._terminal = sys.stderr.isatty()
        self._started = time.monotonic()
        self._shown = (
            self._started if self._terminal else self._started - _LOG_EVERY_S / 2
        )  # a log's first line comes soon

    def show(self, counted: Sequence[float], now: bool = False) -> None:
        """Bring the line up to date from what the workers have counted, if it is time, or `now`."""
        if now or time.monotonic() - self._shown >= (_EVERY_S if self._terminal else _LOG_EVERY_S):
            self._shown = time.monotonic()
            self._write(self._line(counted))

    def say(self, line: str) -> None:
        """Print a line that stays."""
        print(f"\r\x1b[K{line}" if self._terminal else line, file=sys.stderr, flush=True)

    def close(self, counted: Sequence[float]) -> None:
        """Leave the line as it is at the end."""
        self.show(counted, now=True)
        if self._terminal:
            print(file=sys.stderr)

    def _line(self, counted: Sequence[float]) -> str:
        seconds = max(time.monotonic() - self._started, 1e-3)
        worked = min(counted[WEIGHT], self._weight - self._weight_before)
        to_go = self._weight - self._weight_before - worked
        remaining = tqdm.format_interval(to_go * seconds / worked) if worked else "?"
        return (
            f"{self._what}: {(self._weight_before + worked) / self._weight:.0%}, {self.done}/{self._parts} parts"
            f"{f' ({self._parts_before} before)' if self._parts_before else ''}, {counted[DOCUMENTS]:,.0f} documents, "
            f"{counted[LEFT_OUT]:,.0f} left out{f', {self.failed} failed' if self.failed else ''}, "
            f"{counted[BYTES] / 1e6 / seconds:.1f} MB/s [{tqdm.format_interval(seconds)}<{remaining}]"
        )

    def _write(self, line: str) -> None:
        if self._terminal:
            sys.stderr.write(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K")
            sys.stderr.flush()
        else:
            print(line, file=sys.stderr, flush=True)
