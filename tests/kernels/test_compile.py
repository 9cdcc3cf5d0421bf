"""Every Triton kernel compiles for every supported GPU: nothing spills, shared memory fits, tl.dot runs on tensor cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import aot

ROOT = Path(__file__).resolve().parents[2]
PARTS = sorted(aot.groups())


def measured(group: str) -> dict:
    """The group's figures, compiled now, by a process that does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.aot", "--print", group]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def faults(case: aot.Case, target: str, figures: dict) -> list[str]:
    capability = int(target.removeprefix("sm_"))
    found = []
    if figures["stack"] or figures["spills"]:
        found.append(f"{figures['stack']} bytes of stack, {figures['spills']} spill instructions")
    if figures["shared"] > aot.SHARED_LIMIT[capability]:
        found.append(f"{figures['shared']} bytes of shared memory, the GPU has {aot.SHARED_LIMIT[capability]}")
    if figures.get("tensor_memory", 0) > aot.TENSOR_MEMORY_LIMIT:
        found.append(f"{figures['tensor_memory']} columns of tensor memory, the GPU has {aot.TENSOR_MEMORY_LIMIT}")
    expected = {aot.TENSOR_CORES[capability]} if case.fast else set(aot.TENSOR_CORES.values())
    if case.dot and figures["tensor_cores"] not in expected:
        found.append(f"tl.dot became {figures['tensor_cores']}, expected {' or '.join(sorted(expected))}")
    return [f"{case.name} on {target}: {fault}" for fault in found]


@pytest.mark.parametrize("group", PARTS)
def test_compiled_figures(group):
    now = measured(group)
    cases = {case.name: case for case in aot.groups()[group]}
    assert list(now) == list(cases)
    broken = [
        f for name, row in now.items() for target, figures in row.items() for f in faults(cases[name], target, figures)
    ]
    assert broken == []
    if not aot.is_the_locks_triton():
        return  # faults are faults on every version, but the table's figures are one version's
    table = json.loads(aot.TABLE.read_text())
    moved = [
        f"{name} on {target}: {key} {table.get(name, {}).get(target, {}).get(key, 'not in the table')} -> {value}"
        for name, row in now.items()
        for target, figures in row.items()
        for key, value in figures.items()
        if table.get(name, {}).get(target, {}).get(key, "absent") != value
    ]
    assert moved == [], "renew the table with `python -m tests.kernels.aot`, and say in the commit why figures moved"


def test_the_table_has_no_other_rows():
    names = {case.name for cases in aot.groups().values() for case in cases}
    assert set(json.loads(aot.TABLE.read_text())) == names
