"""Who no longer answers. While ranks train, each says in the store that they met at that it lives, and how often it has come to
where they wait for each other; one that ends because of another says because of which.

Collective operations say only that somebody did not come, and the neighbours of whoever hangs are told of their own neighbours.
No clock is compared with another machine's.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from composer.utils import dist
from torch.distributed import distributed_c10d

from recipe.training import nodes

_BEAT_S = 0.5
_LOOK_S = 3.0  # between two looks at the others: who lives has said so again
_STORE_S = 3.0  # for the store to answer
_STORE_GONE = ["rank 0 or its machine"]  # which keeps the store


@dataclass(frozen=True)
class _Word:
    beats: int
    met: int  # times that it has come to where all wait for all
    machine: int
    lost: list[str]  # because of whom it ends

    def __str__(self) -> str:
        return json.dumps([self.beats, self.met, self.machine, self.lost])


class Pulse:
    """Of this rank."""

    def __init__(self, store: Any, rank: int, ranks: int, machine: int) -> None:
        self.met = 0
        self._mouth, self._eye = store.clone(), store.clone()  # a thread of its own each
        self._rank, self._ranks, self._machine = rank, ranks, machine
        self._beats, self._lost = 0, []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def start(self) -> None:
        self.say()
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(_BEAT_S)

    def say(self) -> None:
        self._beats += 1
        self._mouth.set(f"pulse/{self._rank}", str(_Word(self._beats, self.met, self._machine, self._lost)))

    def _beat(self) -> None:
        with suppress(RuntimeError):  # the store has ended
            while not self._over.wait(_BEAT_S):
                self.say()

    def lost(self) -> list[str]:
        """The ranks that do not live any more, or else those that are behind all others; empty if there are none."""
        if not _listens(self._eye):
            return _STORE_GONE
        found: list[list[str]] = []
        look = threading.Thread(target=lambda: found.append(self._look()), daemon=True)
        look.start()
        look.join(_LOOK_S + _STORE_S)  # a store that is stopped takes what is asked, and never answers
        self._lost = found[0] if found else _STORE_GONE
        return self._lost

    def _look(self) -> list[str]:
        try:
            before = self._words()
            time.sleep(_LOOK_S)
            now = self._words()
            for word in now.values():
                if word.lost:
                    return word.lost
            silent = [rank for rank, word in now.items() if rank in before and word.beats == before[rank].beats]
            least = min([self.met, *(word.met for word in now.values())])
            behind = [rank for rank, word in now.items() if word.met == least < self.met]
            self._lost = [f"rank {rank} on machine {now[rank].machine}" for rank in silent or behind]
            self.say()
            return self._lost
        except RuntimeError:
            return _STORE_GONE

    def _words(self) -> dict[int, _Word]:
        """The others' last ones."""
        keys = {rank: f"pulse/{rank}" for rank in range(self._ranks) if rank != self._rank}
        return {rank: _Word(*json.loads(self._eye.get(key))) for rank, key in keys.items() if self._eye.check([key])}


def _listens(store: Any) -> bool:
    """Asked by hand, as torch's client prints its own stack where nobody does."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    try:
        socket.create_connection((store.host, store.port), _STORE_S).close()
    except OSError:
        return False
    return True


_pulse: Pulse | None = None  # while ranks train


def met() -> None:
    """This rank has come to where all wait for all."""
    if _pulse:
        _pulse.met += 1


@contextmanager
def watched() -> Iterator[None]:
    """Within it, a rank that is gone or hangs is one line of each other that names it."""
    global _pulse
    if dist.get_world_size() == 1:
        yield
        return
    store, rank, ranks = distributed_c10d._get_default_store(), dist.get_global_rank(), dist.get_world_size()
    _pulse = Pulse(store, rank, ranks, dist.get_node_rank())
    _pulse.start()
    try:
        with nodes.all_ranks(_pulse.lost):
            yield
    finally:
        if _pulse._lost and rank == 0 and ranks > 2:
            time.sleep(_LOOK_S)  # with it ends the store, which others still look into
        _pulse.stop()
        _pulse = None
