"""Dynamic masking (arXiv 1810.04805, 80/10/10), vectorised over a batch and drawn from counters instead of a generator.

A token's fate depends on the seed, the epoch, the document's number and the token's position, and on nothing else: not on the
batch it is in, on the worker that reads it, or on how many ranks there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # of the chosen tokens; the rest stay as they are

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Masker:
    """Chooses tokens at `rate` and replaces them."""

    rate: float
    mask_id: int
    ordinary_ids: NDArray[np.int64]  # the vocabulary without its special tokens: what a replacement is drawn from
    seed: int

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """(65536,) by token id: [CLS], [SEP] and the other special tokens, [UNK] too, which is nothing to learn to predict."""
        table = np.ones(2**16, dtype=bool)  # token ids are uint16
        table[self.ordinary_ids] = False
        return table

    def __call__(
        self,
        input_ids: NDArray[np.int64],
        special: NDArray[np.bool_],
        documents: NDArray[np.int64],
        positions: NDArray[np.int64],
        epoch: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Mask a stream.

        Args:
            input_ids: (T,) the tokens; not written to.
            special: (T,) those that are never chosen.
            documents: (T,) the number of the document that each belongs to.
            positions: (T,) its place therein.
            epoch: of the training data; another gives another mask.

        Returns:
            the masked stream (T,), the chosen indices (M,), ascending, and what stood there (M,).
        """
        key = _mix(_mix(_mix(np.uint64(self.seed)) ^ np.uint64(epoch)) ^ documents.astype(np.uint64))
        key = _mix(key + _GOLDEN * positions.astype(np.uint64))
        chosen = np.flatnonzero((_uniform(key, 1) < self.rate) & ~special)
        labels = input_ids[chosen]
        fate = _uniform(key[chosen], 2)
        pick = (_uniform(key[chosen], 3) * len(self.ordinary_ids)).astype(np.int64)
        replaced = np.where(fate < MASK_SHARE + RANDOM_SHARE, self.ordinary_ids[pick], labels)
        masked = input_ids.copy()
        masked[chosen] = np.where(fate < MASK_SHARE, self.mask_id, replaced)
        return masked, chosen, labels


def _mix(x: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """SplitMix64's step (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit words whose output passes as random."""
    x = np.atleast_1d(x) + _GOLDEN  # an array, because numpy warns of a scalar's overflow and not of an array's
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniform(key: NDArray[np.uint64], lane: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), independent from lane to lane."""
    return (_mix(key ^ _mix(np.uint64(lane))) >> np.uint64(11)) * 2.0**-53
