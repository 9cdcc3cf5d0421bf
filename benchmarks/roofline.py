"""How long each part of a training step takes at best, by the measured ceilings of the machine at hand.

A part's floor is the longer of its operations at the speed of a large matrix product and its bytes at the speed of a large copy.
Operations and bytes are those that cannot be avoided: real tokens, every tensor read once where it is needed and written once
where it is made, forward and backward, activations kept and not computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.measurement import Ceilings
from recipe.model.flops import BACKWARD, attention_flops, head_flops_per_position, layer_flops_per_token

OPTIMIZER_BYTES = 28  # of a parameter: gradient, weight and two moments read, the last three written, float32


@dataclass(frozen=True)
class Counts:
    """Of one step."""

    tokens: float  # real ones
    squared_lengths: float
    predicted: float  # positions that the head is applied to


def floors(
    sizes: dict[str, Any], gated: bool, parameters: int, counts: Counts, width: int
) -> dict[str, tuple[float, float]]:
    """(operations, bytes) of each part of one step; `width`: bytes of an activation."""
    D, F, V, layers = (sizes[key] for key in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"))
    T, M, both = counts.tokens, counts.predicted, 1 + BACKWARD
    inner = 2 * F if gated else F  # of the feed-forward's first product
    # forward reads its two inputs and writes; backward reads the output's gradient and the sum, and writes one gradient
    norm = 6 * T * D * width
    # forward reads `inner` and writes F; backward reads both and the gradient, and writes `inner`
    unit = (3 * inner + 2 * F) * T * width
    # forward reads q, k, v and writes the mixture; backward reads these and its gradient, and writes three
    attention = 12 * T * D * width
    weights = layers * (4 * D * D + (inner + F) * D)
    return {
        "matmuls": (both * layers * T * layer_flops_per_token(D, F, gated), 3 * weights * width),
        "attention": (both * attention_flops(sizes, T, counts.squared_lengths), layers * attention),
        "norms": (0.0, layers * 2 * norm),
        "GLU": (0.0, layers * unit),
        "head": (both * M * head_flops_per_position(D, V), 3 * D * V * width),
        "embeddings": (
            0.0,
            norm + 2 * T * D * 4 + V * D * 4,
        ),  # rows read, rows added to a gradient that starts as zeros
        "optimizer": (0.0, parameters * OPTIMIZER_BYTES),
    }


def floor_ms(work: tuple[float, float], ceilings: Ceilings) -> tuple[float, str]:
    """Milliseconds at best, and what bounds them: matmul or memory."""
    flops, size = 1e3 * work[0] / ceilings.flops_per_s, 1e3 * work[1] / ceilings.bytes_per_s
    return (flops, "matmul") if flops > size else (size, "memory")
