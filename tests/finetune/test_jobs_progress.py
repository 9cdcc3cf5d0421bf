"""The words of a fine-tuning's line, and what is left of it."""

import io

import pytest

from recipe.finetune.progress import JobsProgress
from recipe.system import progress


@pytest.fixture
def now(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_jobs_that_run_are_said_and_those_before_counted(now):
    log = io.StringIO()
    found = JobsProgress({"MNLI, seed 19": 300.0, "RTE, seed 19": 100.0}, before=2, stream=log)

    def line():
        now[0] += 30
        found.report("RTE, seed 19", 0.25, None)
        return log.getvalue().splitlines()[-1]

    found.report("MNLI, seed 19", 0.5, 1.25)
    assert line() == "  [2/4]  44%, 0:39 left | MNLI, seed 19: 50%, loss 1.250 | RTE, seed 19: 25%"
    found.end("MNLI, seed 19")
    assert found.ended == 3 and line() == "  [3/4]  81%, 0:14 left | RTE, seed 19: 25%"


def test_the_start_of_the_processes_is_no_measure(now):
    found = JobsProgress({"A": 3.0, "B": 1.0}, stream=io.StringIO())
    now[0] = 50.0
    found.report("A", 0.01, 0.7)  # a second after it began
    assert found.left_s == pytest.approx(1 / (0.01 * 3 / 4) - 1)
    now[0] = 149.0
    found.end("A")
    assert found.left_s == pytest.approx(100 * (4 / 3 - 1))
    assert JobsProgress({}, before=3, stream=io.StringIO()).left_s == 0


def test_little_done_is_no_measure(now):
    log = io.StringIO()
    found = JobsProgress({"A": 1.0}, stream=log)
    now[0] = 20.0
    found.report("A", 0.04, 0.7)
    assert log.getvalue() == "  [0/1]   4% | A: 4%, loss 0.700\n"
