"""Tokenised documents by number, out of MDS shards.

A shard is fetched, checked and unpacked, then mapped into memory and read in place. Streaming's own dataset would hand out
some 9,000 samples a second, and shares its state with other processes in memory that a killed run leaves behind; here
processes share files alone, and a document costs a few microseconds.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from numpy.typing import NDArray
from streaming.base.hashing import get_hash

from recipe.data import storage
from recipe.data.sampler import Block
from recipe.data.shard_files import CHANGED, COMPRESSION, REMEDY, check_lengths, fault, read_index
from recipe.data.shards import DTYPE, HASH
from recipe.errors import UserError
from recipe.system.files import locked, write_whole

_THREADS = 2  # that fetch and unpack shards


@dataclass(frozen=True)
class _Shard:
    buffer: mmap.mmap
    starts: NDArray[np.int64]  # the byte at which each document's tokens begin


class Documents:
    """The documents of one split. Every process opens shards by itself, and one at a time fetches and unpacks each."""

    def __init__(
        self, folder: Path, split: str, remote: str | None = None, keep_gib: float = 0.0, dtype: str = DTYPE
    ) -> None:
        """`folder` holds the split's index and lengths; shards that are not there come from `remote`, the same folder in an
        object store, and with `keep_gib` those that were read longest ago are removed beyond so many GiB.

        Raises:
            UserError: an index or lengths that cannot be used.
        """
        self._folder = folder / split
        self._dtype = np.dtype(dtype)  # of ids
        self._index = read_index(self._folder, dtype)
        self.sizes = np.array([shard["samples"] for shard in self._index], np.int64)  # documents of each shard
        self.lengths = check_lengths(self._folder, int(self.sizes.sum()))  # (documents,) uint16
        self._first = np.cumsum(self.sizes) - self.sizes
        self._keep_bytes = keep_gib * 2**30
        self._remote = f"{remote.rstrip('/')}/{split}" if remote else None
        self._opened: dict[int, Future[_Shard]] = {}
        self._pool: ThreadPoolExecutor | None = None  # of the process that reads, which may be a fork of this one

    def __len__(self) -> int:
        return len(self.lengths)

    def enter(self, block: Block, turn: int, mine: range = range(1), here: range = range(1)) -> None:
        """Open the shards of a block, and those of the next one meanwhile; let go of all but these and the block's before, as a
        batch may hold documents of two.

        `turn` numbers the processes of this machine, so that each begins with another shard. Of a block's parts this process
        reads `mine`, all of this machine `here`.
        """
        before, shards, following = (_of_parts(of, mine) for of in (block.before, block.shards, block.following))
        wanted = [*np.roll(shards, -turn).tolist(), *np.roll(following, -turn).tolist()]
        for shard in self._opened.keys() - {*wanted, *before.tolist()}:
            self._opened.pop(shard).cancel()
        if self._keep_bytes and turn == 0:
            near = (_of_parts(of, here) for of in (block.before, block.shards, block.following))
            self._evict({*np.concatenate([*near]).tolist()})
        for shard in wanted:
            self._shard(shard)

    def read(self, numbers: NDArray[np.int64], most: int) -> list[NDArray[np.unsignedinteger]]:
        """The first `most` tokens of each document.

        Raises:
            UserError: a shard that cannot be fetched, or is not what the index says.
        """
        shards = np.searchsorted(self._first, numbers, "right") - 1
        counts = np.minimum(self.lengths[numbers], most)
        pieces: list[Any] = [None] * len(numbers)
        for number in np.unique(shards).tolist():
            at = np.flatnonzero(shards == number)
            shard = self._shard(number).result()
            starts = shard.starts[numbers[at] - self._first[number]]
            for i, start, count in zip(at.tolist(), starts.tolist(), counts[at].tolist(), strict=True):
                pieces[i] = np.frombuffer(shard.buffer, self._dtype, count, start)
        return pieces

    def close(self) -> None:
        """Let go of every shard; what is being fetched at the moment is waited for."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._opened, self._pool = {}, None

    def _shard(self, number: int) -> Future[_Shard]:
        self._pool = self._pool or ThreadPoolExecutor(_THREADS)
        opened = self._opened.get(number)
        failed = opened and opened.done() and not opened.cancelled() and isinstance(opened.exception(), storage.Failing)
        if opened is None or failed:  # what failed while it was fetched ahead may not when it is needed
            self._opened[number] = self._pool.submit(self._open, number)
        return self._opened[number]

    def _open(self, number: int) -> _Shard:
        shard = self._index[number]
        raw = self._raw(number)
        try:
            try:
                buffer = _map(raw)
            except FileNotFoundError:
                buffer = self._prepare(number)
        except OSError as error:
            raise fault(error, raw) from None
        if len(buffer) != shard["raw_data"]["bytes"] or get_hash(HASH, buffer) != shard["raw_data"]["hashes"][HASH]:
            raise UserError(CHANGED.format(file=raw))
        ends = np.frombuffer(buffer, np.uint32, shard["samples"] + 1, 4).astype(
            np.int64
        )  # behind the number of samples
        bytes_of_tokens = self._dtype.itemsize * self.lengths[self._first[number] :][: shard["samples"]].astype(
            np.int64
        )
        header = np.diff(ends) - bytes_of_tokens  # the column's size (4), the shape's type (1), the shape (1 or 2)
        if ((header < 6) | (header > 7)).any() or ends[-1] > len(buffer):
            raise UserError(
                f"{raw}: not of the lengths in {self._folder}; copy both again, or prepare the dataset again"
            )
        return _Shard(buffer, ends[1:] - bytes_of_tokens)

    def _prepare(self, number: int) -> mmap.mmap:
        """Fetch and unpack a shard, unless another process has done so meanwhile."""
        raw, shard = self._raw(number), self._index[number]
        packed = shard["zip_data"] and self._folder / shard["zip_data"]["basename"]
        raw.parent.mkdir(parents=True, exist_ok=True)
        with locked(raw.with_name(f"{raw.name}.lock")):
            while True:
                with suppress(FileNotFoundError):  # or removed again by a process that has read it already
                    return _map(raw)
                if self._remote:
                    wanted = shard["zip_data"] or shard["raw_data"]
                    hashed = wanted["hashes"][HASH]
                    storage.fetch(self._remote, wanted["basename"], self._folder, _hash_of, hashed)
                if not packed:
                    return _map(raw)
                try:
                    unpack(packed, raw, shard)
                except (OSError, ValueError) as error:
                    raise fault(error, packed) from None
                if self._remote:
                    packed.unlink()

    def _evict(self, wanted: set[int]) -> None:
        """Remove unpacked shards, the oldest first, until the rest is small enough. Who has one mapped keeps it."""
        files = []
        for number in range(len(self._index)):
            with suppress(FileNotFoundError):
                status = self._raw(number).stat()
                files.append((status.st_mtime, number, status.st_size))
        excess = sum(size for _, _, size in files) - self._keep_bytes
        for _, number, size in sorted(files):
            if excess > 0 and number not in wanted:
                self._raw(number).unlink(missing_ok=True)
                excess -= size

    def _raw(self, number: int) -> Path:
        return self._folder / self._index[number]["raw_data"]["basename"]


