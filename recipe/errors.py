"""What ends a command in one line: a user's mistake, and what another library's exception said."""

from __future__ import annotations

import errno
import os
import re
import select
import sys
from collections.abc import Callable
from typing import IO, NoReturn

from recipe.system.private import without_credentials

MOST = 400  # characters of another library's words: a YAML error with two places in it fits, a page of a proxy does not


LONGEST = 2000  # characters of one line
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+|[\ud800-\udfff]")  # and what no terminal can encode
# What the system says where nothing can be written: the disk or a quota is full, a file may not grow, a folder is closed.
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
_IN_WORDS = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")  # of libraries with exceptions of their own
_NO_MEMORY = re.compile(r"can't allocate memory|Cannot allocate memory|CUDA out of memory")
READER_GONE = 141  # what a shell says of a program that wrote into a closed pipe


class UserError(Exception):
    """One line that says what is wrong and what to do; entry points print it without a traceback and exit with 2.

    Whatever it is made of, it is one line of bounded length, without a terminal's commands and without a credential.
    """

    def __init__(self, line: str) -> None:
        line = _CONTROL.sub(" ", without_credentials(line))  # a file's words may hold any
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}")


class Stopped(Exception):
    """A command ended because it was told to, and can be continued; the line says how. Its exit status is 143."""


def one_line(error: object) -> str:
    """What another library's exception says, without line breaks and full stop, or its class if it says nothing."""
    return without_credentials(" ".join(str(error).split()))[:MOST].rstrip(".") or type(error).__name__


def class_and_line(error: Exception) -> str:
    """The same with the class in front, for libraries whose words alone (`'vocab_size'`) do not tell what happened."""
    name, line = type(error).__name__, one_line(error)
    return line if line == name else f"{name}: {line}"


def say_error(text: object) -> None:
    """The one form in which a user is told what went wrong."""
    print(f"error: {without_credentials(str(text))}", file=sys.stderr, flush=True)


def of_the_machine(error: Exception) -> str | None:
    """A disk or memory that gave out, in words with the remedy, whichever library says so; None for any other exception."""
    numbers = [int(number) for found in _IN_WORDS.findall(str(error)) for number in found if number]
    number = getattr(error, "errno", None) or next(iter(numbers), None)
    if number in UNWRITABLE:
        file = f"{error.filename}: " if getattr(error, "filename", None) else ""
        return f"{file}{os.strerror(number)}; make room or let it be written to, and the same command goes on"
    if number == errno.ENOMEM or isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return f"out of memory ({one_line(error)}); end what else uses it, or work with less at a time"
    return None


def exit_status(action: Callable[[], object]) -> int:
    """Run `action`; 0, 2 for a user's mistake or a machine that gave out, said in one line, 130 for Ctrl-C, 143 for an end that
    was asked for."""
    try:
        action()
    except UserError as error:
        say_error(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 143  # what a shell says of SIGTERM
    except Exception as error:
        if (line := of_the_machine(error)) is None:
            raise
        say_error(UserError(line))
        return 2
    return 0


def end(main: Callable[[], int | None]) -> NoReturn:
    """The end of every entry point: exit with what `main` returns; without a word where nobody reads the output any more, as
    behind `| head`."""
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _closed(sys.stdout):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes at its end
        status = READER_GONE
    sys.exit(status)


def _closed(stream: IO[str]) -> bool:
    """Whether it is the pipe that this stream writes into that nobody reads."""
    asked = select.poll()
    asked.register(stream.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in asked.poll(0))
