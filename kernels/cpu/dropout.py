"""Dropout on a CPU: a hash of (seed, row, column) says what is dropped, made again in the backward pass."""

from __future__ import annotations

from torch import Tensor

STEPS = 2**32  # the probability is rounded to a multiple of 1/STEPS, the scale with it, so the mean stays right


def words(dropout_p: float, seed: Tensor | None) -> tuple[int, int, float]:
    """What the loops are told: the seed, the probability in STEPS, and the scale of what is kept."""
    if seed is None:
        return 0, 0, 1.0
    dropped = min(round(dropout_p * STEPS), STEPS)
    return int(seed), dropped, 0.0 if dropped == STEPS else STEPS / (STEPS - dropped)