def _of_parts(shards: Sequence[NDArray[np.int64]], parts: range) -> NDArray[np.int64]:
    return np.concatenate(shards[parts.start : parts.stop])


def _hash_of(file: Path) -> str:
    return get_hash(HASH, file.read_bytes())


def _map(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            raise UserError(CHANGED.format(file=file))  # which cannot be mapped
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def unpack(packed: Path, raw: Path, shard: dict[str, Any]) -> None:
    """Write the file that a packed one of the index holds, a piece at a time and no more bytes than the index says.

    Raises:
        UserError: its hash is another, or there is more in it.
        OSError, ValueError: what the system, or the decompressor, said.
    """
    if _hash_of(packed) != shard["zip_data"]["hashes"][HASH]:
        raise UserError(f"{packed}: its hash is not the one in the index, so its bytes have changed; {REMEDY}")
    most = shard["raw_data"]["bytes"]

    def write(draft: Path) -> None:
        written = 0
        with (
            pyarrow.CompressedInputStream(pyarrow.OSFile(str(packed)), COMPRESSION) as stream,
            draft.open("wb") as file,
        ):
            while piece := stream.read(1 << 20):
                written += len(piece)
                if written > most:
                    raise UserError(f"{packed}: unpacks to more than the {most:,} bytes that the index says; {REMEDY}")
                file.write(piece)

    write_whole(raw, write)


def some_records(
    folder: Path, split: str, count: int, dtype: str = DTYPE
) -> list[tuple[int, NDArray[np.unsignedinteger]]]:
    """(number, tokens (length,)) of `count` documents, evenly spaced over the first shard of a split; nothing is written beside
    the shards.

    Raises:
        UserError: an index or a shard that cannot be used.
    """
    index = read_index(folder / split, dtype)
    if not index or not index[0]["samples"]:
        return []
    shard, samples = index[0], index[0]["samples"]
    raw, packed = folder / split / shard["raw_data"]["basename"], shard["zip_data"]
    with tempfile.TemporaryDirectory() as scratch:
        try:
            if packed:
                raw = Path(scratch) / "raw"
                unpack(folder / split / packed["basename"], raw, shard)
            content = raw.read_bytes()
            if get_hash(HASH, content) != shard["raw_data"]["hashes"][HASH]:
                raise UserError(CHANGED.format(file=folder / split / shard["raw_data"]["basename"]))
            places = np.frombuffer(content, np.uint32, samples + 1, 4).astype(np.int64)
            chosen = sorted({i * samples // count for i in range(count)})
            return [(number, _tokens(content[places[number] : places[number + 1]], dtype)) for number in chosen]
        except (OSError, ValueError, IndexError) as error:
            raise fault(error, folder / split / (packed or shard["raw_data"])["basename"]) from None


def _tokens(sample: bytes, dtype: str) -> NDArray[np.unsignedinteger]:
    """Of one record: the column's size (4 bytes), the width of the shape (1), the shape, the tokens."""
    return np.frombuffer(sample[5 + 2 ** (sample[4] % 4) :], dtype)
