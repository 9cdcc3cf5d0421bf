"""Composer's checkpoints: their names, what is in them, a run's fork at one, and reading them without executing anything. This
is the one place that opens a `.pt` file.

Beside tensors and plain containers a checkpoint may name the few classes that hold clocks, versions and random states; one that
names anything else is refused (`recipe.system.pickles`).
"""

from __future__ import annotations

import datetime
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import composer.utils.checkpoint
import numpy as np
from torch.serialization import get_unsafe_globals_in_checkpoint
from torch.torch_version import TorchVersion

from recipe.errors import UserError, class_and_line
from recipe.system.pickles import Damaged, dangerous, read_pickle, refusal

# What Composer 0.32 writes beside tensors, numbers and text. None of them does anything but hold its arguments.
CLASSES = (
    TorchVersion,
    datetime.timedelta,
    np._core.multiarray._reconstruct,  # of numpy's random state
    np.ndarray,
    np.dtype,
    type(np.dtype(np.uint32)),
)
FOLDER = "checkpoints"  # of a run
SAVED, LATEST = "ba{batch}-rank{rank}.pt", "latest-rank{rank}.pt"  # a file a rank; the latest are links
_WHAT = "Composer checkpoint"


def read_checkpoint(file: str | Path, map_location: str = "cpu") -> dict[str, Any]:
    """What is in a checkpoint.

    Raises:
        UserError: no checkpoint, a damaged one, or one that names a function or class which is not in `CLASSES`.
    """
    return read_pickle(file, _WHAT, CLASSES, map_location)


def model_of(file: Path) -> tuple[int, dict[str, Any]]:
    """The batch that a checkpoint was written at, and its model's weights by name.

    Raises:
        UserError: as `read_checkpoint`, or the file holds something else.
    """
    try:
        state = read_checkpoint(file)["state"]
        weights = {name.removeprefix("model."): tensor for name, tensor in state["model"].items()}
        return state["timestamp"]["Timestamp"]["batch"], weights
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not a Composer checkpoint ({class_and_line(error)})") from None


def newest_whole(run: Path) -> tuple[Path | None, list[Path]]:
    """The newest of a run's checkpoints, and the newer ones that are torn: a run can be killed while it writes one.

    Raises:
        UserError: it names what no checkpoint needs.
    """
    torn = []
    for file in later(run, -1):
        try:
            check(file)
        except Damaged:
            torn.append(file)
        else:
            return file, torn
    return None, torn


def later(run: Path, batch: int) -> list[Path]:
    """A run's checkpoints of later batches than this one, complete or torn, the newest first."""
    found = sorted((run / FOLDER).glob(SAVED.format(batch="*", rank=0)), key=batch_of, reverse=True)
    return [file for file in found if batch_of(file) > batch]


def batch_of(file: Path) -> int:
    """The one that a checkpoint was written at, by its name."""
    return int(file.name.removeprefix("ba").partition("-")[0])


def fork(run: Path, batch: int, out: Path) -> dict[str, Any]:
    """Begin `out` with `run`'s checkpoints at `batch`, as the latest ones, and its encoder's sizes.

    Returns:
        What `run` had done by then: tokens, seconds and the rest of the meter's sums.

    Raises:
        UserError: `run` has no checkpoint there any more.
    """
    files = sorted((run / FOLDER).glob(SAVED.format(batch=batch, rank="*")))
    if not files:
        raise UserError(f"{run}: no checkpoint at batch {batch} any more; remove the folder to train it again")
    done = dict(read_checkpoint(files[0])["state"]["callbacks"])["Meter"]["progress"]["total"]
    shutil.rmtree(out, ignore_errors=True)  # the beginning of a copy that was interrupted; a run would have a record
    (out / FOLDER).mkdir(parents=True)
    for file in files:
        copy = out / FOLDER / file.name
        shutil.copyfile(file, copy)
        rank = file.stem.partition("rank")[2]
        (out / FOLDER / LATEST.format(rank=rank)).symlink_to(copy.name)
    shutil.copytree(run / "encoder", out / "encoder", ignore=shutil.ignore_patterns("*.safetensors"))
    return done


def check(file: Path) -> None:
    """Raise a `UserError` for a file that `read_checkpoint` would refuse for what it names, without reading its tensors."""
    known = {f"{one.__module__}.{one.__qualname__}" for one in CLASSES}
    try:
        named = sorted(set(get_unsafe_globals_in_checkpoint(file)) - known)
    except Exception as error:
        raise refusal(file, _WHAT, error) from None
    if named:
        raise dangerous(file, _WHAT, named[0])


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
