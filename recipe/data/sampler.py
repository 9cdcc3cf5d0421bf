"""Samplers: the order in which an epoch sees its documents, found from any place of it without what comes before; its batches.

A global batch is planned for all ranks at once, and each reads its share: how many ranks there are changes nothing, and where a
run is continued follows from the number of documents that it has seen.

There are two orders. `EpochSampler` shuffles all shards, so every machine reads all of them. `CanonicalSampler` deals the
documents into canonical parts once and for all and takes one of each in turn; a batch lies there sorted by part, so that each of
N machines reads its own parts alone, whatever N.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**18  # documents that are shuffled together
_NONE = np.empty(0, np.int64)


@dataclass(frozen=True)
class Block:
    """Documents that are shuffled together: those of a few shards. Shards stand by canonical part; without parts there is one."""

    before: tuple[NDArray[np.int64], ...]  # shards of the block before, which a batch may still hold documents of
    shards: tuple[NDArray[np.int64], ...]
    following: tuple[NDArray[np.int64], ...]  # shards of the next block, to be fetched meanwhile
    numbers: NDArray[np.int64]  # documents in the epoch's order


@dataclass(frozen=True)
class _Pieces:
    """Documents of some shards, a run of consecutive ones of each."""

    shards: NDArray[np.int64]
    starts: NDArray[np.int64]  # (shards,) the first document
    sizes: NDArray[np.int64]  # (shards,) documents

    def of(self, chosen: NDArray[np.int64]) -> _Pieces:
        return _Pieces(self.shards[chosen], self.starts[chosen], self.sizes[chosen])

    def blocks(self, key: Sequence[int] | None, most: int, position: int) -> Iterator[Block]:
        """From this position on, the first without what comes before it. The pieces are shuffled by `key`, then the documents of
        those that lie within `most` documents; without a key nothing is."""
        order = np.arange(len(self.shards))
        if key is not None:
            order = np.random.default_rng(key).permutation(len(order))
        sizes = self.sizes[order]
        of_block = (np.cumsum(sizes) - sizes) // most  # a piece is in the block that it begins in
        cuts = np.flatnonzero(np.diff(of_block)) + 1
        blocks = [self.of(chosen) for chosen in (_NONE, *np.split(order, cuts), _NONE)]
        for number, block in enumerate(blocks[1:-1]):
            count = int(block.sizes.sum())
            if position < count:
                ranges = [np.arange(a, a + n) for a, n in zip(block.starts, block.sizes, strict=True)]
                numbers = np.concatenate(ranges)
                if key is not None:
                    numbers = np.random.default_rng([*key, number]).permutation(numbers)
                around = (blocks[number].shards,), (block.shards,), (blocks[number + 2].shards,)
                yield Block(*around, numbers[position:])
            position = max(position - count, 0)


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
        every = _Pieces(np.arange(len(sizes)), np.cumsum(sizes) - sizes, sizes)
        return every.blocks(None if self.seed is None else [self.seed, self.epoch], _BLOCK, position)


@dataclass(frozen=True)
class CanonicalSampler:
    """Document p of an epoch is the next one of part p % parts, whose own order is an `EpochSampler`'s of its shards.

    Which documents a part has, the seed decides for all epochs: shards in an order of its own, cut into parts of as many
    documents, but for one, so two neighbours may share a shard. A block of a part is a part's share of `_BLOCK`.
    """

    shard_sizes: Sequence[int]  # documents
    seed: int
    epoch: int
    parts: int

    def after(self, position: int) -> Iterator[Block]:
        """Blocks from this position on, a new one wherever a part comes to its next one. An epoch ends where a part has none
        left."""
        row, skipped = divmod(position, self.parts)
        of_parts = [
            pieces.blocks([self.seed, self.epoch, part], max(_BLOCK // self.parts, 1), row)
            for part, pieces in enumerate(self._parts())
        ]
        heads = [next(blocks, None) for blocks in of_parts]
        while all(heads):
            count = min(len(head.numbers) for head in heads)
            numbers = np.stack([head.numbers[:count] for head in heads], axis=1).ravel()
            shards = [tuple(getattr(head, name)[0] for head in heads) for name in ("before", "shards", "following")]
            yield Block(*shards, numbers[skipped:])
            skipped = 0
            for part, head in enumerate(heads):
                left = head.numbers[count:]
                heads[part] = replace(head, numbers=left) if len(left) else next(of_parts[part], None)

    def _parts(self) -> list[_Pieces]:
        sizes = np.asarray(self.shard_sizes, np.int64)
        order = np.random.default_rng(self.seed).permutation(len(sizes))
        starts, ends = (np.cumsum(sizes) - sizes)[order], np.cumsum(sizes[order])  # in the dataset; in this order
        bounds = np.arange(self.parts + 1) * int(sizes.sum()) // self.parts
        found = []
        for low, high in zip(bounds[:-1], bounds[1:], strict=True):
            begins = ends - sizes[order]
            first, last = np.maximum(begins, low), np.minimum(ends, high)
            within = np.flatnonzero(first < last)
            found.append(_Pieces(order, starts + first - begins, last - first).of(within))
        return found


def order_of(sizes: Sequence[int], seed: int | None, epoch: int, parts: int) -> EpochSampler | CanonicalSampler:
    """One part is the order without parts; more need a seed."""
    return CanonicalSampler(sizes, seed, epoch, parts) if parts > 1 else EpochSampler(sizes, seed, epoch)


def parts_of(share: int, shares: int, parts: int) -> range:
    """The parts that one of so many equal shares of a batch has documents of: a rank's, or a machine's."""
    return range(share * parts // shares, -(-(share + 1) * parts // shares))


@dataclass(frozen=True)
class GlobalBatch:
    """The documents of one batch, of all ranks."""

    seen: int  # documents of the epoch before this batch
    numbers: NDArray[np.int64]  # (documents,) in the epoch's order; of a canonical one part by part, unless packed
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

    documents: int  # of a batch, in a canonical order as many of each part
    whole: bool  # leave out those at the end that fill no batch
    parts: int = 1

    def batches(self, numbers: Iterable[NDArray[np.int64]], position: int) -> Iterator[GlobalBatch]:
        """From the batch that begins at this position on; `numbers` are the documents from there, in pieces."""
        left = np.empty(0, np.int64)
        for more in numbers:
            left = np.concatenate([left, more])
            end = len(left) // self.documents * self.documents
            for start in range(0, end, self.documents):
                batch = left[start : start + self.documents]
                yield GlobalBatch(position + start, batch.reshape(-1, self.parts).T.ravel())
            left, position = left[end:], position + end
        if len(left) and not self.whole:
            yield GlobalBatch(position, left)
