"""Composer's checkpoints, read without executing anything: the one place that opens a `.pt` file.

A checkpoint is a pickle, and unpickling calls what the file names. Here that is limited to tensors, plain containers and the few
classes that hold clocks, versions and random states; a file that names anything else is refused.
"""

from __future__ import annotations

import datetime
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import composer.utils.checkpoint
import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals
from torch.torch_version import TorchVersion

from recipe.errors import UserError

# What Composer 0.32 writes beside tensors, numbers and text. None of them does anything but hold its arguments.
CLASSES = (
    TorchVersion,
    datetime.timedelta,
    np._core.multiarray._reconstruct,  # of numpy's random state
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
)
_NAMED = re.compile(r"GLOBAL ([\w.]+)|`?([\w.]+)`? was not an allowed global|Unsupported class ([\w.]+)")


def read_checkpoint(file: str | Path, map_location: str = "cpu") -> dict[str, Any]:
    """What is in a checkpoint.

    Raises:
        UserError: no checkpoint, a damaged one, or one that names a function or class which is not in `CLASSES`.
    """
    try:
        with safe_globals(list(CLASSES)):
            return torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises whatever the bytes lead it to
        raise _refusal(file, error) from None


def check(file: Path) -> None:
    """Raise a `UserError` for a file that `read_checkpoint` would refuse for what it names, without reading its tensors."""
    known = {f"{one.__module__}.{one.__qualname__}" for one in CLASSES}
    try:
        named = sorted(set(get_unsafe_globals_in_checkpoint(file)) - known)
    except Exception as error:
        raise _refusal(file, error) from None
    if named:
        raise _dangerous(file, named[0])


@contextmanager
def composer_reads_safely() -> Iterator[None]:
    """Within it, Composer reads its checkpoints by `read_checkpoint`: it would unpickle anything."""
    module, name = composer.utils.checkpoint, "_torch_load_with_validation"
    before = getattr(module, name)
    setattr(module, name, lambda checkpoint_filepath, map_location: read_checkpoint(checkpoint_filepath, map_location))
    try:
        yield
    finally:
        setattr(module, name, before)


def _refusal(file: str | Path, error: Exception) -> UserError:
    named = isinstance(error, pickle.UnpicklingError) and _NAMED.search(str(error))
    if named:
        return _dangerous(file, next(filter(None, named.groups())))
    problem = " ".join(str(error).split())[:200]
    return UserError(f"{file}: not a Composer checkpoint, or damaged ({type(error).__name__}: {problem})")


def _dangerous(file: str | Path, name: str) -> UserError:
    return UserError(
        f"{file}: names `{name}`, which no checkpoint of this project needs; refused, because reading it could execute code"
    )
