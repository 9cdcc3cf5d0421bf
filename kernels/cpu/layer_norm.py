"""LayerNorm with its residual on a CPU: the sum in float32, made again in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.dropout import keep
from kernels.reference import at_least_float32


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The output (T, D), and means and reciprocal standard deviations (2, T)."""
    total = _total(x, residual, dropout_p, seed)
    out, mean, rstd = torch.native_layer_norm(total, x.shape[-1:], weight.to(total), bias.to(total), eps)
    return out.to(x.dtype), torch.stack([mean, rstd]).flatten(1).float()


def backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    statistics: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    own: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, residual, weight and bias; without `own`, the second has no rows: it is the first."""
    total = _total(x, residual, dropout_p, seed)
    mean, rstd = statistics.to(total)[:, :, None]
    dtotal, dweight, dbias = torch.ops.aten.native_layer_norm_backward(
        dout.to(total), total, x.shape[-1:], mean, rstd, weight.to(total), bias.to(total), [True, True, True]
    )
    dresidual = dtotal.to(residual.dtype, copy=True) if own else x.new_empty((0, x.shape[-1]))
    if seed is not None:
        dtotal.mul_(keep(dtotal, dropout_p, seed))
    return dtotal.to(x.dtype), dresidual, dweight.to(weight.dtype), dbias.to(bias.dtype)


def _total(x: Tensor, residual: Tensor | None, dropout_p: float, seed: Tensor | None) -> Tensor:
    total = at_least_float32(x)
    if seed is not None:
        total = total * keep(total, dropout_p, seed)
    return total if residual is None else total + residual
