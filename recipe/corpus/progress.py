"""How far a pass over the parts is.

    train: 41%, 7/16 parts (4 before), 41,203 documents, 3 left out, 1 failed, 9.4 MB/s [00:42<00:58]

Documents, and megabytes of their text, are what this run has read with all its processes, and the remaining time is reckoned
from its speed; the percentage counts what earlier runs have done as well.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from recipe.corpus import sources
from recipe.corpus.sources import Part, Position, Rejected
from recipe.system import processes
from recipe.system.progress import ProgressLine, clock, time_left


class PartsProgress:
    """The line of one pass. `weight` is what the work is measured in: bytes of files, where there are files."""

    def __init__(self, what: str, parts: int, weight: float, parts_before: int = 0, weight_before: float = 0.0) -> None:
        self.done, self.failed = parts_before, 0
        self._what, self._parts, self._weight = what, parts, weight
        self._parts_before, self._weight_before = parts_before, weight_before
        self._documents = self._bytes = self._left_out = self._worked = 0.0
        self._line = ProgressLine(sys.stderr, self._words)

    def watch(self, reports: Iterable[tuple[float, ...]]) -> None:
        """Add what `Tally` has reported."""
        for documents, size, left_out, weight in reports:
            self._documents += documents
            self._bytes += size
            self._left_out += left_out
            self._worked += weight
        self._line.show()

    def fail(self, error: Exception) -> None:
        """A part cannot be read, which does not end the others."""
        self.failed += 1
        self._line.say(f"failed: {error}")

    def close(self) -> None:
        self._line.close()

    def _words(self) -> str:
        seconds, to_do = self._line.seconds, self._weight - self._weight_before
        worked = min(self._worked, to_do)
        remaining = _clock(time_left(seconds, worked / to_do)) if worked else "?"
        return (
            f"{self._what}: {(self._weight_before + worked) / self._weight:.0%}, {self.done}/{self._parts} parts"
            f"{f' ({self._parts_before} before)' if self._parts_before else ''}, {self._documents:,.0f} documents, "
            f"{self._left_out:,.0f} left out{f', {self.failed} failed' if self.failed else ''}, "
            f"{self._bytes / 1e6 / seconds:.1f} MB/s [{_clock(seconds)}<{remaining}]"
        )


def _clock(seconds: float) -> str:
    return f"{clock(seconds):0>5}"


class Tally:
    """Reports what one worker does with one part, and ends the part if the run is to end."""

    def __init__(self, part: Part, rejected: Rejected, position: Position) -> None:
        self._weight, self._rejected, self._position = sources.weight(part), rejected, position
        self._share = self._left_out = 0.0

    def add(self, texts: list[str]) -> None:
        """These documents have been read and worked on."""
        self._add(len(texts), sum(map(len, map(str.encode, texts))), self._position.share())

    def finish(self) -> None:
        """The part is whole."""
        self._add(0, 0, 1.0)

    def _add(self, documents: int, size: int, share: float) -> None:
        left_out = self._rejected.counts.total()
        processes.report(documents, size, left_out - self._left_out, (share - self._share) * self._weight)
        self._share, self._left_out = share, left_out
        processes.end_if_stopped()
