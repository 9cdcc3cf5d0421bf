"""A run's checkpoints in an object store, from which any machine can go on with it.

Beside them lies the run's record, which names the complete ones with their hashes. It is uploaded after the checkpoint, and a
store replaces a file as a whole, so a checkpoint that is only half there does not count. Nothing is listed, as not all of
Streaming's clients can, and nothing is deleted.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State
from composer.utils import dist

from recipe import records
from recipe.data import storage
from recipe.data.storage import Absent, Failing, Mirror
from recipe.errors import UserError
from recipe.system.files import set_aside
from recipe.training.callbacks import say
from recipe.training.checkpoint_files import FOLDER, LATEST, batch_of

RECORD = "checkpoints.json"  # the run's record, under a name of its own: `run.json` is a run's folder
NAMED = "checkpoints"  # of the record in the store: file, batch and sha256 of each, the newest last
_TYPES = {"file": str, "batch": int, "sha256": str}
Saved = list[dict[str, Any]]


def check_store(save_folder: str) -> None:
    """Raise a `UserError` for what is no folder in an object store, or one that cannot be used."""
    if not storage.is_remote(save_folder):
        raise UserError(
            f"save_folder={save_folder}: give a folder in an object store, SCHEME://BUCKET/FOLDER; a run's checkpoints on this "
            "machine are in `out` in any case"
        )
    storage.check(save_folder)


def stored_record(save_folder: str) -> tuple[dict[str, Any], Saved] | None:
    """The record of the run whose checkpoints lie there, and which they are; None for none.

    Raises:
        UserError: the store fails or refuses, or what is there is not a run's record.
    """
    with tempfile.TemporaryDirectory() as folder:
        if not Mirror(Path(folder), save_folder).pull(RECORD):
            return None
        record = records.read_record(Path(folder) / RECORD)
    saved = record.pop(NAMED, None)
    if not isinstance(saved, list) or not all(isinstance(one, dict) and _types(one) == _TYPES for one in saved):
        raise UserError(f"save_folder={save_folder}: its {RECORD} names no checkpoints; choose another folder")
    return record, saved


def fetch_newest(save_folder: str, saved: Saved, out: Path) -> list[str]:
    """Bring the newest complete one into the run's folder on this machine; what to say of it, and of those that are passed over.

    Raises:
        UserError: the store refuses, or the disk is full.
    """
    said: list[str] = []
    for one in reversed(saved):
        file = out / FOLDER / Path(one["file"]).name
        if file.is_file() and _sha256(file) != one["sha256"]:
            set_aside(file)
        try:
            storage.fetch(save_folder, file.name, out / FOLDER, _sha256, one["sha256"])
        except (Absent, Failing) as error:
            said.append(f"{error}; passed over")
            continue
        return [*said, f"{file.name} comes from {save_folder}"]
    return said


class Storing(Callback):
    """Uploads each checkpoint when it is complete on this machine, before the next batch; stands before whatever ends a run at a
    batch's start."""

    def __init__(
        self, save_folder: str, saved: Saved, out: Path, record: Mapping[str, Any], on_seconds: Callable[[float], None]
    ) -> None:
        """`saved` is what the store has of the run; `on_seconds` is told what each upload took."""
        self._to, self._saved, self._record = Mirror(out / FOLDER, save_folder), list(saved), record
        self._on_seconds = on_seconds
        self._tried = self._latest()

    def batch_start(self, state: State, logger: Logger) -> None:
        self._store()

    def fit_end(self, state: State, logger: Logger) -> None:
        self._store()

    def _latest(self) -> str:
        with suppress(FileNotFoundError):
            return os.readlink(self._to.local / LATEST.format(rank=0))
        return ""

    def _store(self) -> None:
        latest = self._latest() if dist.get_global_rank() == 0 else ""
        if not latest or latest == self._tried:
            return
        began, self._tried, file = time.perf_counter(), latest, self._to.local / latest
        new = {"file": latest, "batch": batch_of(file), "sha256": _sha256(file)}
        saved = [*(one for one in self._saved if one["batch"] < new["batch"]), new]
        records.write_record(self._to.local / RECORD, {**self._record, NAMED: saved})
        try:
            self._to.push(latest, RECORD)
            self._saved = saved
        except Failing as error:
            say(f"  {error}; the run goes on, and tries again with the next checkpoint")
        self._on_seconds(time.perf_counter() - began)


def _types(values: dict[str, Any]) -> dict[str, type]:
    return {key: type(value) for key, value in values.items()}


def _sha256(file: Path) -> str:
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()
