"""The files of a split, checked: what is missing, cut off, changed or foreign is said in one line with its remedy."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

from recipe.data.shards import DTYPE
from recipe.errors import UserError

_REMEDY = "copy the file again, or prepare the dataset again"


def check_files(path: str | Path, split: str) -> None:
    """Look at every shard's name, size and columns; reads the index alone, so a changed byte is found when the shard is opened.

    Raises:
        UserError: for the first shard that cannot be used.
    """
    folder = Path(path) / split
    for shard in read_index(folder):
        _check_columns(folder, shard)
        raw, packed = shard["raw_data"], shard["zip_data"]
        file = folder / raw["basename"]
        wanted = raw["bytes"]
        if packed and not file.is_file():
            file, wanted = folder / packed["basename"], packed["bytes"]
        if not file.is_file():
            raise UserError(f"{file}: no such file, and the index lists it; {_REMEDY}")
        if file.stat().st_size != wanted:
            raise UserError(f"{file}: {file.stat().st_size:,} bytes, the index says {wanted:,}; {_REMEDY}")


def read_index(folder: Path) -> list[dict[str, Any]]:
    """What the index of a split says of each of its shards."""
    file = folder / "index.json"
    try:
        return [dict(shard) for shard in json.loads(file.read_text("utf-8"))["shards"]]
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {_REMEDY}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: not an index of shards ({error}); {_REMEDY}") from None


def _check_columns(folder: Path, shard: dict[str, Any]) -> None:
    columns = dict(zip(shard.get("column_names", []), shard.get("column_encodings", []), strict=True))
    if columns != {"tokens": f"ndarray:{DTYPE}"}:
        found = ", ".join(f"{name} ({encoding})" for name, encoding in columns.items()) or "none"
        danger = "; a pickled one could execute code" if "pkl" in columns.values() else ""
        raise UserError(
            f"{folder / 'index.json'}: columns {found}, only tokens (ndarray:{DTYPE}) is read here{danger}; "
            "prepare the text with recipe.prepare"
        )


def fault(error: Exception, file: Path) -> UserError:
    """What Streaming, or the system, said about a shard while it was opened, as one line."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"{file}: {error.strerror}; free some space and start again")
    if "Checksum failure" in str(error):
        return UserError(f"{file}: its hash is not the one in the index, so its bytes have changed; {_REMEDY}")
    return UserError(f"{file}: cannot be opened: {' '.join(str(error).split())[:200]}; {_REMEDY}")


def last_line(error: UserError) -> UserError:
    """The error as a worker process raised it, without the traceback that PyTorch adds on the way."""
    return UserError(str(error).rsplit("UserError: ", 1)[-1].strip())
