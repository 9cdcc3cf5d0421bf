"""Kernel cases in processes of their own: one that fails, dies or hangs costs only itself."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

from benchmarks import kernel_processes


def prepare(case):
    """What a case of this name does, in its process."""
    if case.name == "fails":
        raise ValueError("no such shape\nand more")
    if case.name == "dies":
        os._exit(7)
    if case.name == "hangs":
        time.sleep(600)

    def measure():
        if case.name == "dies late":
            os.kill(os.getpid(), 9)
        if case.name == "hangs late":
            time.sleep(600)
        return {"process": os.getpid()}

    return measure


def measured(*names: str, within_s: float = 600, measuring_s: float = 600, processes: int = 4) -> dict:
    cases = [SimpleNamespace(name=name) for name in names]
    limit = time.perf_counter() + within_s
    found = kernel_processes.measured(cases, prepare, limit, processes, "cpu", measuring_s)
    return {case.name: what for case, what in found}


def test_a_case_costs_only_itself():
    found = measured("fails", "dies", "dies late", "right", "right too")
    assert list(found) == ["fails", "dies", "dies late", "right", "right too"]
    assert found["fails"].startswith("failed: ValueError: no such shape") and "\n" not in found["fails"]
    assert found["dies"] == "failed: its process ended with status 7"
    assert found["dies late"] == "failed: its process ended with status -9"
    assert len({os.getpid(), found["right"]["process"], found["right too"]["process"]}) == 3
    late = measured("hangs late", measuring_s=0.2)
    assert late == {"hangs late": "failed: no answer within 0 s"}


def test_nothing_goes_on_when_the_time_is_over():
    assert measured("hangs", within_s=0.2) == {"hangs": "not measured: not compiled when the time was over"}
    for processes in (0, 2):
        found = measured("right", "hangs", "dies", within_s=-1, processes=processes)
        assert set(found.values()) == {"not measured: no time was left"} and len(found) == 3


def test_without_processes_all_are_measured_here():
    assert measured("right", processes=0) == {"right": {"process": os.getpid()}}
