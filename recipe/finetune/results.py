"""Where the scores of a checkpoint stand, and whether they stand there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recipe import records
from recipe.config import to_dict
from recipe.errors import UserError
from recipe.settings import as_word, what_changed
from recipe.system.files import entries, leaving
from recipe.training.checkpoint import Checkpoint


def choose_folder(out: str | None, checkpoint: Checkpoint, name: str) -> Path:
    """`out`, or a folder inside the pretraining run's."""
    if out is not None:
        return Path(out)
    if checkpoint.run is None:
        raise UserError(f"checkpoint={checkpoint.folder} belongs to no run of this project; say where with out=FOLDER")
    return checkpoint.run / (name if checkpoint.batch is None else f"{name}-ba{checkpoint.batch}")


def find_record(out: Path, kind: str, config: Any) -> dict[str, Any] | None:
    """The record that `out` holds of this very run; a folder that holds another is refused."""
    if not out.exists():
        return None
    if out.is_file():
        raise UserError(f"out={out} is a file; choose a folder")
    if not (out / records.FILE_NAME).is_file():
        if entries(out):
            raise UserError(f"out={out} is not empty and holds no scores; choose another folder")
        return None
    if link := leaving(out):
        raise UserError(f"{link}: a link that leaves `out`; copy what it leads to into its place")
    record = records.read_record(out)
    if record["kind"] != kind:
        raise UserError(f"out={out} holds a run of kind `{record['kind']}`; choose another folder")
    for key, (before, now) in what_changed(type(config), record["config"], to_dict(config)).items():
        raise UserError(
            f"out={out} holds scores with {key}={as_word(before)}, and now {key}={as_word(now)}; "
            "choose another folder with out=..., or remove that one"
        )
    return record


def of_final_encoder(checkpoint: Checkpoint) -> bool:
    """Whether scores of `checkpoint` are those of its pretraining run, not of a checkpoint on its way or of no run."""
    if checkpoint.run is None:
        return False
    run = records.read_record(checkpoint.run)
    return run["status"] == "finished" and checkpoint.batch in (None, run.get("batches"))
