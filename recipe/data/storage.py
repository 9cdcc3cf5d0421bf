"""Files in an object store, through Streaming's own clients: fetched whole or not at all, and a failure is one line.

A remote folder is `s3://BUCKET/FOLDER`, and likewise `gs`, `oci`, `azure` and `azure-dl`. Credentials and endpoints are the
ones that Streaming reads: for S3 those of boto3 and `S3_ENDPOINT_URL`, for Azure `AZURE_ACCOUNT_NAME` and
`AZURE_ACCOUNT_ACCESS_KEY`.
"""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from recipe.data import network
from recipe.errors import UserError, one_line
from recipe.system.files import DISK_FULL, write_whole

SCHEMES = ("s3", "gs", "oci", "azure", "azure-dl")
_ATTEMPTS = 4
_THREADS = 8  # that ask for small files at once; botocore keeps ten connections
_PAUSE_S = 0.5  # before the second attempt; doubled before each further one
_MOST_PAUSE_S = 60.0  # however much longer the store asks for
_SILENCE_S = (
    20.0  # without a byte until S3's client asks again, three times an attempt: in all less than ranks wait for one
)
_ABSENT, _REFUSED = {"404", "NoSuchKey", "NoSuchBucket"}, {"400", "401", "403", "AccessDenied", "InvalidAccessKeyId"}
_REMEDY = "look at the credentials, the bucket's name and the endpoint"
# it warns of every folder that is not empty, which ours never are
logging.getLogger("streaming.base.storage.upload").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Mirror:
    """A local folder, and the one in an object store that its files go to, if there is one."""

    local: Path
    remote: str | None = None

    def __str__(self) -> str:
        return self.remote or str(self.local)

    def pull(self, name: str) -> bool:
        """Whether there is such a file; what is in the store only is brought here."""
        if not self.remote:
            return (self.local / name).is_file()
        try:
            fetch(self.remote, name, self.local)
        except Absent:
            return False
        return True

    def pull_all(self, names: Iterable[str]) -> list[bool]:
        """`pull` of each, side by side: a store takes its time to answer."""
        if not self.remote:
            return [self.pull(name) for name in names]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self.pull, names))

    def push(self, *names: str) -> None:
        """Copy these files to the store, in this order; nothing to do without one."""
        for name in names if self.remote else ():
            upload(self.local, name, self.remote)


class Absent(UserError):
    """The store answers, and has no such file."""


class Failing(UserError):
    """The store does not do what it should, which may change."""


class _Other(Exception):
    """What came is not what was to come."""


def is_remote(path: str) -> bool:
    """Whether this names a folder in an object store.

    Raises:
        UserError: for a URL that is not of one of `SCHEMES`, or names no bucket.
    """
    if "://" not in path:
        return False
    url = urlsplit(path)
    if "@" in url.netloc:
        raise UserError(
            f"{path}: holds credentials, which would stand in records; the clients read them from the environment"
        )
    if url.scheme not in SCHEMES or not url.netloc or url.query or url.fragment:
        known = " ".join(f"{scheme}://" for scheme in SCHEMES)
        raise UserError(f"{path}: give a local folder, or SCHEME://BUCKET/FOLDER without # and ?; known are {known}")
    return True


def fetch(remote: str, name: str, local: Path, hashed: Callable[[Path], str] | None = None, content: str = "") -> Path:
    """Bring the file `remote/name` to `local/name`, whole or not at all, and return its place; one that is there is kept. With
    `hashed`, what comes must have the hash `content`.

    Any number of threads and processes may fetch the same file at once. A store that fails, or sends something else, is asked
    again a few times, after the time that it asks for; all that is counted in `network`.

    Raises:
        Absent: there is no such file. Where listing is not allowed, S3 says that access is refused instead.
        Failing: the store fails, or goes on to send something else.
        UserError: it refuses, or the local disk is full.
    """
    file = local / name
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    began, size = time.monotonic(), 0
    _sent.requests, _sent.again = set(), 0

    def download(draft: Path) -> None:
        _download(_join(remote, name), draft)
        if hashed and hashed(draft) != content:
            raise _Other("its hash is not the one in the index: the object was cut off, or is an older one")

    try:
        _repeated(_join(remote, name), file, download)
        size = file.stat().st_size
    finally:
        network.add(network.Network(time.monotonic() - began, _sent.again, size))
    return file


def _repeated(url: str, file: Path, download: Callable[[Path], None]) -> None:
    for pause in _pauses():
        try:
            return write_whole(file, download)
        except Exception as error:  # each store's client has its own
            kind = _kind(error)
            if kind == "absent":
                raise Absent(f"{url}: no such file in the store; {_REMEDY}") from None
            if pause is None or kind:
                raise _failure(url, "fetched", error, file) from None
            if not url.startswith("s3://"):
                _sent.again += 1
            time.sleep(_patience(error, pause))
    raise AssertionError("the last attempt returns or raises")


