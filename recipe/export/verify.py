"""Verification in a process of its own: started and read here; what it compares is `recipe.export.checks`.

The process loads the draft as a stranger would, with transformers' caches in an empty folder and the network off.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from recipe import records
from recipe.config import ExportConfig
from recipe.errors import UserError
from recipe.export.formats import FORMATS
from recipe.export.subject import Subject
from recipe.system.files import digest, read_json, write_whole

FILE_NAME = "export.json"
FORMAT = 1
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
CACHES = ("HF_HOME", "HF_MODULES_CACHE")


def verify(subject: Subject, config: ExportConfig, draft: Path) -> dict[str, Any]:
    """The record of a draft that computes what the subject does, as it now stands in it.

    Raises:
        UserError: it is not, or it could not be compared.
    """
    found = compared(config, draft)
    if found["different"]:
        raise UserError(f"the export is not {subject.what}, so nothing was written: {found['different']}")
    record = {
        "format": FORMAT,
        **identity(subject, config),
        "provenance": records.provenance(),
        "packages": {name: metadata.version(name) for name in FORMATS[config.format].packages},
        "verified": found["verified"],
        "facts": found["facts"],
    }
    write_whole(draft / FILE_NAME, json.dumps(record, indent=1) + "\n")
    return record


def identity(subject: Subject, config: ExportConfig) -> dict[str, Any]:
    """What an export is of, and in which form: another of the same would be the same."""
    checkpoint = subject.checkpoint
    return {
        "kind": config.format,
        "pooling": config.pooling,
        "model": checkpoint.model,
        "name": subject.called,
        "batch": checkpoint.batch,
        "task": subject.task and {key: subject.task[key] for key in ("name", "kind", "labels")},
        "weights_sha256": digest(checkpoint.files),
    }


def holds(out: Path, subject: Subject, config: ExportConfig) -> bool:
    """Whether the folder is this very export; never said of one that was scored on pairs, which may be others now."""
    if config.int8:
        return False
    try:
        found = read_json(out / FILE_NAME)
    except (OSError, ValueError):
        return False
    wanted = json.loads(json.dumps(identity(subject, config)))
    return isinstance(found, dict) and all(found.get(key) == value for key, value in wanted.items())


def compared(config: ExportConfig, draft: Path) -> dict[str, Any]:
    """What the verifying process answers: `verified` and `facts` of `checks.Exported`, and what is `different`, or None."""
    with tempfile.TemporaryDirectory() as scratch:
        request = Path(scratch, "request.json")
        request.write_text(json.dumps({"config": dataclasses.asdict(config), "folder": str(draft)}), "utf-8")
        environment = os.environ | OFFLINE | dict.fromkeys(CACHES, scratch)
        command = [sys.executable, "-m", "recipe.export.verifier", str(request)]
        nobody = subprocess.DEVNULL  # to ask whether code may run
        done = subprocess.run(command, env=environment, stdin=nobody, capture_output=True, text=True)
        answer = Path(scratch, "answer.json")
        if not answer.is_file():
            last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
            raise UserError(f"the export could not be verified, so nothing was written: {last.removeprefix('error: ')}")
        return json.loads(answer.read_text("utf-8"))


def in_words(record: dict[str, Any]) -> Iterator[str]:
    """The comparisons in short: of those of one kind the largest difference. All of them stand in the record."""
    kinds: dict[str, list[float]] = {}
    for what, row in record["verified"].items():
        kind = what.split(",")[0] + (" in bf16, from float32" if "bf16" in what else "")
        kinds.setdefault(kind, []).append(row["difference"])
    for kind, differences in kinds.items():
        count = f", in {len(differences)} comparisons" if len(differences) > 1 else ""
        yield f"{kind}: at most {max(differences):.1e} apart{count}"
    for what, value in record["facts"].items():
        yield f"{what}: {value if isinstance(value, str) else format(value, ',.4g')}"
