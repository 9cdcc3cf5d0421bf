"""Torch's own files, read without executing anything.

Such a file is a pickle, and unpickling calls what the file names. Here that is limited to tensors, plain containers and the
classes that the caller lists; a file that names anything else is refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import safe_globals

from recipe.errors import UserError, class_and_line


class Damaged(UserError):
    """Not such a file, or a torn one; nothing in it was dangerous."""


_NAMED = re.compile(r"GLOBAL ([\w.]+)|`?([\w.]+)`? was not an allowed global|Unsupported class ([\w.]+)")


def read_pickle(file: str | Path, what: str, classes: Sequence[Any] = (), map_location: str = "cpu") -> Any:
    """What is in a file of `torch.save`; `what` it should be is said where it is not.

    Raises:
        FileNotFoundError: no such file.
        UserError: a damaged file, or one that names a function or class which is not in `classes`.
    """
    try:
        with safe_globals(list(classes)):
            return torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise refusal(file, what, error) from None


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` by name.

    Raises:
        UserError: as `read_pickle`, or the file holds something else beside them.
    """
    found = read_pickle(file, "file of weights")
    if not isinstance(found, dict):
        raise UserError(
            f"{file}: holds a {type(found).__name__}, and not tensors by name; save the model's state_dict alone"
        )
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{file}: holds more than tensors (`{name}` is a {type(value).__name__}); save the model's state_dict alone"
            )
    return found


def refusal(file: str | Path, what: str, error: Exception) -> UserError:
    """One line for what torch said of a file; `Damaged`, if it is no more than that."""
    named = isinstance(error, pickle.UnpicklingError) and _NAMED.search(str(error))
    if named:
        return dangerous(file, what, next(filter(None, named.groups())))
    return Damaged(f"{file}: not a {what}, or damaged ({class_and_line(error)})")


def dangerous(file: str | Path, what: str, name: str) -> UserError:
    return UserError(f"{file}: names `{name}`, which no {what} needs; refused, because reading it could execute code")
