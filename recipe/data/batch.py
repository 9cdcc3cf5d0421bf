"""Documents to batches. A batch is a stream of real tokens with its masked positions known; for the baseline it is padded, and
with a fixed budget of tokens it is packed, its shapes the same every time (`recipe.data.packing`).

Shapes: S sequences, T real tokens, M masked tokens, L the longest sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe.data.masking import Masker, RateSchedule

IGNORED_LABEL = -100
BIN_SEQUENCES = 8  # full-length sequences that a bin of a packed batch has room for
MOST_OF_FULL = 4  # documents that it holds at most, for each of these
Batch = dict[str, Tensor | int | NDArray[np.int64]]


@dataclass(frozen=True)
class Samples:
    """One rank's documents of a batch, as they are stored; number -1 is filling, in which nothing is predicted."""

    pieces: list[NDArray[np.unsignedinteger]]  # tokens of each
    numbers: NDArray[np.int64]  # in the split
    epoch: int
    seen: int  # documents that the run saw before this batch
    bins: NDArray[np.int64] | None = None  # the bin of each, ascending, in a packed batch


Collate = Callable[[Samples], Batch]  # to a stream, where nothing else is said


@dataclass(frozen=True)
class Collator:
    """Cuts documents to length, adds [CLS] and [SEP], masks, and joins them to a stream:

    document_ids (S,), input_ids (T,), cu_seqlens (S + 1,) int32, max_seqlen, masked_indices (M,), ascending, labels (M,) and
    counts (S, 4), for which see `count_rows`.
    """

    sequence_length: int  # with [CLS] and [SEP]
    masker: Masker
    cls_id: int
    sep_id: int
    schedule: RateSchedule | None = None  # of the masking rate; absent: the masker's own

    @property
    def highest_rate(self) -> float:
        return max(self.schedule.first, self.schedule.last) if self.schedule else self.masker.rate

    def __call__(self, samples: Samples) -> Batch:
        room, numbers = self.sequence_length - 2, samples.numbers
        pieces = [piece[:room] for piece in samples.pieces]
        lengths = np.array([len(piece) + 2 for piece in pieces])
        cu_seqlens = np.concatenate([[0], lengths.cumsum()])
        starts, ends = cu_seqlens[:-1], cu_seqlens[1:] - 1
        ids = np.empty(cu_seqlens[-1], dtype=np.int64)
        inside = np.ones(len(ids), dtype=bool)
        inside[starts] = inside[ends] = False
        ids[inside] = np.concatenate(pieces)
        ids[starts], ids[ends] = self.cls_id, self.sep_id
        positions = np.arange(len(ids)) - np.repeat(starts, lengths)
        special, filling = self.masker.is_special[ids], numbers < 0
        if filling.any():  # hardly ever
            special |= np.repeat(filling, lengths)
        masked, chosen, labels = self.masker(
            ids,
            special,
            np.repeat(numbers, lengths),
            positions,
            samples.epoch,
            self.schedule(samples.seen) if self.schedule else None,
        )
        return {
            "document_ids": torch.from_numpy(numbers),
            "input_ids": torch.from_numpy(masked),
            "cu_seqlens": torch.from_numpy(cu_seqlens.astype(np.int32)),
            "max_seqlen": int(lengths.max()),
            "masked_indices": torch.from_numpy(chosen),
            "labels": torch.from_numpy(labels),
            "counts": count_rows(cu_seqlens, chosen),
        }