def _patience(error: Exception, pause: float) -> float:
    """Seconds to wait: the store's own `Retry-After`, if it is longer and not too long."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    else:
        headers = getattr(response, "headers", None) or {}
    asked = str(headers.get("retry-after") or headers.get("Retry-After") or "")
    return min(max(pause, float(asked) if asked.isdecimal() else 0.0), _MOST_PAUSE_S)


_sent = threading.local()  # of the fetch that this thread is at: S3's requests, and how many were sent again


def _count_request(request: Any, **_: Any) -> None:
    """botocore's clients ask again by themselves, and so does boto3 for a body that breaks off."""
    asked = (request.method, request.url, request.headers.get("Range"))
    _sent.again += asked in _sent.requests
    _sent.requests.add(asked)


def _download(url: str, file: Path) -> None:
    """`file` must not exist: the clients would keep it."""
    _downloader(urlsplit(url).scheme, os.getpid()).download(_to_read(url), str(file))
    if not file.exists():  # Google's client may return without a file and without an error
        raise RuntimeError("the client returned without the file")


def upload(local: Path, name: str, remote: str) -> None:
    """Copy the file `local/name` to `remote/name`; Streaming's uploader tries a few times.

    Raises:
        UserError: the store cannot be reached or refuses.
    """
    try:
        _uploader(str(local), remote, os.getpid()).upload_file(name)
    except Exception as error:  # each store's client has its own
        raise _failure(_join(remote, name), "uploaded", error, local / name) from None


def check(remote: str) -> None:
    """Ask the store for the bucket.

    Raises:
        UserError: no such bucket, the store cannot be reached, or it refuses.
    """
    with tempfile.TemporaryDirectory() as folder:  # an uploader makes the folder that it is given
        try:
            _uploader(folder, remote, os.getpid())
        except Exception as error:
            raise _failure(remote, "used", error, Path(folder)) from None


# Clients are shared by threads. A process that was forked makes its own: a connection serves one process.
@functools.lru_cache
def _downloader(scheme: str, process: int) -> Any:
    from streaming.base.storage import CloudDownloader  # takes seconds, so only who fetches pays for it

    downloader = CloudDownloader.get(f"{scheme}://")
    if scheme == "s3":  # as Streaming would, but that its requests are counted
        downloader._create_s3_client(timeout=_SILENCE_S)
        downloader._s3_client.meta.events.register("before-send.s3", _count_request)
    return downloader


@functools.lru_cache
def _uploader(local: str, remote: str, process: int) -> Any:
    from streaming.base.storage import CloudUploader

    return CloudUploader.get((local, remote), keep_local=True, retry=_ATTEMPTS, exist_ok=True)


def forget_clients() -> None:
    """Make the clients afresh when next they are needed, so that changed credentials and endpoints count."""
    _downloader.cache_clear()
    _uploader.cache_clear()


def _join(remote: str, name: str) -> str:
    return f"{remote.rstrip('/')}/{name}"


def _to_read(url: str) -> str:
    """Streaming writes azure://CONTAINER/FILE, and reads azure://HOST/CONTAINER/FILE."""
    parts = urlsplit(url)
    return f"azure://{parts.netloc}/{parts.netloc}{parts.path}" if parts.scheme == "azure" else url


def _pauses() -> Iterator[float | None]:
    """Seconds to wait after each attempt that fails, None after the last."""
    yield from (_PAUSE_S * 2**i for i in range(_ATTEMPTS - 1))
    yield None


def _answer(error: BaseException) -> tuple[str, str]:
    """The store's code and words, as far as its client tells: botocore's, Google's, Azure's, Oracle's."""
    response = getattr(error, "response", None)
    said = response.get("Error", {}) if isinstance(response, dict) else {}
    code = said.get("Code") or next(
        (value for name in ("status_code", "status", "code") if isinstance(value := getattr(error, name, None), int)),
        "",
    )
    return str(code), one_line(said.get("Message") or error)


def _kind(error: Exception) -> str:
    """Why to ask again is in vain: absent, refused, full; nothing, if it may help."""
    code, _ = _answer(error)
    if isinstance(error, FileNotFoundError) or code in _ABSENT:
        return "absent"
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return "full"
    no_key = type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
    return "refused" if no_key or code in _REFUSED else ""


def _failure(url: str, what: str, error: Exception, file: Path) -> UserError:
    code, words = _answer(error)
    if _kind(error) == "full":
        return UserError(f"{file}: {error.strerror}; free some space and start again")
    if isinstance(error, _Other):
        return Failing(f"{url}: cannot be {what}: {words}; upload it again, or prepare the dataset again")
    line = f"{url}: cannot be {what}: {f'{code} ' if code else ''}{words}; {_REMEDY}"
    return UserError(line) if _kind(error) else Failing(line)
