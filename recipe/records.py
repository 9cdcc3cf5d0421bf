"""`run.json`, the one record of a run: what ran, on what, for how long, for how much, and how well it did.

Strict JSON (a number that is not finite becomes null), written whole or not at all, read without torch.
"""

from __future__ import annotations

import json
import math
import numbers
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from recipe import shipped
from recipe.cost.prices import OWN_PRICE, Price
from recipe.errors import UserError
from recipe.system.files import digest, read_json, write_whole
from recipe.system.private import private

FORMAT = 2  # 2: device.price_row, trunk and dataset in every record
PACKAGE = "bert-recipe"  # this project, as pyproject.toml names it
FILE_NAME = "run.json"
PROJECT = shipped.HOME
LOCK = "requirements.txt"
COMMIT = "COMMIT"  # beside LOCK in a copy without git: what `git rev-parse HEAD` said where it was made

# Packages whose version can change a result or a speed. One that is not installed is recorded as null.
PACKAGES = (
    "datasets",
    "flash-attn",
    "mosaicml",
    "mosaicml-streaming",
    "numpy",
    "omegaconf",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "xformers",
)

# The keys that a reader relies on, and their types; `new_record` shows the rest.
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "kind": str,
    "name": str,
    "status": str,
    "model": str,
    "config": dict,
    "provenance": dict,
    "device": dict,
    "parameters": int,
    "cost": dict,
    "tokens": int,
    "loss_curve": list,
    "eval": (dict, type(None)),
    "glue": (dict, type(None)),
    "trunk": (dict, type(None)),
    "dataset": (dict, type(None)),
}
REQUIRED_DEVICE = {
    "kind": str,
    "name": str,
    "count": int,
    "usd_per_hour": (int, float),
    "price_source": str,
    "price_row": (str, type(None)),
}
NUMBER = (int, float)
REQUIRED_COST = dict.fromkeys(("seconds", "gpu_hours", "device_hours", "usd"), NUMBER)
REQUIRED_GLUE = {"benchmark": str, "protocol": dict, "tasks": dict, "absent": list, "of": int}
# Where recipe.pairs has scored; records from before it have no such key.
REQUIRED_PAIRS = {"score": (int, float), "method": str, "part": str, "max_pairs": int, "tuning_pairs": int, "inputs": dict,
                  "fields": dict, "paradigms": dict}  # fmt: skip
NOTHING = type(None)
# What a pretraining run's record need not have, and is of these types where it has it.
OPTIONAL: dict[str, type | tuple[type, ...]] = {
    "config.model": dict,
    "config.model.num_hidden_layers": (int, NOTHING),
    "config.model.hidden_size": (int, NOTHING),
    "config.data": dict,
    "config.data.path": (str, NOTHING),
    "config.objective": str,
    "encoder": (dict, NOTHING),
    "sequences": (int, NOTHING),
    "batches": (int, NOTHING),
    "eval.loss": (*NUMBER, NOTHING),
    "eval.masked_accuracy": (*NUMBER, NOTHING),
    "eval.batch": int,
    "glue.cost": (dict, NOTHING),
    "glue.cost.usd": (*NUMBER, NOTHING),
    "glue.constant": dict,
}


def new_record(
    *,
    kind: str,
    name: str,
    model: str,
    config: dict[str, Any],
    device: dict[str, Any],
    backends: dict[str, Any],
    parameters: int,
) -> dict[str, Any]:
    """The record of a run that has just begun, nothing spent yet; `device` is what the function so named returns."""
    return {
        "format": FORMAT,
        "kind": kind,
        "name": name,
        "status": "running",
        "model": model,
        "config": config,
        "provenance": provenance(),
        "device": device,
        "backends": backends,
        "parameters": parameters,
        "cost": dict.fromkeys(REQUIRED_COST, 0.0),
        "tokens": 0,
        "sequences": 0,
        "batches": 0,
        "loss_curve": [],
        "eval": None,
        "glue": None,
        "trunk": None,  # of a branch: the run whose beginning it shares, how far, and what that part cost
        "dataset": None,  # of a pretraining run: what `dataset` gives
    }


