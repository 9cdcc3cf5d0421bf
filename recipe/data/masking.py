"""Dynamic masking (arXiv 1810.04805, 80/10/10), vectorised over a batch and drawn from counters instead of a generator.

A token's fate depends on the seed, the epoch, the document's number and the token's position, and on nothing else: not on the
batch it is in, on the worker that reads it, or on how many ranks there are. At a lower rate the same seed chooses a part of what
it chooses at a higher one.

    token  every token by itself, as the paper
    word   a word's tokens together (`recipe.data.words`)
    span   runs of 1 to 10 tokens, geometric lengths (SpanBERT, arXiv 1907.10529: p = 0.2)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from recipe.data.words import Words

# of spans, by how many tokens they go on: the share that is longer than k = 0, 1, ...
_LONGER = 1 - np.cumsum([0, *(0.8**k for k in range(10))])[:-1] / sum(0.8**k for k in range(10))

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def evenly(progress: float) -> float:
    return progress


@dataclass(frozen=True)
class RateSchedule:
    """From `first` to `last` over a run's documents, constant after."""

    first: float
    last: float
    documents: int
    fallen: Callable[[float], float] = evenly  # at a progress in [0, 1] how much of the way is behind

    def __call__(self, seen: int) -> float:
        """The rate of a batch before which the run has seen so many documents."""
        return self.first + (self.last - self.first) * self.fallen(min(seen / self.documents, 1.0))


@dataclass(frozen=True)
class Masker:
    """Chooses tokens at `rate` and replaces them; `rate` is the share of ordinary tokens that is chosen, whatever the kind."""

    rate: float
    mask_id: int
    ordinary_ids: NDArray[np.int64]  # the vocabulary without its special tokens: what a replacement is drawn from
    seed: int
    kind: str = "token"  # token, word or span
    words: Words | None = None  # for words
    ids: int = 2**16  # every token id is below it
    mask_share: float = 0.8  # of the chosen tokens, what becomes [MASK], and
    random_share: float = 0.1  # what becomes an ordinary token, itself among them; the rest stay as they are

    @cached_property
    def is_special(self) -> NDArray[np.bool_]:
        """(ids,) by token id: [CLS], [SEP] and the other special tokens, [UNK] too, which is nothing to learn to predict."""
        table = np.ones(self.ids, dtype=bool)
        table[self.ordinary_ids] = False
        return table

    def __call__(
        self,
        input_ids: NDArray[np.int64],
        special: NDArray[np.bool_],
        documents: NDArray[np.int64],
        positions: NDArray[np.int64],
        epoch: int,
        rate: float | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Mask a stream.

        Args:
            input_ids: (T,) the tokens; not written to.
            special: (T,) those that are never chosen.
            documents: (T,) the number of the document that each belongs to.
            positions: (T,) its place therein.
            epoch: of the training data; another gives another mask.
            rate: another than the masker's own.

        Returns:
            the masked stream (T,), the chosen indices (M,), ascending, and what stood there (M,).
        """
        of_document = _mix(_mix(_mix(np.uint64(self.seed)) ^ np.uint64(epoch)) ^ documents.astype(np.uint64))
        key = _at(of_document, positions)
        rate = self.rate if rate is None else rate
        if self.kind == "span":
            candidates = _in_span(of_document, positions, _uniform(key, 1), rate)
        elif self.kind == "word":
            begins = special | self.words.begins(input_ids)
            first = np.maximum.accumulate(np.where(begins, np.arange(len(key)), 0))
            candidates = _uniform(key, 1)[first] < rate
        else:
            candidates = _uniform(key, 1) < rate
        chosen = np.flatnonzero(candidates & ~special)
        labels = input_ids[chosen]
        fate = _uniform(key[chosen], 2)
        pick = (_uniform(key[chosen], 3) * len(self.ordinary_ids)).astype(np.int64)
        replaced = np.where(fate < self.mask_share + self.random_share, self.ordinary_ids[pick], labels)
        masked = input_ids.copy()
        masked[chosen] = np.where(fate < self.mask_share, self.mask_id, replaced)
        return masked, chosen, labels


def _in_span(
    of_document: NDArray[np.uint64], positions: NDArray[np.int64], begins: NDArray[np.float64], rate: float
) -> NDArray[np.bool_]:
    """(T,) whether a span covers the token.

    A span begins at a position, with length above k, where its number is below start x share of the longer ones. Spans may begin
    before the document does, so that its first tokens are chosen at the same rate as the others.
    """
    thresholds = _span_start(rate) * _LONGER
    covered = begins < thresholds[0]
    for k in range(1, len(thresholds)):
        earlier = np.empty_like(begins)
        earlier[k:] = begins[:-k]
        outside = np.flatnonzero(positions < k)
        earlier[outside] = _uniform(_at(of_document[outside], positions[outside] - k), 1)
        covered |= earlier < thresholds[k]
    return covered


@lru_cache(maxsize=16)
def _span_start(rate: float) -> float:
    """The share of positions at which a span begins, for `rate` of them to be covered by one or more."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 - np.prod(1 - middle * _LONGER) < rate else (low, middle)
    return high


def _at(of_document: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    return _mix(of_document + _GOLDEN * positions.astype(np.uint64))


def _mix(x: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """SplitMix64's step (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit words whose output passes as random."""
    x = np.atleast_1d(x) + _GOLDEN  # an array, because numpy warns of a scalar's overflow and not of an array's
    x ^= x >> np.uint64(30)  # in place, without fresh memory for each step
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _uniform(key: NDArray[np.uint64], lane: int) -> NDArray[np.float64]:
    """Numbers in [0, 1), independent from lane to lane."""
    return (_mix(key ^ _mix(np.uint64(lane))) >> np.uint64(11)) * 2.0**-53
