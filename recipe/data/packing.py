"""Batches of a fixed number of tokens, whose every tensor has the same shape each time: for compilation and CUDA graphs.

Whole documents are packed into bins of `BIN_SEQUENCES` x sequence_length tokens, several to a bin, each attending to itself
alone; what stays free is filled with [PAD] sequences that nothing is predicted in. A batch takes documents in the epoch's order
until one fits into no bin any more, so where it ends follows from where it began and from `lengths.npy`.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recipe.data.batch import BIN_SEQUENCES, IGNORED_LABEL, MOST_OF_FULL, Batch, Collate, Samples
from recipe.data.sampler import GlobalBatch

_BIN_DOCUMENTS = MOST_OF_FULL * BIN_SEQUENCES  # at most, so that `cu_seqlens` has one length
_SPARE = 1.15  # room for predictions, times the rate: three and more standard deviations at 1,024 tokens a bin


@dataclass(frozen=True)
class PackedBatchSampler:
    """Plans the packed batches of an epoch."""

    lengths: NDArray[np.uint16]  # (all documents,) without [CLS] and [SEP]
    sequence_length: int
    bins: int  # of a batch, over all ranks; in a canonical order as many of each part
    parts: int = 1

    def batches(self, numbers: Iterable[NDArray[np.int64]], position: int) -> Iterator[GlobalBatch]:
        """From the batch that begins at this position on; `numbers` are the documents from there, in pieces. Documents at the end
        that fill no batch are left out."""
        capacity = BIN_SEQUENCES * self.sequence_length
        left = np.empty(0, np.int64)
        for more in numbers:
            left = np.concatenate([left, more])
            sizes = np.minimum(self.lengths[left].astype(np.int64), self.sequence_length - 2) + 2
            start = 0
            while True:
                turn = position % self.parts
                bins = fill(sizes[start : start + self.bins * _BIN_DOCUMENTS], self.bins, capacity, self.parts, turn)
                end = start + len(bins)
                if end == len(left):  # the batch may have room for more
                    break
                yield GlobalBatch(position, left[start:end], np.array(bins))
                position, start = position + len(bins), end
            left = left[start:]


def fill(sizes: NDArray[np.int64], bins: int, capacity: int, parts: int = 1, turn: int = 0) -> list[int]:
    """The bin of each document, in order, up to the first that fits into none: each goes where the least room is left over.

    Document i is of part (turn + i) % parts, which has the bins of its own, so many one after another.
    """
    own = bins // parts
    free = [list(range(capacity * own, (capacity + 1) * own)) for _ in range(parts)]  # room x own + bin, ascending
    held, chosen = [0] * bins, []
    for number, size in enumerate(sizes.tolist(), start=turn):
        part = number % parts
        room_left = free[part]
        place = bisect_left(room_left, size * own)
        if place == len(room_left):
            break
        room, at = divmod(room_left.pop(place), own)
        chosen.append(part * own + at)
        held[chosen[-1]] += 1
        if held[chosen[-1]] < _BIN_DOCUMENTS:
            insort(room_left, (room - size) * own + at, hi=place)
    return chosen


@dataclass(frozen=True)
class PackedCollator:
    """Makes the packed form: for B bins of C tokens with room for D sequences and M predictions each,

    document_ids (B x D,), -1 for filling; input_ids (B x C,); cu_seqlens (B x D + 1,) int32, empty sequences behind the
    filling; max_seqlen; masked_indices (B x M,) and labels (B x M,), -100 behind the last prediction; counts (B, 4), of each bin
    what `count_rows` says of a sequence. Predictions of a bin beyond M, which chance hardly brings, are not made.
    """

    collate: Collate
    sequence_length: int
    pad_id: int
    rate: float  # the highest share of a batch's tokens that is predicted
    bins: int

    def __call__(self, samples: Samples) -> Batch:
        length, batch, bins = self.sequence_length, self.collate(samples), samples.bins
        capacity, slots = BIN_SEQUENCES * length, _BIN_DOCUMENTS + BIN_SEQUENCES
        sizes = batch["counts"][:, 1]
        held, used, squared = (
            np.bincount(bins, column, self.bins).astype(np.int64) for column in batch["counts"][:, :3].T
        )
        # where each document stands: its rank in its bin, its tokens' places in the stream
        rank = np.arange(len(bins)) - np.repeat(np.cumsum(held) - held, held)
        all_sizes = np.zeros((self.bins, slots), np.int64)
        numbers = np.full((self.bins, slots), -1, np.int64)
        all_sizes[bins, rank], numbers[bins, rank] = sizes, batch["document_ids"].numpy()
        for b, room in enumerate((capacity - used).tolist()):
            filling = [min(length, room - start) for start in range(0, room, length)]
            all_sizes[b, held[b] : held[b] + len(filling)] = filling
        places = np.arange(len(batch["input_ids"])) + np.repeat(
            np.arange(self.bins) * capacity - (np.cumsum(used) - used), used
        )
        ids = np.full(self.bins * capacity, self.pad_id, np.int64)
        ids[places] = batch["input_ids"].numpy()
        masked, labels, predicted = self._predictions(
            ids, places[batch["masked_indices"].numpy()], batch["labels"].numpy()
        )
        return {
            "document_ids": torch.from_numpy(numbers.ravel()),
            "input_ids": torch.from_numpy(ids),
            "cu_seqlens": torch.from_numpy(np.concatenate([[0], all_sizes.ravel().cumsum()]).astype(np.int32)),
            "max_seqlen": length,
            "masked_indices": torch.from_numpy(masked),
            "labels": torch.from_numpy(labels),
            "counts": np.stack([held, used, squared, predicted], axis=1),
        }

    def _predictions(
        self, ids: NDArray[np.int64], at: NDArray[np.int64], was: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Masked indices and labels (B x M,), and how many each bin has (B,). Restores `ids` where there is no room."""
        capacity, room = len(ids) // self.bins, self.room
        of_bin = at // capacity
        counts = np.bincount(of_bin, minlength=self.bins)
        rank = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        fits = rank < room
        ids[at[~fits]] = was[~fits]
        masked = np.repeat(np.arange(self.bins) * capacity, room).reshape(
            self.bins, room
        )  # a bin's first token, unlabelled
        labels = np.full((self.bins, room), IGNORED_LABEL)
        masked[of_bin[fits], rank[fits]] = at[fits]
        labels[of_bin[fits], rank[fits]] = was[fits]
        return masked.ravel(), labels.ravel(), np.minimum(counts, room)

    @property
    def room(self) -> int:
        """Predictions of a bin, a multiple of 8 for the sake of matrix products."""
        capacity = BIN_SEQUENCES * self.sequence_length
        return min(8 * math.ceil(_SPARE * self.rate * capacity / 8), capacity)
