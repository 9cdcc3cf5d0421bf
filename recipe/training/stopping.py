"""A run that is told to end (SIGTERM, as a scheduler says before it takes a machine away) writes a checkpoint first.

Whichever ranks are told: after each batch they add up whether any was, with the numbers that they add up anyway
(`recipe.training.trainer`), so all write the same checkpoint and end.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from composer import Callback, Event, Logger, State
from composer.utils import create_interval_scheduler

from recipe.errors import Stopped

Saves = Callable[[State, Event], bool]


class Stopping(Callback):
    def __init__(self) -> None:
        self.asked = False  # this process
        self.agreed = False  # by all ranks, of the batch that is over
        self._before: Any = None  # what SIGTERM did

    def fit_start(self, state: State, logger: Logger) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def saves(self, usual: str | Saves) -> Saves:
        """When Composer writes a checkpoint: as usual, and before the end that was asked for."""
        scheduled = usual if callable(usual) else create_interval_scheduler(usual)
        return lambda state, event: (self.agreed and event == Event.BATCH_CHECKPOINT) or scheduled(state, event)

    def batch_start(self, state: State, logger: Logger) -> None:
        """Behind the checkpoint, which is written when a batch is over.

        Raises:
            Stopped: the end was asked for.
        """
        if self.agreed:
            raise Stopped(
                f"ended as asked for (SIGTERM) with a checkpoint at batch {state.timestamp.batch.value}; the same command "
                "continues with autoresume=true"
            )

    def close(self, state: State, logger: Logger) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None
