"""How often tokens occur, and near which others: counts of a sample of a split, made in one pass before a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from recipe.data.documents import Documents

REACH = 5  # places to each side that count as near; a pair at distance d weighs 1 / d
_AT_A_TIME = 2**19  # tokens, whose pairs are sorted together


@dataclass(frozen=True)
class Counts:
    frequency_V: NDArray[np.int64]
    near_VV: sparse.csr_array | None  # float32, symmetric; absent where only frequencies were asked for

    @property
    def tokens(self) -> int:
        return int(self.frequency_V.sum())


def count(documents: Documents, vocabulary: int, most: int, length: int, near: bool) -> Counts:
    """Of about `most` tokens of a split, ids below `vocabulary`; of a document the first `length`, as a run reads it. `near`:
    what stands near each other too.

    Raises:
        UserError: a shard that cannot be fetched, or is not what the index says.
    """
    frequency_V = np.zeros(vocabulary, np.int64)
    near_VV = sparse.csr_array((vocabulary, vocabulary), dtype=np.float32)
    for ids_T, document_T in _pieces(documents, sample(documents, most, length), length):
        frequency_V += np.bincount(ids_T, minlength=vocabulary)
        if near:
            near_VV = near_VV + _pairs(ids_T, document_T, vocabulary)
    return Counts(frequency_V, (near_VV + near_VV.T).tocsr() if near else None)


def sample(documents: Documents, most: int, length: int) -> NDArray[np.int64]:
    """Documents with about `most` tokens, from as few shards as hold so many, which lie evenly in the split."""
    lengths = np.minimum(documents.lengths, length).astype(np.int64)
    ends = np.cumsum(documents.sizes)
    wanted = -(-most * len(ends) // max(int(lengths.sum()), 1))
    shards = np.unique(np.linspace(0, len(ends) - 1, min(max(wanted, 1), len(ends))).round().astype(np.int64))
    numbers = np.concatenate([np.arange(ends[i] - documents.sizes[i], ends[i]) for i in shards])
    return numbers[:: max(int(lengths[numbers].sum()) // most, 1)]


def _pieces(
    documents: Documents, numbers: NDArray[np.int64], length: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Tokens of some documents after each other, and which document each token is of."""
    sizes = np.minimum(documents.lengths[numbers], length).astype(np.int64)
    cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _AT_A_TIME)) + 1
    for some in np.split(numbers, cuts):
        read = documents.read(some, length)
        yield np.concatenate(read).astype(np.int64), np.repeat(np.arange(len(read)), [len(one) for one in read])
    documents.close()


def _pairs(ids_T: NDArray[np.int64], document_T: NDArray[np.int64], vocabulary: int) -> sparse.csr_array:
    """(V, V): each token's row has what comes after it."""
    total = sparse.csr_array((vocabulary, vocabulary), dtype=np.float32)
    for distance in range(1, REACH + 1):
        same = document_T[:-distance] == document_T[distance:]
        first, second = ids_T[:-distance][same], ids_T[distance:][same]
        weights = np.full(len(first), 1 / distance, np.float32)
        total = total + sparse.coo_array((weights, (first, second)), (vocabulary, vocabulary)).tocsr()
    return total
