"""Dropout on a CPU: a mask of 16 random bits an element, made again in the backward pass from its seed."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 2**16  # the probability is rounded to a multiple of 1/STEPS, the scale with it, so the mean stays right


def keep(like: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    """Shaped and typed as `like`: 0 with probability dropout_p, else 1 / (1 - dropout_p)."""
    dropped = round(dropout_p * STEPS)
    if dropped == STEPS:
        return torch.zeros_like(like)
    generator = torch.Generator().manual_seed(int(seed))
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)
    return (bits >= dropped - STEPS // 2).to(like.dtype).mul_(STEPS / (STEPS - dropped))
