"""Damaged copies of every kind of file: each is read, or refused in one line; nothing crashes, hangs or fills the memory.

`FUZZ_EXAMPLES=10000` tries as many of each kind; the inputs follow from their number alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.readers import TABLE

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", 200))
# Of the processes that read: one thread each, and no allocator that reserves addresses by the gigabyte, as memory is limited.
QUIET = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "ARROW_DEFAULT_MEMORY_POOL": "system",
         "MALLOC_ARENA_MAX": "2"}  # fmt: skip


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("fuzz") / "reports"
    command = [sys.executable, "-m", "tests.fuzz.worker", str(out), str(EXAMPLES)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | QUIET, capture_output=True, text=True, timeout=500 + EXAMPLES
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {report["reader"]: report for report in map(json.loads, out.read_text().splitlines())}


@pytest.mark.parametrize("name", TABLE)
def test_a_damaged_file_is_read_or_refused_in_a_line(reports, name):
    report = reports[name]
    assert report["failed"] is None, report["failed"]
    assert report.get("read", 0) + report.get("refused", 0) >= EXAMPLES * 0.9
