"""From shards to a loader of batches, continued in the middle of an epoch without reading what came before."""

from __future__ import annotations

import dataclasses
import hashlib
import signal
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from streaming.base.world import World
from torch.utils.data import DataLoader, IterableDataset

from recipe.config import Data
from recipe.data import network, storage
from recipe.data.batch import BIN_SEQUENCES, Batch, Collate, Collator, PaddedCollator, Samples
from recipe.data.cache import local_folder
from recipe.data.documents import Documents
from recipe.data.masking import Masker, RateSchedule, evenly
from recipe.data.network import Network
from recipe.data.packing import PackedBatchSampler, PackedCollator
from recipe.data.sampler import BatchSampler, GlobalBatch, Stage, order_of, parts_of
from recipe.data.shards import DatasetInfo
from recipe.data.words import words_of
from recipe.errors import UserError


@dataclass(frozen=True)
class Making:
    """How the batches of a stage are made."""

    first: int  # documents that the run has seen when it begins
    sampler: BatchSampler | PackedBatchSampler
    collate: Collate
    most: int  # tokens of a document that are read


class Batches(IterableDataset):
    """The batches of this rank, epoch after epoch; an evaluation's are the same in every pass. Where there are several stages a
    batch has a `stage`, its number.

    Every worker process plans all batches of all ranks, and reads its share of those whose turn is its.
    """

    def __init__(self, documents: Documents, stages: Sequence[Making], seed: int | None) -> None:
        """`seed` is of the order, None that of an evaluation."""
        self.documents = documents
        self.stages = tuple(stages)
        self._seed = seed
        self._epoch, self._position = (0 if seed is None else -1), 0
        self._resumed = False
        self.handed_out = False  # a batch of this epoch

    def __len__(self) -> int:
        """Batches of a whole epoch. Packed or of several stages, they are not known beforehand: `TypeError`, as of what has no
        length."""
        sampler = self.stages[0].sampler
        if isinstance(sampler, PackedBatchSampler) or len(self.stages) > 1:
            raise TypeError("packed batches and those of several stages are not counted beforehand")
        size, documents = sampler.documents, len(self.documents)
        return documents // size if sampler.whole else -(-documents // size)

    def begin_epoch(self) -> None:
        """The next one, or the one that `load_state_dict` gave."""
        if not self._resumed and self._seed is not None:
            self._epoch, self._position = self._epoch + 1, 0
        self._resumed = self.handed_out = False

    def __iter__(self) -> Iterator[tuple[Batch | UserError, Network]]:
        """Each with what the network has cost this process since. An error ends it, as its last item: raised in a worker process,
        it would cost seconds a worker, and its one line."""
        world = World.detect()
        try:
            for number, (stage, global_batch) in enumerate(self.global_batches(world)):
                if number % world.workers_per_rank == world.worker_of_rank:
                    yield self._read(stage, global_batch, world.rank, world.num_ranks), network.take()
        except UserError as error:
            yield error, network.take()
        finally:
            self.documents.close()

    def global_batches(self, world: World) -> Iterator[tuple[int, GlobalBatch]]:
        """What is left of the epoch, each with its stage, which is that of its first document; a block's shards are opened when
        it is reached, those of this rank's parts."""
        parts = self.stages[0].sampler.parts
        epoch = order_of(self.documents.sizes, self._seed, self._epoch, parts)
        mine, here = parts_of(world.rank, world.num_ranks, parts), parts_of(world.node, world.num_nodes, parts)

        def numbers(position: int) -> Iterator[NDArray[np.int64]]:
            for block in epoch.after(position):
                self.documents.enter(block, world.worker_of_node, mine, here)
                yield block.numbers

        position, stage, over = self._position, -1, False
        while not over:
            stage, over = self._stage_at(position), True
            for global_batch in self.stages[stage].sampler.batches(numbers(position), position):
                yield stage, global_batch
                position = global_batch.seen + len(global_batch.numbers)
                if self._stage_at(position) != stage:
                    over = False
                    break

    def _stage_at(self, position: int) -> int:
        """The stage of the batch that begins at this position of the epoch."""
        seen = self._epoch * len(self.documents) + position
        return bisect_right([stage.first for stage in self.stages], seen) - 1

    def _read(self, stage: int, global_batch: GlobalBatch, rank: int, ranks: int) -> Batch:
        making = self.stages[stage]
        bins = making.sampler.bins // ranks if isinstance(making.sampler, PackedBatchSampler) else 0
        numbers, bins_of = global_batch.of_rank(rank, ranks, bins)
        named = numbers
        if bins_of is None and not len(numbers):  # an evaluation's last batch has fewer documents than there are ranks
            numbers, named = global_batch.numbers[:1], np.array([-1])
        seen = self._epoch * len(self.documents) + global_batch.seen
        batch = making.collate(Samples(self.documents.read(numbers, making.most), named, self._epoch, seen, bins_of))
        return {**batch, "stage": stage} if len(self.stages) > 1 else batch

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, int]:
        """Composer asks with the documents that all ranks have seen since the epoch's beginning."""
        assert from_beginning
        over = self.handed_out and num_samples == 0  # Composer has turned to the next epoch
        return {"epoch": max(self._epoch, 0) + over, "sample_in_epoch": num_samples}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["sample_in_epoch"]
        self._resumed = True


