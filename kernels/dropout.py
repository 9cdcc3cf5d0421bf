"""Dropout's seed, drawn on the device by torch's own generator, so that nothing waits and `torch.manual_seed` rules it."""

from __future__ import annotations

import torch
from torch import Tensor


def check_probability(dropout_p: float) -> None:
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"dropout_p={dropout_p}; it must be between 0 and 1")


def dropout_seed(x: Tensor, dropout_p: float) -> Tensor | None:
    """(1,) int64 on the device of x; None where nothing is dropped."""
    return torch.randint(2**62, (1,), dtype=torch.int64, device=x.device) if dropout_p > 0 else None
