"""Dropout inside another kernel: a mask that depends on the seed and the element's place alone, so backward makes it again.

One call of Philox gives 128 random bits, 16 for each of 8 neighbours in a row: with 32 for each, the generator and not the
memory would be what a pointwise kernel waits for. The probability is therefore a multiple of 2^-16, and the scale that makes
up for the dropped elements is that of the rounded probability.
"""

from __future__ import annotations

import triton
import triton.language as tl

STEPS = 1 << 16
ROUNDS = tl.constexpr(
    7
)  # the fewest that pass BigCrush (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)


def threshold_and_scale(dropout_p: float) -> tuple[int, float]:
    """Random numbers below the threshold drop their element; the others' elements are multiplied by the scale."""
    threshold = round(dropout_p * STEPS)
    return threshold, STEPS / (STEPS - threshold) if threshold < STEPS else 0.0


@triton.jit
def dropped(x, seed, rows, first, threshold, scale, BLOCK_C: tl.constexpr):
    """x (rows, BLOCK_C), whose columns begin at `first`, a multiple of 8, with its dropped elements zero and the rest scaled."""
    groups = first // 8 + tl.arange(0, BLOCK_C // 8)
    zero = (rows[:, None] * 0 + groups[None, :] * 0).to(tl.int32)
    r0, r1, r2, r3 = tl.philox(tl.load(seed), zero + groups[None, :], zero + rows[:, None], zero, zero, n_rounds=ROUNDS)
    low = tl.join(tl.join(r0 & 0xFFFF, r2 & 0xFFFF), tl.join(r1 & 0xFFFF, r3 & 0xFFFF))
    high = tl.join(tl.join(r0 >> 16, r2 >> 16), tl.join(r1 >> 16, r3 >> 16))
    number = tl.reshape(tl.join(low, high), (x.shape[0], BLOCK_C))
    return tl.where(number.to(tl.int32) >= threshold, x * scale, 0.0)
