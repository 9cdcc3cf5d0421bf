"""LayerNorm with its residual and dropout on a CPU, in one pass over each row (`layer_norm.cpp`)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.build import TYPES, run
from kernels.cpu.dropout import words


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None, dropout_p: float,
    seed: Tensor | None, total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output (T, D), and means and reciprocal standard deviations (2, T). `total` is filled with the sum, and normed as it is
    rounded there."""
    out = torch.empty(x.shape, dtype=x.dtype)
    statistics = torch.empty((2, x.shape[0]))
    offset = torch.zeros(x.shape[1]) if bias is None else bias.float()
    run(
        f"layer_norm_forward_{_types(x, residual)}", x, residual, weight.float(), offset, total, out, *statistics, *x.shape,
        *_strides(x, residual), float(eps), *words(dropout_p, seed),
    )  # fmt: skip
    return out, statistics


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, statistics: Tensor,
    dropout_p: float, seed: Tensor | None, own: bool, dtotal: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, residual, weight and bias; without `own`, the second has no rows: it is the first.

    With `dtotal`, the gradient of the sum, x is the sum itself, and residual None.
    """
    dx = torch.empty(x.shape, dtype=dout.dtype)
    of_residual = residual if dtotal is None else x
    dresidual = torch.empty(x.shape, dtype=of_residual.dtype) if own else None
    parameters = torch.zeros((torch.get_num_threads(), 2, x.shape[1]))
    run(
        f"layer_norm_backward_{_types(dout, of_residual)}", dout, x if dtotal is None else None, residual, dtotal,
        None if dtotal is None else x, weight.float(), *statistics, dx, dresidual, parameters, *x.shape,
        *_strides(x, residual), *words(dropout_p, seed),
    )  # fmt: skip
    dweight, dbias = (parameters[:, i].sum(0) for i in (0, 1))
    if dresidual is None:
        dresidual = x.new_empty((0, x.shape[1]))
    return dx, dresidual, dweight.to(weight.dtype), weight.new_empty(0) if bias is None else dbias.to(bias.dtype)


def _types(x: Tensor, residual: Tensor | None) -> str:
    return f"{TYPES[x.dtype]}_{TYPES[(x if residual is None else residual).dtype]}"


def _strides(x: Tensor, residual: Tensor | None) -> tuple[int, int]:
    return x.stride(0), 0 if residual is None else residual.stride(0)
