"""The one line of progress: on a terminal in place, in a log now and then."""

import io

import pytest

from recipe.system import progress
from recipe.system.progress import ProgressLine, clock, time_left


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_soon_and_then_few(now):
    log = io.StringIO()
    line = ProgressLine(log, lambda: f"{line.seconds:.0f} s")
    for second in range(70):
        now[0] = 100.0 + second
        line.show()
    assert log.getvalue() == "15 s\n45 s\n"
    line.say("stays")
    line.clear()  # something else is printed instead
    for second in range(70, 110):
        now[0] = 100.0 + second
        line.show()
    line.close()
    assert log.getvalue() == "15 s\n45 s\nstays\n99 s\n109 s\n"


def test_a_terminal_has_one_line_that_is_drawn_anew_and_never_wraps(now, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    screen = Terminal()
    line = ProgressLine(screen, lambda: f"{line.seconds:.1f} s of a long line of words")
    for tenth in range(12):
        now[0] = 100.0 + tenth / 10
        line.show()
    shown = screen.getvalue().split("\r\x1b[K")
    assert shown == ["", "0.0 s of a long lin", "0.5 s of a long lin", "1.0 s of a long lin"]
    line.say("stays")
    line.clear()
    screen.write("what the caller prints\n")
    line.show()  # at once, as the place was left
    line.close()
    shown = screen.getvalue().split("\r\x1b[K")[4:]
    assert shown == ["stays\n", "what the caller prints\n", "1.1 s of a long lin", "1.1 s of a long lin\n"]


def test_the_time_left_is_reckoned_by_the_speed_so_far():
    assert [time_left(20, done) for done in (0.0, 0.25, 1.0)] == [0.0, 60.0, 0.0]


def test_a_clock_never_shows_less_than_nothing():
    seconds = (-3601.0, -0.4, 0.0, 59.6, 61.0, 3599.5, 7325.0)
    assert [clock(s) for s in seconds] == ["0:00", "0:00", "0:00", "1:00", "1:01", "1:00:00", "2:02:05"]
