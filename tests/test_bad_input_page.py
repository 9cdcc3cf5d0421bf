"""docs/bad-input.md is what the commands say today."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.bad_cases import CASES
from tests.bad_inputs import PAGE, as_code
from tests.processes import ROOT

LEAST = 120


def test_a_bad_input_gets_the_line_of_the_page(tmp_path):
    """Every sixth, in a process of its own, as a case may leave a library in any state."""
    command = [sys.executable, "-m", "tests.bad_inputs", str(tmp_path / "rows"), "some"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "120"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    rows, told = (tmp_path / "rows").read_text("utf-8").splitlines(), PAGE.read_text("utf-8").splitlines()
    assert len(rows) >= LEAST / 6 and [row for row in rows if row not in told] == []


def test_the_page_has_every_case_and_no_path_of_a_machine():
    page = PAGE.read_text("utf-8")
    cases = [f"| {what} | {as_code(words)} | " for cases in CASES.values() for what, words, _ in cases]
    assert len(cases) >= LEAST and [case for case in cases if page.count(f"\n{case}") < 1] == []
    assert f"\n{len(cases)} bad inputs" in page and page.count("\n| ") == len(cases) + len(CASES)
    assert not re.search(r"/(tmp|root|home|work|usr|var)/", page)
    lines = [line[len(case) :] for case in cases for line in page.splitlines() if line.startswith(case)]
    assert not [line for line in lines if "wJalr" in line] and any("***" in line for line in lines)
