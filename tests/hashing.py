"""Batches as hashes, for tests that ask whether two loaders give the same."""

from __future__ import annotations

import hashlib

from recipe.data.batch import sequences_of_row, split_batch


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
