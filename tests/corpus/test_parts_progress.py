"""The words of a preparation's line."""

import pytest

from recipe.corpus.progress import PartsProgress
from recipe.system import progress


@pytest.fixture
def now(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_run_that_goes_on_is_reckoned_by_its_own_speed(now, capsys):
    found = PartsProgress("train", parts=16, weight=1000.0, parts_before=4, weight_before=600.0)
    now[0] += 10
    found.watch([(345, 20_000_000, 3, 30.0), (12_000, 40_000_000, 0, 70.0)])
    now[0] += 10
    found.done, found.failed = 5, 1
    found.close()
    said = "train: 70%, 5/16 parts (4 before), 12,345 documents, 3 left out, 1 failed, 3.0 MB/s [00:20<01:00]\n"
    assert capsys.readouterr().err == said, "a quarter of this run's 400 took 20 s, so three more take 60"


def test_a_part_that_fails_is_a_line_that_stays(now, capsys):
    found = PartsProgress("train", parts=2, weight=100.0)
    found.fail(OSError("a file"))
    found.done = 1
    now[0] += 3661
    found.watch([(1, 0, 0, 50.0)])
    assert capsys.readouterr().err == (
        "failed: a file\ntrain: 50%, 1/2 parts, 1 documents, 0 left out, 1 failed, 0.0 MB/s [1:01:01<1:01:01]\n"
    )


def test_nothing_read_yet_promises_nothing(now, capsys):
    PartsProgress("hashes", parts=3, weight=3.0).close()
    assert capsys.readouterr().err == "hashes: 0%, 0/3 parts, 0 documents, 0 left out, 0.0 MB/s [00:00<?]\n"
