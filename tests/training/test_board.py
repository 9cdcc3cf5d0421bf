"""The progress of many jobs, in a terminal and elsewhere."""

import io

from recipe.finetune import board
from recipe.finetune.board import Board
from recipe.training.callbacks import clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_one_line_that_is_drawn_anew(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    screen = Terminal()
    found = Board({"MNLI, seed 19": 300.0, "RTE, seed 19": 100.0}, before=2, stream=screen)
    found.report("MNLI, seed 19", 0.5, 1.25)
    assert (
        screen.getvalue().startswith("\r\x1b[K  [2/4]  38%, ") and "MNLI, seed 19: 50%, loss 1.250" in screen.getvalue()
    )
    found.report("RTE, seed 19", 0.25, None)
    lines = screen.getvalue().split("\r\x1b[K")[1:]
    assert len(lines) == 2 and "left" in lines[0] and "\n" not in screen.getvalue()
    assert all(len(line) < 60 for line in lines)  # never wrapped, which would leave half of it standing
    assert "44%" in lines[1]
    found.end("MNLI, seed 19")
    assert screen.getvalue().endswith("\r\x1b[K") and found.ended == 3
    found.report("RTE, seed 19", 0.5, 0.5)
    last = screen.getvalue().split("\r\x1b[K")[-1]
    assert last.startswith("  [3/4]  88%, ") and "MNLI" not in last


def test_elsewhere_a_line_is_said_now_and_then(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(board.time, "perf_counter", lambda: now[0])
    file = io.StringIO()
    found = Board({"A": 3.0, "B": 1.0}, stream=file)
    for second in range(1, 101):
        now[0] = float(second)
        found.report("A", second / 200, 0.7)
    lines = file.getvalue().splitlines()
    assert len(lines) == 3 and "\x1b" not in file.getvalue() and "\r" not in file.getvalue()
    # 31 of 200 parts of three quarters of the work took 31 s
    assert lines[0] == "  [0/2]  12%, 3:56 left | A: 16%, loss 0.700"
    found.end("A")
    assert found.left_s == 100 * (4 / 3 - 1) and Board({}, before=3, stream=file).left_s == 0


def test_a_clock_never_shows_less_than_nothing():
    seconds = (-3601.0, -0.4, 0.0, 59.6, 61.0, 3599.5, 7325.0)
    assert [clock(s) for s in seconds] == ["0:00", "0:00", "0:00", "1:00", "1:01", "1:00:00", "2:02:05"]
