"""From shards to a loader of batches, resumable in the middle of an epoch."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from streaming import StreamingDataLoader, StreamingDataset
from streaming.base.constant import SHM_TO_CLEAN
from streaming.base.world import World
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from recipe.config import Data
from recipe.data.batch import BIN_SEQUENCES, Batch, Collator, count_sequences
from recipe.data.masking import Masker, RateSchedule
from recipe.data.packing import EpochOrder, Packed, PackedCollator, Packer
from recipe.data.parts import alone
from recipe.data.shard_files import fault, last_line
from recipe.data.shards import HASH, LENGTHS, DatasetInfo
from recipe.errors import UserError

_SHARED = Path("/dev/shm")


class Documents(StreamingDataset):
    """Tokenised documents, with their numbers in the split, the epoch, and what the run has seen before their batch."""

    epoch = 0
    _first = 0  # documents of the epoch that were seen before a resume
    _fault: BaseException | None = None  # of the threads that open shards

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        self.epoch, self._first = epoch, sample_in_epoch  # the one place where a worker process learns it
        return super()._get_work(epoch, sample_in_epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        ranks = World.detect().num_ranks
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            for i, item in enumerate(super().__iter__()):
                batch = i // self.batch_size * workers + worker  # workers take turns
                item["seen"] = self.epoch * self.size + self._first + batch * self.batch_size * ranks
                yield item
        except RuntimeError as error:  # in which Streaming only says that its thread has failed
            raise (self._fault or error) from None
        if self._fault:  # it may as well just end
            raise self._fault

    def prepare_shard(self, shard_id: int, blocking: bool = True) -> None:
        """As Streaming does; what fails is a `UserError`, and two runs on one folder do not unpack the same shard at once."""
        shard = self.shards[shard_id]
        raw = Path(shard.dirname) / shard.split / shard.raw_data.basename
        try:
            if not raw.is_file():
                with alone(raw.with_name(f"{raw.name}.lock")):
                    # Every worker opens it by itself: one that left this to another would wait for ever for a damaged shard.
                    self.streams[self.stream_per_shard[shard_id]].prepare_shard(shard)
            super().prepare_shard(shard_id, blocking)
        except (OSError, ValueError, RuntimeError) as error:
            file = raw.with_name(Path((shard.zip_data or shard.raw_data).basename).name)
            self._fault = fault(error, file)
            raise self._fault from None

    def on_exception(self, future: Future) -> None:
        """Instead of a traceback from a thread: `__iter__` raises the error."""
        if future.exception():
            self._fault = self._fault or future.exception()
            self._event.set()

    def __getitem__(self, at: int) -> dict[str, Any]:
        """tokens (length,) uint16, id, epoch."""
        return {"tokens": super().__getitem__(at)["tokens"], "id": at, "epoch": self.epoch}


class EvaluationDocuments(Documents):
    """The same in every pass: its epoch, which masking depends on, is always 0."""

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {**super().__getitem__(at), "epoch": 0}


class Loader(StreamingDataLoader):
    def _get_batch_size(self, batch: Batch) -> int:
        return count_sequences(batch)

    def __iter__(self) -> Iterator[Batch]:
        with _one_line():
            yield from super().__iter__()


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise last_line(error) from None


class PackedDocuments(IterableDataset):
    """Packed batches of this rank, epoch after epoch."""

    def __init__(self, documents: Documents, packer: Packer, collator: PackedCollator, seed: int) -> None:
        self._documents = documents
        self._packer = packer
        self._collator = collator
        self._seed = seed
        self._epoch, self._position = -1, 0
        self._resumed = False

    def begin_epoch(self) -> None:
        """The next one, or the one that `load_state_dict` gave."""
        if not self._resumed:
            self._epoch, self._position = self._epoch + 1, 0
        self._resumed = False

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        order = EpochOrder(self._documents.samples_per_shard, self._seed, self._epoch)
        for number, packed in enumerate(self._packer.batches(order, self._position)):
            if number % workers == worker:
                yield self._read(packed)

    def _read(self, packed: Packed) -> Batch:
        """This rank's bins of a batch."""
        bins = self._collator.bins
        local = packed.bins - World.detect().rank * bins
        mine = np.flatnonzero((local >= 0) & (local < bins))
        mine = mine[np.argsort(local[mine], kind="stable")]
        seen = self._epoch * self._documents.size + packed.seen
        items = [
            {"tokens": self._documents[at]["tokens"], "id": at, "epoch": self._epoch, "seen": seen}
            for at in packed.numbers[mine].tolist()
        ]
        return self._collator(items, local[mine])

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, int]:
        """Composer asks with the documents that all ranks have seen since the epoch's beginning."""
        assert from_beginning
        return {"epoch": max(self._epoch, 0), "sample_in_epoch": num_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["sample_in_epoch"]
        self._resumed = True


class PackedLoader(DataLoader):
    """Its workers live for an epoch, so that they start with the epoch's number."""

    def __iter__(self) -> Iterator[Batch]:
        self.dataset.begin_epoch()
        with _one_line():
            yield from super().__iter__()


def free_shared_memory() -> None:
    """Remove what dead runs left in shared memory, so that this one can start.

    What a living process has mapped stays. Streaming's own cleaning does not ask, and takes it from under every other run.
    """
    used: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # has ended meanwhile, or is another user's
            used.update(re.findall(rf"{_SHARED}/(\d{{6}})_", maps.read_text()))
    for name in SHM_TO_CLEAN:
        for file in _SHARED.glob(f"{'[0-9]' * 6}_{name}"):
            if file.name[:6] not in used:
                with suppress(OSError):  # another rank was faster, or it is another user's
                    file.unlink()


def check_vocabulary(path: str, info: DatasetInfo) -> None:
    """Raise a `UserError` if the tokenizer beside the shards is not the one that they were made with."""
    file = Path(path) / "tokenizer" / "vocab.txt"
    if not file.is_file():
        raise UserError(f"{file}: no such file, so the shards' tokens have no meaning; prepare the dataset again")
    if hashlib.sha256(file.read_bytes()).hexdigest() != info.vocabulary.sha256:
        raise UserError(
            f"{file} is not the vocabulary that the shards were made with (dataset.json has another sha256); "
            "put the old one back, or prepare the dataset again"
        )


def open_loader(
    data: Data,
    info: DatasetInfo,
    *,
    train: bool,
    batch_size: int,
    seed: int,
    batching: str,
    workers: int,
    run_documents: int | None = None,
) -> Loader | PackedLoader:
    """Batches of `batch_size` sequences a rank, or of as many full-length ones' tokens, of the training or the evaluation split.

    `batching` is sequences, tokens (evaluation: sequences) or padded; `run_documents`, what the whole run sees, is needed where
    the masking rate changes.
    """
    documents = _documents(data, train, batch_size)
    vocabulary = info.vocabulary
    special = [vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id]
    schedule = None
    if train and data.mask_rate_end is not None:
        schedule = RateSchedule(data.mask_rate, data.mask_rate_end, run_documents)
    masker = Masker(
        rate=data.mask_rate if train else data.eval_mask_rate,
        mask_id=vocabulary.mask_id,
        ordinary_ids=np.setdiff1d(np.arange(vocabulary.size), special),
        seed=seed if train else 0,
        kind=data.masking if train else "token",
        continues=_continuations(data.path) if train and data.masking == "word" else None,
    )
    collator = Collator(
        data.sequence_length,
        masker,
        vocabulary.cls_id,
        vocabulary.sep_id,
        vocabulary.pad_id,
        padded=batching == "padded",
        schedule=schedule,
    )
    if train and batching == "tokens":
        return _packed_loader(data, documents, collator, batch_size, workers)
    return Loader(
        documents,
        batch_size=batch_size,
        collate_fn=collator,
        drop_last=train,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _documents(data: Data, train: bool, batch_size: int) -> Documents:
    split = data.train_split if train else data.eval_split
    with _one_run_at_a_time():
        return (Documents if train else EvaluationDocuments)(
            local=str(Path(data.path) / split),
            shuffle=train,
            shuffle_seed=data.shuffle_seed,
            batch_size=batch_size,
            num_canonical_nodes=1 if not train else None,
            validate_hash=HASH,
        )


@contextmanager
def _one_run_at_a_time() -> Iterator[None]:
    """Streaming's ranks look for a name that is free in shared memory, and then one takes it: two runs of a machine that start
    together would take the same."""
    lock = Path(tempfile.gettempdir()) / f"shared-memory-names-{os.getuid()}.lock"
    with alone(lock) if World.detect().is_local_leader else nullcontext():
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # no rank looks before its leader holds the lock
        yield


def _continuations(path: str) -> NDArray[np.bool_]:
    """(65536,) by token id: whether it goes on with the word before it."""
    tokens = (Path(path) / "tokenizer" / "vocab.txt").read_text("utf-8").split("\n")
    table = np.zeros(2**16, bool)
    table[: len(tokens)] = [token.startswith("##") for token in tokens]
    return table


def _as_it_is(batch: Batch) -> Batch:
    return batch


def _packed_loader(data: Data, documents: Documents, collator: Collator, batch_size: int, workers: int) -> PackedLoader:
    file = Path(data.path) / data.train_split / LENGTHS
    if not file.is_file():
        raise UserError(f"{file}: no such file, and data.batching=tokens needs it; prepare the dataset again")
    bins = batch_size // BIN_SEQUENCES
    packer = Packer(np.load(file, mmap_mode="r"), data.sequence_length, bins * World.detect().num_ranks)
    if next(packer.batches(EpochOrder(documents.samples_per_shard, data.shuffle_seed, 0), 0), None) is None:
        tokens = packer.bins * BIN_SEQUENCES * data.sequence_length
        raise UserError(f"{file.parent}: not one batch of {tokens:,} tokens in it; lower batch_size")
    return PackedLoader(
        PackedDocuments(documents, packer, PackedCollator(collator, bins), data.shuffle_seed),
        batch_size=None,
        collate_fn=_as_it_is,  # the default would make a tensor of the counts, which stay on the host
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
