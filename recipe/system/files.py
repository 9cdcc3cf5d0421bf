"""Files that several processes use: locks, files that are whole or not there, a full disk, digests."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

DEEPEST = 100  # levels of a JSON file
PATIENCE = 10.0  # seconds; a loader's workers see within five that nobody trains any more
DRAFT = re.compile(r".+\.\d+\.\d+\.tmp")  # what the functions below write before it has its name
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def locked(file: Path, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold this lock file; another process that holds it is waited for. The system frees a dead process's lock."""
    # nothing frees the lock that the library would make where there is no `flock`
    with FileLock(file, poll_interval=0.2, fallback_to_soft=False).acquire(cancel_check=while_waiting):
        yield


@contextlib.contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Whether this process has the folder to itself, from now to the end. Nothing is written for it; a killed process's children,
    who hold it too, are waited for. On a file system without locks everybody has it."""
    handle, ends = os.open(folder, os.O_RDONLY), time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > ends:
                    yield False
                    return
                time.sleep(0.1)
                continue
            except OSError:
                pass
            yield True
            return
    finally:
        os.close(handle)


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


def set_aside(torn: Path) -> Path:
    """A file that is not whole, under another name, so that it can be written again."""
    return torn.rename(torn.with_name(f"{torn.name}.torn"))


def write_whole_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """The same of a folder, which takes the place of one that is there; `write` fills the empty one that it is given."""
    place = folder.absolute()
    draft = place.with_name(f".{place.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    handle = None
    try:
        draft.mkdir(parents=True)
        handle = os.open(draft, os.O_RDONLY)
        _lock(handle)  # until this process ends: so a draft that nobody has locked is a killed one's
        for other in place.parent.glob(f".{glob.escape(place.name)}.*.tmp"):
            if DRAFT.fullmatch(other.name) and other != draft:
                _remove_unheld(other)
        write(draft)
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if handle is not None:
            os.close(handle)


def _lock(handle: int) -> bool:
    """Whether this process has the folder's lock now, which another one may hold; not where there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_unheld(draft: Path) -> None:
    with contextlib.suppress(OSError):  # its writer is just giving it its name
        handle = os.open(draft, os.O_RDONLY)
        try:
            if _lock(handle):
                shutil.rmtree(draft)
        finally:
            os.close(handle)


def entries(folder: Path) -> list[Path]:
    """What a folder holds, but for drafts: a command that was killed in its first write has left one and nothing else."""
    return [one for one in folder.iterdir() if not DRAFT.fullmatch(one.name)]


def remove_drafts(*folders: Path) -> None:
    """Those directly in these folders, which nobody but this process may be writing into."""
    for folder in folders:
        for draft in folder.iterdir() if folder.is_dir() else ():
            if DRAFT.fullmatch(draft.name) and draft.is_file():
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


def read_json(file: Path) -> Any:
    """What is in a JSON file that anybody may have written.

    Raises:
        OSError: it cannot be read.
        ValueError: not UTF-8 text, not JSON, nested more deeply than any file of ours, or text in it that is no Unicode.
    """
    try:
        found = json.loads(file.read_text("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [found]
    for _ in range(DEEPEST):
        level = [below for one in level for below in _below(one)]
        if not level:
            return found
    raise ValueError("nested too deeply")


def _below(value: Any) -> Iterator[Any]:
    """What stands directly in a value of a JSON file."""
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value
    elif isinstance(value, str) and not value.isascii():
        value.encode()  # UnicodeEncodeError, a ValueError, for half a character


def leaving(folder: Path) -> Path | None:
    """The first symbolic link below a folder that leads out of it, or nowhere; `folder` itself may be one."""
    inside = os.path.realpath(folder)
    for place, folders, files in os.walk(inside):
        for name in sorted([*folders, *files]):
            link = os.path.join(place, name)
            if os.path.islink(link) and not os.path.realpath(link).startswith(inside + os.sep):
                return folder / os.path.relpath(link, inside)
    return None
