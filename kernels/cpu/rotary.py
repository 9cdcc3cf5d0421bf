"""Rotary embedding on a CPU, in one pass over each token (`rotary.cpp`)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.build import TYPES, run


def rotate(qkv_T3NH: Tensor, table: Tensor, backwards: bool) -> Tensor:
    """(T, 3, N, H), with q and k turned by the angles of table (2, T, H / 2), or by their negatives."""
    out = torch.empty(qkv_T3NH.shape, dtype=qkv_T3NH.dtype)
    tokens, _, heads, size = out.shape
    run(
        f"rotary_{TYPES[out.dtype]}", qkv_T3NH, torch.tensor(qkv_T3NH.stride()), table, out, tokens, heads, size,
        -1.0 if backwards else 1.0,
    )  # fmt: skip
    return out
