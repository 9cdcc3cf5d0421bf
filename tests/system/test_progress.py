"""The line of a preparation: what it says, on a terminal in place and in a log now and then."""

import pytest

from recipe.system import progress
from recipe.system.progress import BYTES, DOCUMENTS, LEFT_OUT, WEIGHT, Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def counted(documents=0, size=0, left_out=0, weight=0.0):
    values = [0.0] * 5
    values[DOCUMENTS], values[BYTES], values[LEFT_OUT], values[WEIGHT] = documents, size, left_out, weight
    return values


def test_a_run_that_goes_on_is_reckoned_by_its_own_speed(clock, capsys):
    line = Progress("train", parts=16, weight=1000.0, parts_before=4, weight_before=600.0)
    clock[0] += 20
    line.done, line.failed = 5, 1
    line.show(counted(12_345, 60_000_000, 3, weight=100.0), now=True)
    said = "train: 70%, 5/16 parts (4 before), 12,345 documents, 3 left out, 1 failed, 3.0 MB/s [00:20<01:00]\n"
    assert capsys.readouterr().err == said, "a quarter of this run's 400 took 20 s, so three more take 60"


def test_a_log_gets_few_lines(clock, capsys):
    line = Progress("train", parts=2, weight=100.0)
    for second in range(100):
        clock[0] = 100.0 + second
        line.show(counted(second, weight=second))
    line.done = 2
    line.close(counted(100, weight=100.0))
    lines = capsys.readouterr().err.splitlines()
    assert [text.split(" [")[1] for text in lines] == ["00:15<01:25]", "00:45<00:55]", "01:15<00:25]", "01:39<00:00]"]
    assert "\r" not in "".join(lines) and lines[-1].startswith("train: 100%, 2/2 parts, 100 documents, 0 left out, ")


def test_a_terminal_gets_one_line_that_fits(clock, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    line = Progress("train", parts=2, weight=100.0)
    for second in range(1, 3):
        clock[0] += 1
        line.show(counted(second))
    line.say("failed: a file")
    line.close(counted(2, weight=50.0))
    said = capsys.readouterr().err
    assert said.count("\n") == 2 and "\r\x1b[Kfailed: a file\n" in said
    shown = [text.removesuffix("\x1b[K\n").removesuffix("\x1b[K") for text in said.split("\r")[1:] if "train" in text]
    assert [text[:22] for text in shown] == ["train: 0%, 0/2 parts, "] * 2 + ["train: 50%, 0/2 parts,"]
    assert all(len(text) == 39 for text in shown)


def test_nothing_read_yet_promises_nothing(clock, capsys):
    Progress("hashes", parts=3, weight=3.0).close(counted())
    assert capsys.readouterr().err == "hashes: 0%, 0/3 parts, 0 documents, 0 left out, 0.0 MB/s [00:00<?]\n"
