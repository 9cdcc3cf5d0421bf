"""The gated unit on a CPU: whole-tensor operations in the tensor's own precision, in as little memory as they can be done in."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.dropout import keep
from kernels.reference import ACTIVATIONS

_GRADIENTS = {
    "gelu": torch.ops.aten.gelu_backward,
    "silu": torch.ops.aten.silu_backward,
    "relu": lambda gradient, x: torch.ops.aten.threshold_backward(gradient, x, 0),
}


def forward(x: Tensor, activation: str, dropout_p: float, seed: Tensor | None) -> Tensor:
    """(T, F) of (T, 2 F)."""
    a, b = x.chunk(2, dim=-1)
    out = ACTIVATIONS[activation](a).mul_(b)
    return out if seed is None else out.mul_(keep(out, dropout_p, seed))


def backward(dout: Tensor, x: Tensor, activation: str, dropout_p: float, seed: Tensor | None) -> Tensor:
    """The gradient of x, (T, 2 F)."""
    a, b = x.chunk(2, dim=-1)
    dx = torch.empty(x.shape, dtype=x.dtype)
    da, db = dx.chunk(2, dim=-1)
    if seed is not None:
        dout = dout * keep(dout, dropout_p, seed)
    torch.mul(dout, ACTIVATIONS[activation](a), out=db)
    da.copy_(_GRADIENTS[activation](dout * b, a))
    return dx
