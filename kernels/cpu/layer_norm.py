"""LayerNorm with its residual and dropout on a CPU, in one pass over each row (`layer_norm.cpp`)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.build import TYPES, run
from kernels.cpu.dropout import words


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None, dropout_p: float, seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The output (T, D), and means and reciprocal standard deviations (2, T)."""
    out = torch.empty(x.shape, dtype=x.dtype)
    statistics = torch.empty((2, x.shape[0]))
    run(
        f"layer_norm_forward_{_types(x, residual)}", x, residual, weight.float(), bias.float(), out, *statistics, *x.shape,
        *_strides(x, residual), float(eps), *words(dropout_p, seed),
    )  # fmt: skip
    return out, statistics


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
    dx = torch.empty(x.shape, dtype=x.dtype)
    dresidual = torch.empty(x.shape, dtype=residual.dtype) if own else None
    parameters = torch.zeros((torch.get_num_threads(), 2, x.shape[1]))
    run(
        f"layer_norm_backward_{_types(x, residual)}", dout, x, residual, weight.float(), *statistics, dx, dresidual, parameters,
        *x.shape, *_strides(x, residual), *words(dropout_p, seed),
    )  # fmt: skip
    dweight, dbias = (parameters[:, i].sum(0) for i in (0, 1))
    if dresidual is None:
        dresidual = x.new_empty((0, x.shape[1]))
    return dx, dresidual, dweight.to(weight.dtype), dbias.to(bias.dtype)


def _types(x: Tensor, residual: Tensor | None) -> str:
    return f"{TYPES[x.dtype]}_{TYPES[(x if residual is None else residual).dtype]}"


def _strides(x: Tensor, residual: Tensor | None) -> tuple[int, int]:
    return x.stride(0), 0 if residual is None else residual.stride(0)
