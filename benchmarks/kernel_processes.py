"""The cases of `benchmarks.kernels`, one after another in this process, or each in a process of its own.

Compiling a case's rivals takes many times as long as measuring them. With processes, several cases compile at once; then all
wait, and one at a time measures. A case that dies or hangs, or leaves its CUDA context broken, costs only itself.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from benchmarks import throughput_memory
from benchmarks.kernel_cases import Case
from recipe.errors import class_and_line

Measure = Callable[[], Any]
Prepare = Callable[[Case], Measure]  # compiles and warms up; what it returns measures
FREE_SHARE = 0.9  # of what is free that the tensors of all cases may take together
NOT_MEASURED = "not measured"  # begins a reason that is no fault of the case


def measured(
    cases: list[Case], prepare: Prepare, limit: float, processes: int, device: str, measuring_s: float
) -> Iterator[tuple[Case, Any | str]]:
    """Each case with what was measured of it, or why nothing was; none is begun after `limit`, a time of `perf_counter`, and a
    process may take `measuring_s` once it is ready."""
    step = max(1, processes)
    for first in range(0, len(cases), step):
        now = cases[first : first + step]
        if time.perf_counter() > limit:
            yield from ((case, f"{NOT_MEASURED}: no time was left") for case in now)
        elif processes:
            yield from _at_once(now, prepare, limit, device, measuring_s)
        else:
            yield now[0], prepare(now[0])()


def _at_once(
    cases: list[Case], prepare: Prepare, limit: float, device: str, measuring_s: float
) -> Iterator[tuple[Case, Any | str]]:
    """The cases compile together, at the longest until `limit`; then those that are ready are measured, in their order."""
    context = multiprocessing.get_context("forkserver")  # imports torch once for all; nothing there touches the GPU
    context.set_forkserver_preload(["benchmarks.kernel_processes"])
    share = None
    if device == "cuda":
        free, total = throughput_memory.free_bytes()
        share = FREE_SHARE * free / total / len(cases)
    children: dict[Connection, Any] = {}
    for case in cases:
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(theirs, case, prepare, share))
        child.start()
        theirs.close()
        children[ours] = child
    try:  # they are no daemons, because torch's compiler may want processes of its own
        yield from _measured_in_turn(cases, children, limit, measuring_s)
    finally:
        for child in children.values():
            child.kill()


def _measured_in_turn(
    cases: list[Case], children: dict[Connection, Any], limit: float, measuring_s: float
) -> Iterator[tuple[Case, Any | str]]:
    waiting, problems = list(children), {}
    while waiting and (found := wait(waiting, max(0.0, limit - time.perf_counter()))):
        for one in found:
            waiting.remove(one)
            if problem := _said(one, children[one]):
                problems[one] = problem
    for one in waiting:
        children[one].kill()  # or it would go on compiling while others are measured
        problems[one] = f"{NOT_MEASURED}: not compiled when the time was over"
    for case, (one, child) in zip(cases, children.items(), strict=True):
        yield case, problems[one] if one in problems else _result(one, child, measuring_s)
        child.kill()
        child.join()
        one.close()


def _result(connection: Connection, child: Any, measuring_s: float) -> Any | str:
    try:
        connection.send("now")
    except OSError:
        return _said(connection, child)
    if not connection.poll(measuring_s):
        return f"failed: no answer within {measuring_s:.0f} s"
    return _said(connection, child)


def _said(connection: Connection, child: Any) -> Any | str:
    try:
        return connection.recv()
    except (EOFError, OSError):
        child.join()
        return f"failed: its process ended with status {child.exitcode}"


def _child(connection: Connection, case: Case, prepare: Prepare, memory_share: float | None) -> None:
    """Says None once it is ready, then, when it is told to, what it measured; or at either time what is wrong."""
    try:
        if memory_share:
            torch.cuda.set_per_process_memory_fraction(memory_share)
        measure = prepare(case)
        connection.send(None)
        connection.recv()
        connection.send(measure())
    except Exception as error:  # a line in the table, not the end of the run
        connection.send(f"failed: {class_and_line(error)}")