def branch(stem: Mapping[str, Any], name: str, config: dict[str, Any], trunk: dict[str, Any]) -> dict[str, Any]:
    """The record of a run that begins where `stem` has come to; `trunk` says which run that is, how far, and what it cost."""
    record = {**stem, "name": name, "status": "running", "config": config, "provenance": provenance(), "trunk": trunk}
    record.pop("pairs", None)
    return {**record, "glue": None, "eval": None}


def device(kind: str, name: str, count: int, price: Price) -> dict[str, Any]:
    """The `device` of a record; `count` GPUs, or CPU cores, at `price` each."""
    return {
        "kind": kind,
        "name": name,
        "count": count,
        "usd_per_hour": price.usd_per_hour,
        "price_source": price.source,
        "price_row": price.row,
    }


def dataset(vocabulary_sha256: str, eval_documents: int, eval_tokens: int) -> dict[str, Any]:
    """The `dataset` of a record: what tells the held-out text of one dataset from that of another, wherever it lies."""
    return {
        "vocabulary_sha256": vocabulary_sha256,
        "eval_documents": eval_documents,
        "eval_tokens": eval_tokens,
    }


def provenance(project: Path = PROJECT) -> dict[str, Any]:
    """Which code runs, on which packages, since when; where `project` is no checkout, or there is no git, `commit` is what
    its file COMMIT says, or null, and `dirty` is null."""
    commit, dirty = _git_state(project)
    commit = commit or _noted_commit(project)
    return {
        "version": _version(PACKAGE),
        "commit": commit,
        "dirty": dirty,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "requirements_sha256": digest([file for file in [project / LOCK] if file.is_file()]),
    }


def write_record(path: str | Path, record: dict[str, Any]) -> Path:
    """Write `record` to `path`, a run.json or the folder for it, and return the file's path.

    A reader sees the old record or the new one, never half of one. It names no credential, and the home folder as `~`.
    """
    record = private(_plain(record))
    problem = _problem(record)
    assert problem is None, problem
    file = _file_of(path)
    file.parent.mkdir(parents=True, exist_ok=True)

    def write(draft: Path) -> None:
        with draft.open("w", encoding="utf-8") as stream:
            json.dump(record, stream, indent=1, ensure_ascii=False, allow_nan=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())

    write_whole(file, write)
    return file


def read_record(path: str | Path) -> dict[str, Any]:
    """The record in `path`, a run.json or the folder that holds it; one of an older format as this format would have it, and one
    that names the home folder or a credential as it is written today.

    Raises:
        UserError: for a file that is missing, not JSON, of a newer format, or without a key that readers need.
    """
    file = _file_of(path)
    try:
        record = read_json(file)
    except OSError as error:
        raise UserError(f"{file}: cannot read it ({error.strerror}); give a run's folder or its {FILE_NAME}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not valid JSON ({error.msg}); the run must write it again") from None
    except UnicodeError:
        raise UserError(f"{file}: not UTF-8 text, so not the record of a run") from None
    except ValueError as error:
        raise UserError(f"{file}: not the record of a run ({error})") from None
    record = private(_upgraded(record))
    problem = _problem(record)
    if problem:
        raise UserError(f"{file}: {problem}")
    return record


def _upgraded(record: Any) -> Any:
    """A record of format 1 as format 2 would have it; anything else as it is, for `_problem` to judge."""
    if not isinstance(record, dict) or record.get("format") != 1:
        return record
    record = {"trunk": None, "dataset": None, **record, "format": FORMAT}
    device = record.get("device")
    if isinstance(device, dict) and isinstance(source := device.get("price_source"), str):
        # Format 1 had "FILE: ROW", or the config's key for a price of the user's own.
        file, _, row = source.rpartition(": ")
        record["device"] = {**device, "price_row": row if file and source != OWN_PRICE else None}
    return record


def _file_of(path: str | Path) -> Path:
    path = Path(path).expanduser()
    return path if path.suffix == ".json" else path / FILE_NAME


