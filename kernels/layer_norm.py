"""LayerNorm with the residual addition and dropout before it."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from kernels import reference
from kernels.checks import check_backend
from kernels.dropout import check_probability, dropout_seed

MAX_COLUMNS = 8192  # a program holds whole rows in registers, a CPU's loop on its stack


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-12,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    backend: str = "reference",
) -> Tensor:
    """LayerNorm(dropout(x) + residual).

    Args:
        x: (T, D); the output has its dtype, the statistics are float32.
        weight, bias: (D,).
        eps: added to the variance.
        residual: (T, D), or None.
        dropout_p: probability with which an element of x is dropped; 0 when not training.
        backend: a name from `kernels.backends.resolve`. Backends draw different elements to drop.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here.
    """
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must both be ({x.shape[-1]},)")
    if residual is not None and (residual.shape != x.shape or residual.device != x.device):
        raise ValueError(
            f"residual is {tuple(residual.shape)} on {residual.device}; it must be as x, {tuple(x.shape)} on {x.device}"
        )
    check_probability(dropout_p)
    if backend == "reference":
        return reference.layer_norm(x, weight, bias, eps, residual, dropout_p)
    check_backend(backend, "x", x)
    columns = x.shape[-1]
    if residual is not None:
        check_backend(backend, "residual", residual)
    if columns > MAX_COLUMNS:
        raise ValueError(
            f"x has {columns} columns; backend={backend} takes at most {MAX_COLUMNS}: use backend=reference"
        )
    if not x.device == weight.device == bias.device:
        raise ValueError(f"x is on {x.device}, weight on {weight.device}, bias on {bias.device}; all must be on one")
    rows = _rows(x)
    seed = dropout_seed(x, dropout_p)
    others = None if residual is None else _rows(residual)
    out, _ = torch.ops.bert_kernels.layer_norm(
        rows, weight.contiguous(), bias.contiguous(), eps, others, dropout_p, seed, backend
    )
    return out.view(x.shape)


def _rows(x: Tensor) -> Tensor:
    """(T, D) with neighbours in memory along D."""
    x = x.flatten(0, -2) if x.dim() != 2 else x
    return x if x.stride(-1) == 1 else x.contiguous()


def _launcher(backend: str) -> ModuleType:
    if backend == "cpu":
        from kernels.cpu import layer_norm as launcher
    else:
        from kernels.triton import layer_norm as launcher
    return launcher


@torch.library.custom_op("bert_kernels::layer_norm", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    backend: str = "triton",
) -> tuple[Tensor, Tensor]:
    return _launcher(backend).forward(x, weight, bias, eps, residual, dropout_p, seed)


@_forward.register_fake
def _(x, weight, bias, eps, residual, dropout_p, seed, backend="triton"):
    return x.new_empty(x.shape), x.new_empty((2, x.shape[0]), dtype=torch.float32)


@torch.library.custom_op("bert_kernels::layer_norm_backward", mutates_args=())
def _backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    statistics: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    backend: str = "triton",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    own = _has_own_gradient(x, residual, seed)
    return _launcher(backend).backward(dout.contiguous(), x, weight, bias, residual, statistics, dropout_p, seed, own)


@_backward.register_fake
def _(dout, x, weight, bias, residual, statistics, dropout_p, seed, backend="triton"):
    dresidual = residual.new_empty(x.shape) if _has_own_gradient(x, residual, seed) else x.new_empty((0, x.shape[1]))
    return x.new_empty(x.shape), dresidual, torch.empty_like(weight), torch.empty_like(bias)


def _has_own_gradient(x: Tensor, residual: Tensor | None, seed: Tensor | None) -> bool:
    """Whether the gradient of residual is another than that of x: it is the same tensor where nothing is dropped."""
    return residual is not None and (seed is not None or residual.dtype != x.dtype)


def _save(ctx, inputs, output) -> None:
    x, weight, bias, _, residual, ctx.dropout_p, seed, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, bias, residual, output[1], seed)


def _differentiate(ctx, dout: Tensor, *_) -> tuple:
    x, weight, bias, residual, statistics, seed = ctx.saved_tensors
    dx, dresidual, dweight, dbias = torch.ops.bert_kernels.layer_norm_backward(
        dout, x, weight, bias, residual, statistics, ctx.dropout_p, seed, ctx.backend
    )
    if residual is None:
        dresidual = None
    elif not _has_own_gradient(x, residual, seed):
        dresidual = dx
    return dx, dweight, dbias, None, dresidual, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
