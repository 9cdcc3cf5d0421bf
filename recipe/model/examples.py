"""The largest batch that there can be, of zeros: what a step's memory is found with."""

from __future__ import annotations

from typing import Any

import torch


def full_stream(sequences: int, length: int, mask_rate: float) -> dict[str, Any]:
    """A stream without a short sequence."""
    masked = max(1, round(sequences * length * mask_rate))
    return {
        "input_ids": torch.zeros(sequences * length, dtype=torch.int64),
        "cu_seqlens": torch.arange(0, (sequences + 1) * length, length, dtype=torch.int32),
        "max_seqlen": length,
        "masked_indices": torch.arange(masked),
        "labels": torch.zeros(masked, dtype=torch.int64),
    }


def full_rows(sequences: int, length: int, mask_rate: float) -> dict[str, Any]:
    """Padded rows without padding."""
    zeros = torch.zeros(sequences, length, dtype=torch.int64)
    masked = torch.arange(max(1, round(sequences * length * mask_rate)))
    return {
        "input_ids": zeros,
        "attention_mask": torch.ones_like(zeros),
        "labels": zeros.clone(),
        "masked_indices": masked,
    }
