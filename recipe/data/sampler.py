"""Samplers: the order in which an epoch sees its documents, found from any place of it without what comes before; its batches.

A global batch is planned for all ranks at once, and each reads its part: how many ranks there are changes nothing, and where a
run is continued follows from the number of documents that it has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**18  # documents that are shuffled together


@dataclass(frozen=True)
class Block:
    """Documents that are shuffled together: those of a few shards."""

    shards: NDArray[np.int64]
    following: NDArray[np.int64]  # shards of the next block, to be fetched meanwhile
    numbers: NDArray[np.int64]  # documents in the epoch's order


@dataclass(frozen=True)
class EpochSampler:
    """Shards are shuffled among themselves, then documents among the shards that lie together; without a seed nothing is.

    The memory is that of one block, the time to find a place that of the shards' number.
    """

    shard_sizes: Sequence[int]  # documents
    seed: int | None
    epoch: int

    def after(self, position: int) -> Iterator[Block]:
        """Blocks from this position on, the first one without what comes before it."""
        sizes = np.asarray(self.shard_sizes, np.int64)
        starts = np.cumsum(sizes) - sizes
        order = np.arange(len(sizes))
        if self.seed is not None:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(len(sizes))
        of_block = (np.cumsum(sizes[order]) - sizes[order]) // _BLOCK  # a shard is in the block that it begins in
        cuts = np.flatnonzero(np.diff(of_block)) + 1
        blocks = [*np.split(order, cuts), np.empty(0, np.int64)]
        for number, (shards, following) in enumerate(zip(blocks[:-1], blocks[1:], strict=True)):
            count = int(sizes[shards].sum())
            if position < count:
                numbers = np.concatenate([np.arange(starts[i], starts[i] + sizes[i]) for i in shards])
                if self.seed is not None:
                    numbers = np.random.default_rng([self.seed, self.epoch, number]).permutation(numbers)
                yield Block(shards, following, numbers[position:])
            position = max(position - count, 0)


@dataclass(frozen=True)
class GlobalBatch:
    """The documents of one batch, of all ranks."""

    seen: int  # documents of the epoch before this batch
    numbers: NDArray[np.int64]  # (documents,) in the epoch's order
    bins: NDArray[np.int64] | None = None  # (documents,) the bin of each, in a packed batch

    def of_rank(self, rank: int, ranks: int, bins: int) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """This rank's documents, and where batches are packed which of its `bins` each belongs to, ascending."""
        if self.bins is None:
            return np.array_split(self.numbers, ranks)[rank], None
        local = self.bins - rank * bins
        mine = np.flatnonzero((local >= 0) & (local < bins))
        mine = mine[np.argsort(local[mine], kind="stable")]
        return self.numbers[mine], local[mine]


@dataclass(frozen=True)
class Stage:
    """A part of a run whose batches have a form of their own."""

    first: int  # documents that the run has seen when it begins
    sequence_length: int
    batch_size: int  # sequences over all ranks, or in packed batches the tokens of as many full ones


@dataclass(frozen=True)
class BatchSampler:
    """Plans batches of a fixed number of documents."""

    documents: int  # of a batch
    whole: bool  # leave out those at the end that fill no batch

    def batches(self, numbers: Iterable[NDArray[np.int64]], position: int) -> Iterator[GlobalBatch]:
        """From the batch that begins at this position on; `numbers` are the documents from there, in pieces."""
        left = np.empty(0, np.int64)
        for more in numbers:
            left = np.concatenate([left, more])
            end = len(left) // self.documents * self.documents
            for start in range(0, end, self.documents):
                yield GlobalBatch(position + start, left[start : start + self.documents])
            left, position = left[end:], position + end
        if len(left) and not self.whole:
            yield GlobalBatch(position, left)
