"""Files that several processes use: locks, files that are whole or not there, a full disk, digests."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def locked(file: Path, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold this lock file; another process that holds it is waited for. The system frees a dead process's lock."""
    # nothing frees the lock that the library would make where there is no `flock`
    with FileLock(file, poll_interval=0.2, fallback_to_soft=False).acquire(cancel_check=while_waiting):
        yield


def write_whole(file: Path, content: str | Callable[[Path], object]) -> None:
    """Write a file that appears under its name only when it is whole; a reader sees the old one or the new one. `content` is its
    text, or what writes it to the path that it is given. Any number of threads and processes may do so at once."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        if isinstance(content, str):
            draft.write_text(content, "utf-8")
        else:
            content(draft)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def write_whole_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """The same of a folder, which takes the place of one that is there; `write` fills the empty one that it is given."""
    draft = folder.absolute().with_name(f".{folder.absolute().name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        draft.mkdir(parents=True)
        write(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def digest(files: Sequence[Path]) -> str | None:
    """SHA-256 of the files' names and contents together; None for none."""
    if not files:
        return None
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                total.update(chunk)
    return total.hexdigest()
