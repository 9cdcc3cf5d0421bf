"""What lies at `out`, and who may write there: a finished dataset, an unfinished preparation of the same, or something else.

What is not finished lies in OUT.partial, or with a remote `out` in the store itself, where `dataset.json` comes last. Then
`work` is a local folder for what has not been uploaded: no other run needs it, and each begins with an empty one.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.config import PrepareConfig, to_dict
from recipe.corpus.parts import STATE
from recipe.data import shards, storage, tokenizer
from recipe.data.shards import DatasetInfo
from recipe.data.storage import Mirror
from recipe.errors import UserError
from recipe.settings import what_changed
from recipe.system.files import write_whole
from recipe.system.private import private

_PACKAGES = ("tokenizers", "transformers", "mosaicml-streaming", "datasets", "pyarrow", "numpy")
INFO, PLAN = "dataset.json", f"{STATE}/plan.json"


def packages() -> dict[str, str]:
    """Versions that the bytes of a dataset depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def finished(config: PrepareConfig, origins: dict[str, Any]) -> DatasetInfo | None:
    """The dataset at `out` if it is the one asked for, None if there is nothing; anything else is an error."""
    info = _read_remote(config.out) if storage.is_remote(config.out) else _read_local(Path(config.out))
    if info is None:
        return None
    out, remedy = config.out, f"choose another `out`, or remove {config.out}"
    different = sorted(what_changed(PrepareConfig, info.config, to_dict(config)))
    if different:
        raise UserError(f"{out}: holds a dataset of another configuration (`{'`, `'.join(different)}`); {remedy}")
    if {key: source.origin for key, source in info.sources.items()} != private(origins):
        raise UserError(f"{out}: its text has changed since (files, sizes or package versions); {remedy}")
    if config.tokenizer.vocab_file and tokenizer.digest(tokenizer.load(config.tokenizer)) != info.vocabulary.sha256:
        raise UserError(f"{out}: {config.tokenizer.vocab_file} has changed since; {remedy}")
    return info


def _read_local(out: Path) -> DatasetInfo | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / INFO).is_file():
        raise UserError(f"{out}: exists and holds no dataset; choose another `out`, or remove {out}")
    return shards.read_info(out)


def _read_remote(out: str) -> DatasetInfo | None:
    with tempfile.TemporaryDirectory() as folder:
        return shards.read_info(folder) if Mirror(Path(folder), out).pull(INFO) else None


def plan(config: PrepareConfig, origins: dict[str, Any]) -> dict[str, Any]:
    """The config, and what else the bytes of the parts depend on: a part knows its own file's size; where it depends on every
    file, all count."""
    origins = private(origins)
    found = to_dict(config) | {"packages": packages(), "text": origins}
    given = config.tokenizer.vocab_file or config.tokenizer.name
    if given and not config.drop_duplicates:
        found["text"] = {
            key: [file["path"] for file in origin["files"]] if "files" in origin else origin
            for key, origin in origins.items()
        }
    return found


def working_folder(config: PrepareConfig) -> Path:
    """Where what is unfinished lies on this machine; with a remote `out`, every share has one of its own."""
    if not storage.is_remote(config.out):
        return Path(f"{config.out.rstrip('/')}.partial")
    folder = config.work or f"{config.out.rstrip('/').rsplit('/', 1)[-1]}.partial"
    return Path(folder + (f"-{config.shard_of.replace('/', '-of-')}" if config.shard_of else ""))


@contextlib.contextmanager
def owned(config: PrepareConfig, plan: dict[str, Any]) -> Iterator[Mirror]:
    """Hold the folder of an unfinished preparation, which must be of this plan.

    On one file system, runs with `shard_of` share it, and a run without it has it alone.
    """
    remote = config.out if storage.is_remote(config.out) else None
    mirror = Mirror(working_folder(config), remote)
    local = mirror.local
    if _in_the_way(local):
        other = "`work`" if remote else "`out`"
        raise UserError(f"{local}: is in the way and no unfinished preparation; remove it, or choose another {other}")
    if remote:
        storage.check(remote)
    (local / STATE).mkdir(parents=True, exist_ok=True)
    with (local / STATE / "lock").open("w") as lock:
        shared = config.shard_of and not remote
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{local}: another run is at work on it; wait for it, then run this again") from None
        if remote:
            _clear(local)
        keep = not remote
        try:
            _compare(mirror, plan)
            yield mirror
        except UserError:
            keep &= bool(config.shard_of) or any((local / STATE).glob("*-*.json"))  # a part to go on with
            raise
        finally:
            if not keep:
                shutil.rmtree(local, ignore_errors=True)  # `_finish` may have given it its name


def _in_the_way(local: Path) -> bool:
    """Whether something is there that is no unfinished preparation; one that was killed in its first moment has no lock yet."""
    if not local.is_dir():
        return local.exists()
    return not (local / STATE / "lock").is_file() and any(path != local / STATE for path in local.rglob("*"))


def _clear(local: Path) -> None:
    """Remove what a killed run has left of files that only the store makes whole."""
    for path in [*local.iterdir(), *(local / STATE).iterdir()]:
        if path.is_dir() and path.name != STATE:
            shutil.rmtree(path)
        elif not path.is_dir() and path.name != "lock":
            path.unlink()


def _compare(mirror: Mirror, plan: dict[str, Any]) -> None:
    """Write the plan, or hold it against the one that is there."""
    file = mirror.local / PLAN
    if not mirror.pull(PLAN):
        write_whole(file, json.dumps(plan))
        mirror.push(PLAN)
        return
    found = private(json.loads(file.read_text("utf-8")))
    settings = ({key: value for key, value in of.items() if key not in ("packages", "text")} for of in (found, plan))
    different = [*what_changed(PrepareConfig, *settings)]
    different += [key for key in ("packages", "text") if plan[key] != found.get(key)]
    if different:
        raise UserError(
            f"{mirror}: holds an unfinished preparation of other settings or text (`{'`, `'.join(sorted(different))}`"
            f"{_other_file(plan, found)}); remove {mirror}, or choose another `out`"
        )


def _other_file(plan: dict[str, Any], found: dict[str, Any]) -> str:
    """A file that only one of two plans has, in words; nothing, if it is no file."""
    now, then = (
        {
            json.dumps(file)
            for origin in of["text"].values()
            for file in (origin if isinstance(origin, list) else origin.get("files", []))
        }
        for of in (plan, found)
    )
    for names, what in ((then - now, "is missing or has changed"), (now - then, "is new")):
        if names:
            file = json.loads(min(names))
            return f": {file if isinstance(file, str) else file['path']} {what}"
    return ""
