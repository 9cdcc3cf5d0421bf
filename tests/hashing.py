"""Batches as hashes, for tests that ask whether two loaders give the same."""

from __future__ import annotations

import hashlib

from recipe.config import Data
from recipe.data.batch import sequences_of_row, split_batch
from recipe.data.shards import read_info
from recipe.data.stream import Loader, open_loader


def hashes(batch: dict) -> list[str]:
    """Of everything in a batch: one of each sequence, or of each bin of a packed batch."""
    found = []
    for piece in split_batch(batch, sequences_of_row(batch)):
        digest = hashlib.sha256()
        for name in ("document_ids", "input_ids", "cu_seqlens", "masked_indices", "labels", "attention_mask"):
            if name in piece and piece[name].ndim == 2:  # a padded row, whose width is its batch's
                digest.update(piece[name][piece["attention_mask"].bool()].numpy().tobytes())
            elif name in piece:
                digest.update(piece[name].numpy().tobytes())
        found.append(digest.hexdigest())
    return found


def open_some(folder: str, batching: str, batch_size: int, workers: int, train: bool = True) -> Loader:
    """Sequences of 64 tokens, whole words masked at a rate that falls."""
    data = Data(path=folder, sequence_length=64, masking="word", mask_rate_end=0.1)
    return open_loader(
        data, read_info(folder), train=train, batch_size=batch_size, seed=17, batching=batching, workers=workers,
        run_documents=4_000,
    )  # fmt: skip