def _problem(record: Any) -> str | None:
    """What is wrong with `record`, in words, or None."""
    if not isinstance(record, dict) or "format" not in record:
        return "not the record of a run: no `format`"
    if record["format"] != FORMAT:
        return f"format {record['format']!r}{_writer(record)}, but this version reads formats 1 to {FORMAT}; update it"
    problem = _missing(record, REQUIRED, "")
    problem = problem or _missing(record["device"], REQUIRED_DEVICE, "device.")
    problem = problem or _missing(record["cost"], REQUIRED_COST, "cost.")
    if not problem and record["kind"] == "pretrain":
        problem = _foreign(record)
    if not problem and record["trunk"] is not None:
        problem = _missing(record["trunk"], {"cost": dict}, "trunk.")
        problem = problem or _missing(record["trunk"]["cost"], {"usd": NUMBER}, "trunk.cost.")
    if not problem and record["glue"] is not None:
        problem = _missing(record["glue"], REQUIRED_GLUE, "glue.") or _task_problem(record["glue"]["tasks"])
    if not problem and record.get("pairs"):
        problem = _missing(record, {"pairs": dict}, "") or _missing(record["pairs"], REQUIRED_PAIRS, "pairs.")
        problem = problem or _paradigm_problem(record["pairs"]["paradigms"])
    return problem


def _writer(record: dict[str, Any]) -> str:
    """Which version wrote a record, as far as it says so."""
    provenance = record.get("provenance")
    known = provenance if isinstance(provenance, dict) else {}
    words = [known["version"]] if known.get("version") else []
    words += [f"commit {known['commit'][:10]}"] if known.get("commit") else []
    return f", written by {PACKAGE} {' at '.join(words)}" if words else ", of an unnamed version"


def _task_problem(tasks: dict[str, Any]) -> str | None:
    for name, task in tasks.items():
        if not isinstance(task, dict) or not isinstance(task.get("score"), (int, float, type(None))):
            return f"`glue.tasks.{name}` must hold a `score`, a number or null"
        if "score" not in task or not isinstance(task.get("init"), str):
            return f"`glue.tasks.{name}` lacks `score` or `init`"
    return None


def _paradigm_problem(paradigms: dict[str, Any]) -> str | None:
    for name, one in paradigms.items():
        if not isinstance(one, dict) or not isinstance(one.get("score"), (int, float)) or "pairs" not in one:
            return f"`pairs.paradigms.{name}` must hold `score` and `pairs`, numbers"
    return None


def _foreign(record: dict[str, Any]) -> str | None:
    """What of `OPTIONAL` is of another type, in words."""
    for path, types in OPTIONAL.items():
        *above, last = path.split(".")
        tree: Any = record
        for key in above:
            tree = tree.get(key) if isinstance(tree, dict) else None
        if isinstance(tree, dict) and last in tree:
            problem = _missing(tree, {last: types}, path.removesuffix(last))
            if problem:
                return problem
    return None


def _missing(tree: dict[str, Any], required: dict[str, Any], prefix: str) -> str | None:
    for key, types in required.items():
        if key not in tree:
            return f"`{prefix}{key}` is missing"
        if not isinstance(tree[key], types):
            return f"`{prefix}{key}` is a {type(tree[key]).__name__}, which this format does not have there"
    return None


def _plain(value: Any) -> Any:
    """`value` as strict JSON has it: numbers of any library made Python's, numbers that are not finite made null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a record cannot hold a {type(value).__name__}: {value!r}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_state(project: Path) -> tuple[str | None, bool | None]:
    """(commit, whether tracked files differ from it); Nones when `project` is not the root of a git checkout."""
    top = _git(project, "rev-parse", "--show-toplevel")
    # A copy installed inside somebody else's repository must not claim that repository's commit.
    if top is None or Path(top).resolve() != project.resolve():
        return None, None
    # Untracked files are left out of account: a user's own YAML is one, and the record holds its content as `config`.
    changes = _git(project, "status", "--porcelain", "--untracked-files=no")
    return _git(project, "rev-parse", "--verify", "HEAD"), None if changes is None else bool(changes)


def _noted_commit(project: Path) -> str | None:
    try:
        text = (project / COMMIT).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if re.fullmatch(r"[0-9a-f]{7,64}", text) else None


def _git(project: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(project), *words], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
