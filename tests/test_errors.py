"""One line for whatever ends a command, and one place that makes it."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipe import pareto, plan
from recipe.errors import MOST, READER_GONE, UserError, class_and_line, end, exit_status, one_line

ROOT = Path(__file__).resolve().parents[1]


def test_what_a_library_says_becomes_one_line():
    assert one_line(OSError("no route\n  to host.")) == "no route to host"
    assert one_line(ValueError()) == "ValueError" == class_and_line(ValueError("\n"))
    assert class_and_line(KeyError("vocab_size")) == "KeyError: 'vocab_size'"
    assert len(one_line(RuntimeError("a page " * 1000))) == MOST


def test_the_status_says_how_it_ended(capsys):
    def mistake():
        raise UserError("out=x holds a run already")

    def interrupt():
        raise KeyboardInterrupt

    assert [exit_status(action) for action in (list, mistake, interrupt)] == [0, 2, 130]
    assert capsys.readouterr() == ("", "error: out=x holds a run already\ninterrupted\n")
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/run.json"), "out/run.json: No space left on device; make room or"),
        (PermissionError(errno.EACCES, "Permission denied", "out/jobs"), "out/jobs: Permission denied; make room or"),
        (OSError(errno.EFBIG, "File too large"), "File too large; make room or"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "No space left on device; make room or"),
        (MemoryError(), "out of memory (MemoryError); end what"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out of memory (DefaultCPUAllocator: can't"),
        (OSError(errno.ENOENT, "No such file or directory", "x"), None),
        (RuntimeError("[Errno 2] No such file or directory"), None),
        (RuntimeError("shapes differ"), None),
    ],
)  # fmt: skip
def test_a_disk_or_a_memory_that_gives_out_is_a_line_whoever_says_it(error, line, capsys):
    def fail():
        raise error

    if line is None:
        with pytest.raises(type(error)):
            exit_status(fail)
        return
    assert exit_status(fail) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {line}") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "words"), [(plan, ["--gpu", "h200", "--budget-usd", "20"]), (pareto, ["plot", "runs"])]
)
def test_every_command_can_be_interrupted(command, words, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "draw" if command is pareto else "recorded", interrupt)
    assert command.main(words) == 130 and capsys.readouterr().err == "interrupted\n"


def test_nothing_makes_such_a_line_by_hand():
    by_hand = re.compile(r"str\((error|exception|e)\)\.split\(\)|f\"error: ")
    files = [file for folder in ("recipe", "benchmarks") for file in (ROOT / folder).rglob("*.py")]
    assert [file.name for file in files if by_hand.search(file.read_text("utf-8"))] == ["errors.py"]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_behind_head_a_command_ends_without_a_word(unbuffered):
    """What it prints is left in the pipe's buffer or not: either way nobody reads it."""
    many = "from recipe.errors import end; end(lambda: [print('x' * 99) for _ in range(9999)] and 0)"
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    for words in (["-m", "recipe"], ["-c", many]):
        read, write = os.pipe()
        command = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=write, stderr=subprocess.PIPE, text=True
        )
        os.close(write)
        os.close(read)
        assert (command.communicate(timeout=60)[1], command.returncode) == ("", READER_GONE), words


def test_another_pipe_that_breaks_is_no_end_of_the_output(capfd):
    def other():
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        end(other)


def test_every_entry_point_ends_so():
    starts = re.compile(r'^if __name__ == "__main__":\n((?:    .*\n)+)', re.M)
    ends = {}
    for folder in ("recipe", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            if found := starts.search(file.read_text("utf-8")):
                ends[file.relative_to(ROOT).as_posix()] = found[1].splitlines()[-1]
    assert len(ends) > 20 and [name for name, line in ends.items() if not line.startswith("    end(")] == []
