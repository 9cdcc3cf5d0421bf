"""Texts that training did not see: a run's validation split, or the scored rows of a fine-tuning, where they are still there.

Nothing is written beside them and nothing is fetched. The files may be gone, or others by now: then `absent` says so, and what
is compared is compared on the embedded texts alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from recipe import records
from recipe.config import FinetuneConfig
from recipe.data import storage
from recipe.data.shards import read_info
from recipe.errors import UserError
from recipe.finetune.own import OwnTask
from recipe.system.files import digest
from recipe.training.checkpoint import Checkpoint

RECORDS, ROWS = 256, 64  # of a dataset, and of a task's files, that are compared
Item = TypeVar("Item")


@dataclass(frozen=True)
class HeldOut:
    texts: list[tuple[str, ...]]  # or pairs; of a kind with a label per word its words, as `recipe.finetune` has them
    ids: list[list[int]]  # of a dataset's records, of which the texts are made
    absent: str | None = None  # why there are none


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """At most so many of them, evenly."""
    return [items[i] for i in sorted({i * len(items) // count for i in range(count)})] if items else []


def of_run(checkpoint: Checkpoint) -> HeldOut:
    """Records of the validation split that the encoder's run was evaluated on, and their text as the tokenizer decodes it."""
    from recipe.data.documents import some_records  # brings in the streaming library, which takes seconds

    if checkpoint.run is None:
        return HeldOut([], [], "no run is known that it came from")
    run = records.read_record(checkpoint.run)
    data, known = run["config"].get("data", {}), run.get("dataset") or {}
    if "path" not in data:
        return HeldOut([], [], "its run names no dataset")
    if storage.is_remote(data["path"]):
        return HeldOut([], [], "its run's dataset is in an object store")
    try:
        info = read_info(data["path"])
        if info.vocabulary.sha256 != known.get("vocabulary_sha256"):
            return HeldOut([], [], "another dataset stands where its run's was")
        if not info.split(data["eval_split"]).documents:
            return HeldOut([], [], "its run's dataset has an empty validation split")
        found = some_records(Path(data["path"]), data["eval_split"], RECORDS, info.dtype)
    except (UserError, OSError):
        return HeldOut([], [], "its run's dataset is not there any more")
    ids = [tokens.tolist() for _, tokens in found]
    return HeldOut([(text,) for text in checkpoint.tokenizer.decode_batch(ids) if text.strip()], ids)


def of_task(results: dict[str, Any] | None) -> HeldOut:
    """Rows of the set that a fine-tuning was scored on; `results` is its record."""
    if results is None:
        return HeldOut([], [], "no record of its fine-tuning is beside it")
    known = {field.name for field in dataclasses.fields(FinetuneConfig)} - {"cost"}
    source = OwnTask(FinetuneConfig(**{key: value for key, value in results["config"].items() if key in known}))
    try:
        if digest(source.files()) != results["finetune"]["inputs"]["data"]:
            return HeldOut([], [], "its task's files are others by now")
        (scored,) = source.data.dev.values()
    except (UserError, OSError):
        return HeldOut([], [], "its task's files are not there any more")
    return HeldOut(spread([several[:2] for several in scored.sentences], ROWS), [])