class Loader(DataLoader):
    """Its workers live for an epoch, so that they start with the epoch's number."""

    def __iter__(self) -> Iterator[Batch]:
        self.dataset.begin_epoch()
        for batch, spent in super().__iter__():
            network.add(spent)
            if isinstance(batch, UserError):
                raise batch
            self.dataset.handed_out = True
            yield batch


def check_vocabulary(folder: Path, info: DatasetInfo) -> None:
    """Raise a `UserError` if the tokenizer beside the shards is not the one that they were made with."""
    file = folder / "tokenizer" / info.vocabulary.file
    if not file.is_file():
        raise UserError(f"{file}: no such file, so the shards' tokens have no meaning; prepare the dataset again")
    if hashlib.sha256(file.read_bytes()).hexdigest() != info.vocabulary.sha256:
        raise UserError(
            f"{file} is not the vocabulary that the shards were made with (dataset.json has another sha256); "
            "put the old one back, or prepare the dataset again"
        )


def open_documents(data: Data, info: DatasetInfo, split: str) -> Documents:
    """Those of a split; a `UserError` if its index or lengths cannot be used."""
    remote = data.path if storage.is_remote(data.path) else None
    return Documents(local_folder(data), split, remote, data.cache_gib, info.dtype)


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
    fallen: Callable[[float], float] = evenly,
    collator: Callable[[Collator], Collate] | None = None,
    stages: Sequence[Stage] = (),
) -> Loader:
    """Batches of `batch_size` sequences a rank, or of as many full-length ones' tokens, of the training or the evaluation split.

    `batching` is sequences, tokens (evaluation: sequences) or padded; `run_documents`, what the whole run sees, is needed where
    the masking rate changes, `fallen` says how (`recipe.data.masking.RateSchedule`); `collator` is the objective's, absent:
    masking alone; `stages` are a training run's, instead of one with this batch and the length in `data`.

    Raises:
        UserError: the split's index or lengths cannot be used, or it does not fill one batch.
    """
    documents = open_documents(data, info, data.train_split if train else data.eval_split)
    schedule = None
    if train and data.mask_rate_end is not None:
        schedule = RateSchedule(data.mask_rate, data.mask_rate_end, run_documents, fallen)
    masking, ranks = _masking(data, info, train, seed, schedule), World.detect().num_ranks
    parts = data.canonical_parts if train and data.order == "canonical" else 1

    def making(stage: Stage) -> Making:
        length, masked = stage.sequence_length, dataclasses.replace(masking, sequence_length=stage.sequence_length)
        collate = collator(masked) if collator else masked
        sampler: BatchSampler | PackedBatchSampler = BatchSampler(stage.batch_size, whole=train, parts=parts)
        if batching == "padded":
            collate = PaddedCollator(collate, info.vocabulary.pad_id)
        elif train and batching == "tokens":
            bins = stage.batch_size // BIN_SEQUENCES
            sampler = PackedBatchSampler(documents.lengths, length, bins, parts)
            collate = PackedCollator(collate, length, info.vocabulary.pad_id, masking.highest_rate, bins // ranks)
        return Making(stage.first, sampler, collate, length - 2)

    stages = stages or [Stage(0, data.sequence_length, batch_size * ranks)]
    batches = Batches(documents, [making(stage) for stage in stages], data.shuffle_seed if train else None)
    if train:
        _check_filled(batches, data)
    return Loader(
        batches,
        batch_size=None,
        collate_fn=_as_it_is,  # the default would make a tensor of the counts, which stay on the host
        num_workers=workers,
        worker_init_fn=_ignore_interrupts,
        pin_memory=torch.cuda.is_available(),
    )


def _masking(data: Data, info: DatasetInfo, train: bool, seed: int, schedule: RateSchedule | None) -> Collator:
    vocabulary = info.vocabulary
    masker = Masker(
        rate=data.mask_rate if train else data.eval_mask_rate,
        mask_id=vocabulary.mask_id,
        ordinary_ids=np.setdiff1d(np.arange(vocabulary.size), vocabulary.special_ids),
        seed=seed if train else 0,
        kind=data.masking if train else "token",
        words=words_of(local_folder(data) / "tokenizer") if train and data.masking == "word" else None,
        ids=max(vocabulary.size, 2**16),
    )
    return Collator(data.sequence_length, masker, vocabulary.cls_id, vocabulary.sep_id, schedule)


def _check_filled(batches: Batches, data: Data) -> None:
    for sampler in (stage.sampler for stage in batches.stages):
        blocks = order_of(batches.documents.sizes, data.shuffle_seed, 0, sampler.parts).after(0)
        if next(sampler.batches((block.numbers for block in blocks), 0), None) is not None:
            continue
        what = f"{sampler.documents:,} documents" if isinstance(sampler, BatchSampler) else (
            f"{sampler.bins * BIN_SEQUENCES * sampler.sequence_length:,} tokens"
        )  # fmt: skip
        raise UserError(f"{data.path}/{data.train_split}: not one batch of {what} in it; lower batch_size")


def _ignore_interrupts(_: int) -> None:
    """Ctrl-C, and what a scheduler sends, reach every process of a run; the one that trains ends the others."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(item: tuple[Batch | UserError, Network]) -> tuple[Batch | UserError, Network]:
    return item
