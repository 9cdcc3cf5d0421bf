"""Worker processes that neither fork a threaded parent nor outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

# a fork would copy locks that threads of the parent (tokenizers, pyarrow) may hold at that moment
CONTEXT = multiprocessing.get_context("spawn")


def resolve(processes: int) -> int:
    """A configured number of processes, where 0 stands for one a core that this process may use."""
    return processes or len(os.sched_getaffinity(0))


def worker_pool(processes: int, share: Callable[..., None] | None = None, shared: tuple[Any, ...] = ()) -> Executor:
    """An executor of spawned processes, or of one thread of this process; `share(*shared)` runs first in each worker.

    With more than one process the main module must be importable without side effects (`if __name__ == "__main__"`).
    """
    if processes == 1:
        return ThreadPoolExecutor(1, initializer=share, initargs=shared)
    pool = ProcessPoolExecutor(processes, mp_context=CONTEXT, initializer=_start, initargs=(share, shared))
    # Ctrl-C reaches the whole group, and the parent ends the work in order. A process inherits what is blocked when it starts,
    # and would otherwise be interrupted while it still imports; what comes meanwhile, the parent receives right after.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        pool.submit(int)  # which starts all of them
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pool


def _start(share: Callable[..., None] | None, shared: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if share:
        share(*shared)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
