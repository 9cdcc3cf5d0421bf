"""What ends a command in one line: a user's mistake, and what another library's exception said."""

from __future__ import annotations

import sys
from collections.abc import Callable

MOST = 400  # characters of another library's words: a YAML error with two places in it fits, a page of a proxy does not


class UserError(Exception):
    """One line that says what is wrong and what to do; entry points print it without a traceback and exit with 2."""


def one_line(error: object) -> str:
    """What another library's exception says, without line breaks and full stop, or its class if it says nothing."""
    return " ".join(str(error).split())[:MOST].rstrip(".") or type(error).__name__


def class_and_line(error: Exception) -> str:
    """The same with the class in front, for libraries whose words alone (`'vocab_size'`) do not tell what happened."""
    name, line = type(error).__name__, one_line(error)
    return line if line == name else f"{name}: {line}"


def say_error(text: object) -> None:
    """The one form in which a user is told what went wrong."""
    print(f"error: {text}", file=sys.stderr, flush=True)


def exit_status(action: Callable[[], object]) -> int:
    """Run `action`; 0, 2 for a user's mistake, said in one line, 130 for Ctrl-C."""
    try:
        action()
    except UserError as error:
        say_error(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
