"""The gated unit on a CPU, in one pass over each row (`glu.cpp`)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.build import TYPES, run
from kernels.cpu.dropout import words

ACTIVATIONS = ("gelu", "silu", "relu")  # in the order of glu.cpp


def forward(x: Tensor, activation: str, dropout_p: float, seed: Tensor | None) -> Tensor:
    """(T, F) of (T, 2 F)."""
    x = x.contiguous()
    out = torch.empty((x.shape[0], x.shape[1] // 2), dtype=x.dtype)
    run(f"glu_forward_{TYPES[x.dtype]}", x, out, *out.shape, ACTIVATIONS.index(activation), *words(dropout_p, seed))
    return out


def backward(dout: Tensor, x: Tensor, activation: str, dropout_p: float, seed: Tensor | None) -> Tensor:
    """The gradient of x, (T, 2 F)."""
    x = x.contiguous()
    dx = torch.empty_like(x)
    chosen = ACTIVATIONS.index(activation)
    run(f"glu_backward_{TYPES[x.dtype]}", dout, x, dx, *dout.shape, chosen, *words(dropout_p, seed))
    return dx