def count_rows(cu_seqlens: NDArray[np.integer], masked_indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """What each sequence of a stream counts for, (S, 4): sequences (1), real tokens, their number squared, those with a label.

    A batch carries it as `counts`, a packed one a row per bin. It is numpy's, so that nothing moves it to a device, where looking
    at it would be a wait.
    """
    counts = np.ones((len(cu_seqlens) - 1, 4), np.int64)
    counts[:, 1] = np.diff(cu_seqlens)
    counts[:, 2] = counts[:, 1] ** 2
    counts[:, 3] = np.diff(masked_indices.searchsorted(cu_seqlens))
    return counts


@dataclass(frozen=True)
class PaddedCollator:
    """Makes the padded form: document_ids (S,); input_ids, attention_mask, labels, all (S, L), with -100 for no label;
    masked_indices (M,), ascending, the places of the labels in the flattened (S, L); counts."""

    collate: Collate
    pad_id: int

    def __call__(self, samples: Samples) -> Batch:
        batch = self.collate(samples)
        return {**pad_batch(batch, self.pad_id), "counts": batch["counts"]}


def pad_batch(batch: Batch, pad_id: int) -> Batch:
    """The tensors of a stream, padded."""
    lengths = batch["cu_seqlens"].diff().long()
    real = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]  # (S, L)
    padded = {"document_ids": batch["document_ids"], "attention_mask": real.long()}
    padded["input_ids"] = torch.full(real.shape, pad_id).masked_scatter(real, batch["input_ids"])
    labels = torch.full_like(batch["input_ids"], IGNORED_LABEL)
    labels[batch["masked_indices"]] = batch["labels"]
    padded["labels"] = torch.full(real.shape, IGNORED_LABEL).masked_scatter(real, labels)
    padded["masked_indices"] = real.flatten().nonzero()[:, 0][batch["masked_indices"]]
    return padded


def count_sequences(batch: Batch) -> int:
    return int(batch["counts"][:, 0].sum())


def count_tokens(batch: Batch) -> dict[str, int]:
    """Real tokens, and those of them that have a label, under Composer's names."""
    _, tokens, _, labelled = batch["counts"].sum(axis=0).tolist()
    return {"total": tokens, "loss_generating": labelled}


def split_batch(batch: Batch, sequences: int) -> list[Batch]:
    """Pieces of at most `sequences` sequences, in order: microbatches. Of a packed batch: of as many full-length ones' tokens."""
    rows, size = len(batch["counts"]), int(sequences) // sequences_of_row(batch)
    if size >= rows:
        return [batch]
    split = _split_padded if "cu_seqlens" not in batch else _split_packed if _is_packed(batch) else _split_stream
    pieces = []
    for start in range(0, rows, size):
        end = start + size  # of the last piece perhaps behind the end, as slices may be
        pieces.append({**split(batch, start, end), "counts": batch["counts"][start:end]})
    return pieces


def sequences_of_row(batch: Batch) -> int:
    """How many full-length sequences a row of `counts` stands for: a batch is split between rows."""
    return BIN_SEQUENCES if _is_packed(batch) else 1


def _is_packed(batch: Batch) -> bool:
    """A bin has room for several documents."""
    return len(batch["document_ids"]) > len(batch["counts"])


def _split_packed(batch: Batch, start: int, end: int) -> Batch:
    """Some of the bins; each has the same share of every tensor."""
    bins = len(batch["counts"])
    pieces = {}
    for name in ("document_ids", "input_ids", "masked_indices", "labels"):
        pieces[name] = batch[name].view(bins, -1)[start:end].flatten()
    slots = len(batch["document_ids"]) // bins
    first = start * (len(batch["input_ids"]) // bins)
    pieces["cu_seqlens"] = batch["cu_seqlens"][start * slots : end * slots + 1] - first
    pieces["masked_indices"] = pieces["masked_indices"] - first
    return {**pieces, "max_seqlen": batch["max_seqlen"]}


def _split_padded(batch: Batch, start: int, end: int) -> Batch:
    pieces = {name: value[start:end] for name, value in batch.items() if name not in ("masked_indices", "stage")}
    length = batch["input_ids"].shape[1]
    m_first, m_last = _between(batch["masked_indices"], start * length, end * length)
    return {**pieces, "masked_indices": batch["masked_indices"][m_first:m_last] - start * length}


def _split_stream(batch: Batch, start: int, end: int) -> Batch:
    bounds = batch["cu_seqlens"][start : end + 1]
    first, last = int(bounds[0]), int(bounds[-1])
    m_first, m_last = _between(batch["masked_indices"], first, last)
    return {
        "document_ids": batch["document_ids"][start:end],
        "input_ids": batch["input_ids"][first:last],
        "cu_seqlens": bounds - first,
        "max_seqlen": int(bounds.diff().max()),
        "masked_indices": batch["masked_indices"][m_first:m_last] - first,
        "labels": batch["labels"][m_first:m_last],
    }


def _between(ascending: Tensor, first: int, end: int) -> list[int]:
    """The places in `ascending` between which its values are from `first` to below `end`."""
    return torch.searchsorted(ascending, torch.tensor([first, end])).tolist()
