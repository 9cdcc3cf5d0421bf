"""What an object store has cost this process. A loader's workers hand theirs to the process that trains, with each batch;
what they fetched ahead when they are stopped is lost to the sum."""

from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass, field


@dataclass
class Network:
    seconds: float = 0.0  # of fetching, whoever waited for it; side by side, each counts
    retries: int = 0  # requests that were sent again
    bytes: int = 0  # of files that came


@dataclass
class _Tally:
    sum: Network = field(default_factory=Network)
    lock: threading.Lock = field(default_factory=threading.Lock)


@functools.lru_cache
def _of(process: int) -> _Tally:
    """A fork begins with nothing: what is there its parent counts."""
    return _Tally()


def add(spent: Network) -> None:
    tally = _of(os.getpid())
    with tally.lock:
        tally.sum.seconds += spent.seconds
        tally.sum.retries += spent.retries
        tally.sum.bytes += spent.bytes


def take() -> Network:
    """All since the last time."""
    tally = _of(os.getpid())
    with tally.lock:
        taken, tally.sum = tally.sum, Network()
    return taken
