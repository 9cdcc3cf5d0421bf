"""The files of a split, checked: what is missing, cut off, changed or foreign is said in one line with its remedy."""

from __future__ import annotations

import errno
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipe.data.shards import DTYPE, HASH, LENGTHS
from recipe.errors import UserError, one_line
from recipe.system.files import DISK_FULL, leaving, read_json

COMPRESSION = "zstd"  # the only one that recipe.prepare writes
LONGEST_NAME = 255  # bytes, of a shard's with its folder: no file system has longer ones
MOST_BYTES = 1 << 32  # of a shard, whose places are numbers of 32 bits
REMEDY = "copy the file again, or prepare the dataset again"
CHANGED = "{file}: its hash or its size is not the one in the index, so its bytes have changed; remove it, it is unpacked again"


def check_files(folder: Path, split: str, remote: bool = False, dtype: str = DTYPE) -> None:
    """Look at the lengths and at every shard's name, size and columns; no shard is read, so a changed byte is found when it is
    opened.

    With `remote`, a shard that is not there is fetched when it is read.

    Raises:
        UserError: for the first shard that cannot be used, or a link out of the folder.
    """
    if link := leaving(Path(folder)):
        raise UserError(f"{link}: a link that leaves the dataset's folder; copy what it leads to into its place")
    folder = Path(folder) / split
    index = read_index(folder, dtype)
    check_lengths(folder, sum(shard["samples"] for shard in index))
    for shard in index:
        raw, packed = shard["raw_data"], shard["zip_data"]
        file = folder / raw["basename"]
        wanted = raw["bytes"]
        if packed and not file.is_file():
            file, wanted = folder / packed["basename"], packed["bytes"]
        if not file.is_file():
            if remote:
                continue
            raise UserError(f"{file}: no such file, and the index lists it; {REMEDY}")
        if file.stat().st_size != wanted:
            raise UserError(f"{file}: {file.stat().st_size:,} bytes, the index says {wanted:,}; {REMEDY}")


def read_index(folder: Path, dtype: str = DTYPE) -> list[dict[str, Any]]:
    """What the index of a split says of each of its shards, whose ids are of `dtype`.

    Raises:
        UserError: no index, or one of other columns than this project's; nothing of it has been opened then.
    """
    file = folder / "index.json"
    try:
        shards = [dict(shard) for shard in read_json(file)["shards"]]
        for shard in shards:
            _check_shard(file, shard, dtype)
        return shards
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; {REMEDY}") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(f"{file}: not an index of shards ({error!r}); {REMEDY}") from None


def _check_shard(index: Path, shard: dict[str, Any], dtype: str) -> None:
    columns = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
    if columns != {"tokens": f"ndarray:{dtype}"}:
        found = ", ".join(f"{name} ({encoding})" for name, encoding in columns.items()) or "none"
        danger = "; a pickled one could execute code" if "pkl" in columns.values() else ""
        raise UserError(
            f"{index}: columns {found}, only tokens (ndarray:{dtype}) is read here{danger}; "
            "prepare the text with recipe.prepare"
        )
    for file in filter(None, (shard["raw_data"], shard["zip_data"])):
        path = PurePosixPath(file["basename"])
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{index}: names {path}, which is outside the dataset's folder; {REMEDY}")
        if (
            not isinstance(file["bytes"], int)
            or not 0 < file["bytes"] < MOST_BYTES
            or not isinstance(file["hashes"][HASH], str)
            or "\0" in file["basename"]
            or len(file["basename"].encode()) > LONGEST_NAME
        ):
            raise ValueError(f"`basename`, `bytes` or `hashes` of {path}")
    if shard["zip_data"] and str(shard["compression"]).partition(":")[0] != COMPRESSION:
        raise ValueError(f"compression {shard['compression']}")
    samples = shard["samples"]
    if (
        not isinstance(samples, int) or not 0 <= samples < shard["raw_data"]["bytes"] // 4
    ):  # which each needs in the header
        raise ValueError(f"{samples} samples")


def check_lengths(folder: Path, documents: int) -> NDArray[np.uint16]:
    """(documents,) the length of each document of a split, mapped.

    Raises:
        UserError: no such file, or not of so many documents.
    """
    file = folder / LENGTHS
    try:
        lengths = np.load(file, mmap_mode="r")
    except FileNotFoundError:
        raise UserError(f"{file}: no such file, and the batches are planned by it; prepare the dataset again") from None
    except Exception as error:  # numpy reads the header as Python's source, and raises whatever that leads to
        raise UserError(f"{file}: not an array of lengths ({one_line(error)}); {REMEDY}") from None
    if lengths.dtype != np.uint16 or lengths.shape != (documents,):
        raise UserError(f"{file}: {lengths.dtype} {lengths.shape}, the index has {documents:,} documents; {REMEDY}")
    return lengths


def fault(error: Exception, file: Path) -> UserError:
    """What the decompressor, or the system, said about a shard while it was opened, as one line."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return UserError(f"{file}: {error.strerror}; free some space and start again")
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        return UserError(
            f"{file}: {error.strerror}; shards are unpacked beside it, so copy the dataset where you can write"
        )
    return UserError(f"{file}: cannot be opened: {one_line(error)}; {REMEDY}")
