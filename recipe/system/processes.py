"""The one pool: processes that neither fork a threaded parent nor outlive it, whom a Ctrl-C reaches through the pool alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

from recipe.errors import UserError

LOOK_S = 0.5  # at least so often the parent looks at what has been reported

Report = tuple[Any, ...]


def resolve(processes: int) -> int:
    """A configured number of processes, where 0 stands for one a core that this process may use."""
    return processes or len(os.sched_getaffinity(0))


class WorkerPool:
    """Spawned processes, or one thread of this process, that do jobs side by side; a context manager.

    When an exception leaves its block, the work in progress is given up: a process ends at once, a thread at its next
    `end_if_stopped`. With more than one process the main module must be importable without side effects
    (`if __name__ == "__main__"`).

    Raises:
        UserError: a process was killed.
    """

    def __init__(
        self, processes: int, begin: Callable[..., object] | None = None, shared: tuple[Any, ...] = ()
    ) -> None:
        """`begin(*shared)` runs first in each worker."""
        self._processes = processes
        # a fork would copy locks that threads of the parent (tokenizers, pyarrow) may hold at that moment
        context = multiprocessing.get_context("spawn")
        # A pipe for each, as a process that is killed may take a shared queue's lock with it. What is reported is far shorter
        # than what a pipe takes in one piece, so nobody leaves half of a report either.
        self._readers, writers = zip(*(context.Pipe(duplex=False) for _ in range(processes)), strict=True)
        ended, self._end = context.Pipe(duplex=False)  # closes with the pool, and with the process that has it
        numbers = (context if processes > 1 else queue).SimpleQueue()
        for number in range(processes):
            numbers.put(number)
        arguments = (numbers, writers, ended, begin, shared)
        self._executor: futures.Executor = (
            futures.ProcessPoolExecutor(processes, context, _start_process, arguments)
            if processes > 1
            else futures.ThreadPoolExecutor(1, initializer=_start, initargs=arguments)
        )

    def run(
        self,
        action: Callable[[Any], Any],
        jobs: Sequence[Any],
        after: Mapping[int, int] | None = None,
        watch: Callable[[list[Report]], object] = lambda reports: None,
    ) -> Iterator[tuple[int, futures.Future]]:
        """`action` with each job; yields a job's place in `jobs` and its future, as they end.

        Args:
            after: a job's place -> the place of the one that must have ended before it begins.
            watch: called at least every `LOOK_S` with what the workers have reported since, and once more before an end is
                yielded, so that it has all that was reported by then.
        """
        after = after or {}
        running = {self._submit(action, job): place for place, job in enumerate(jobs) if place not in after}
        while running:
            done = futures.wait(running, LOOK_S, futures.FIRST_COMPLETED).done
            watch(list(self._reported()))
            for future in done:
                place = running.pop(future)
                yield place, future
                heirs = [heir for heir, first in after.items() if first == place]
                running |= {self._submit(action, jobs[heir]): heir for heir in heirs}

    def map(self, action: Callable[[Any], Any], jobs: Iterable[Any], chunk: int) -> list[Any]:
        """The results of many small jobs that report nothing, in the jobs' order; `chunk` of them are handed out at a time."""
        with _uninterrupted():
            results = self._executor.map(action, jobs, chunksize=chunk)
        return list(results)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._end.close()
        self._executor.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a process of the pool was killed, most likely for want of memory; run it again with "
                f"processes={self._processes - 1}: it continues with what is missing"
            ) from None

    def _submit(self, action: Callable[[Any], Any], job: Any) -> futures.Future:
        with _uninterrupted():
            return self._executor.submit(action, job)

    def _reported(self) -> Iterator[Report]:
        while ready := connection.wait(self._readers, 0):
            yield from (reader.recv() for reader in ready)


class Stopped(Exception):
    """The pool of this job has ended before it."""


_here = (
    threading.local()
)  # of a worker: its number in the pool, its end of the pipe of reports, the pipe that tells the end


def number() -> int:
    """Of this worker in its pool, from 0; which GPU it takes, for example."""
    return _here.number


def report(*words: Any) -> None:
    """Tell the pool's `watch` something short from within a job."""
    _here.writer.send(words)


def end_if_stopped() -> None:
    """For long jobs to call now and then, because a thread cannot be ended from outside."""
    if _here.ended.poll():
        raise Stopped


def _start(
    numbers: Any, writers: Sequence[Connection], ended: Connection, begin: Callable[..., object] | None, shared: tuple
) -> None:
    _here.number = numbers.get()
    _here.writer, _here.ended = writers[_here.number], ended
    if begin:
        begin(*shared)


def _start_process(*arguments: Any) -> None:
    threading.Thread(target=_end_with_pool, args=(arguments[2],), daemon=True).start()
    _start(*arguments)


def _end_with_pool(ended: Connection) -> None:
    connection.wait([ended])
    os._exit(1)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A process inherits what is blocked when it starts, so one that starts in here never sees the Ctrl-C that reaches the whole
    group, not even while it still imports: the parent, which receives it right after, ends the work in order."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
