"""Files that several processes use: locks, files that are whole or not there, a full disk, digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def locked(file: Path, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold this lock file; another process that holds it is waited for. The system frees a dead process's lock."""
    with file.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(0.2)
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
