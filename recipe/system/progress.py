"""How far the work is, in one line: drawn anew in place on a terminal, printed now and then in a log. Whose work it is gives the
words."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

EVERY_S, LOG_EVERY_S = 0.5, 30.0  # between two drawings on a terminal, between two lines in a log
_CLEAR, _NEVER = "\r\x1b[K", float("-inf")


class ProgressLine:
    def __init__(self, stream: TextIO, words: Callable[[], str]) -> None:
        """`words` says how far the work is now."""
        self._stream, self._words = stream, words
        self._terminal = stream.isatty()
        self._started = time.monotonic()
        # a terminal's first line comes at once, a log's soon
        self._shown = _NEVER if self._terminal else self._started - LOG_EVERY_S / 2

    @property
    def seconds(self) -> float:
        """Since the line was made; never 0."""
        return max(time.monotonic() - self._started, 1e-3)

    def show(self, now: bool = False) -> None:
        """Bring the line up to date, if it is time, or `now`."""
        if now or time.monotonic() - self._shown >= (EVERY_S if self._terminal else LOG_EVERY_S):
            self._shown = time.monotonic()
            line = self._words()
            self._write(line[: shutil.get_terminal_size().columns - 1] if self._terminal else f"{line}\n")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._write(f"{text}\n")

    def clear(self) -> None:
        """Leave the place to what is printed next; in a log that is a line too, and the next one has time."""
        self._shown = _NEVER if self._terminal else time.monotonic()
        if self._terminal:
            self._write("")

    def close(self) -> None:
        """Leave the line as it is at the end."""
        self.show(now=True)
        if self._terminal:
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(f"{_CLEAR}{text}" if self._terminal else text)
        self._stream.flush()


def time_left(seconds: float, done: float) -> float:
    """Seconds until all is done, after `seconds` for the share `done` (0..1); 0, where nothing is done to reckon from."""
    return seconds * (1 - done) / done if done else 0.0


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour; an estimate below 0 is 0:00."""
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
