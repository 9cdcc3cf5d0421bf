"""The batches that every model of `benchmarks.throughput` is trained on: a prepared dataset's, or drawn with C4's lengths.

Drawn text is made of a small Markov chain over words of Zipf's frequencies, so that there is something to learn. Every drawn
batch has the same number of sequences, tokens and predictions: compilation and CUDA graphs see one shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.kernel_cases import C4_MEAN_TOKENS, C4_SIGMA, LENGTH_MODEL, SEED
from recipe.data.batch import count_rows

MASK_RATE, MASK_ID, CLS_ID, SEP_ID, FIRST_WORD = 0.3, 103, 101, 102, 1000  # as in BERT's vocabulary
FOLLOWERS = 4

Batch = dict[str, Any]


def from_dataset(path: str, length: int, sequences: int, count: int, seed: int) -> tuple[list[Batch], str]:
    """What `recipe.train` sees with `data.batching=sequences` and this seed."""
    from recipe.config import Data
    from recipe.data.shards import read_info
    from recipe.data.stream import open_loader

    data = Data(path=path, sequence_length=length, mask_rate=MASK_RATE, workers=0)
    info = read_info(path)
    loader = iter(open_loader(data, info, train=True, batch_size=sequences, seed=seed, batching="sequences", workers=0))
    return [next(loader) for _ in range(count)], f"documents of {Path(path).name}, as recipe.train takes them"


def drawn(length: int, sequences: int, count: int, vocabulary: int) -> tuple[list[Batch], str]:
    draw = np.random.default_rng(SEED)
    lengths = _lengths(draw, length, sequences * count).reshape(count, sequences)
    total = int(lengths.sum(1).mean())
    words = vocabulary - FIRST_WORD
    frequency = 1 / np.arange(1, words + 1)
    followers = draw.choice(words, (words, FOLLOWERS), p=frequency / frequency.sum())
    batches = [_batch(draw, _to_total(row, total, length), followers, length) for row in lengths]
    return batches, f"drawn, lengths {LENGTH_MODEL}, each batch trimmed to {total} tokens"


def _lengths(draw: np.random.Generator, longest: int, count: int) -> np.ndarray:
    mu = np.log(C4_MEAN_TOKENS) - C4_SIGMA**2 / 2
    return np.clip(np.round(draw.lognormal(mu, C4_SIGMA, count)), 8, longest).astype(np.int64)


def _to_total(lengths: np.ndarray, total: int, longest: int) -> np.ndarray:
    """Some sequences made longer or shorter, as evenly as may be, so that all together have `total` tokens."""
    lengths = lengths.copy()
    while missing := total - int(lengths.sum()):
        may = np.flatnonzero(lengths < longest if missing > 0 else lengths > 8)[: abs(missing)]
        lengths[may] += np.sign(missing)
    return lengths


def _batch(draw: np.random.Generator, lengths: np.ndarray, followers: np.ndarray, longest: int) -> Batch:
    bounds = np.concatenate([[0], lengths.cumsum()])
    ids = np.empty(bounds[-1], np.int64)
    word, choices = 0, draw.integers(FOLLOWERS, size=len(ids))
    for at, choice in enumerate(choices):
        word = followers[word, choice]
        ids[at] = word + FIRST_WORD
    ids[bounds[:-1]], ids[bounds[1:] - 1] = CLS_ID, SEP_ID
    ordinary = np.flatnonzero(ids >= FIRST_WORD)
    masked = np.sort(draw.choice(ordinary, round(MASK_RATE * (len(ids) - 2 * len(lengths))), replace=False))
    labels = ids[masked].copy()
    ids[masked] = MASK_ID
    return {
        "document_ids": torch.arange(len(lengths)),
        "input_ids": torch.from_numpy(ids),
        "cu_seqlens": torch.from_numpy(bounds.astype(np.int32)),
        "max_seqlen": longest,
        "masked_indices": torch.from_numpy(masked),
        "labels": torch.from_numpy(labels),
        "counts": count_rows(bounds, masked),
    }
