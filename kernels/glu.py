"""The gated linear unit's pointwise half, with the dropout after it."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from kernels import reference
from kernels.checks import check_backend
from kernels.dropout import check_probability, dropout_seed


def glu(x: Tensor, activation: str = "gelu", dropout_p: float = 0.0, backend: str = "reference") -> Tensor:
    """dropout(activation(a) * b) with x = [a, b].

    Args:
        x: (T, 2 F), the fused projection's output, activated half first.
        activation: gelu (erf), silu or relu.
        dropout_p: probability with which an element of the result is dropped; 0 when not training.
        backend: a name from `kernels.backends.resolve`. Backends draw different elements to drop.

    Returns:
        (T, F) in the dtype of x.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here.
    """
    if activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: known are {', '.join(reference.ACTIVATIONS)}")
    if x.dim() < 1 or x.shape[-1] % 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; the two halves need an even number of columns")
    check_probability(dropout_p)
    if backend == "reference":
        return reference.glu(x, activation, dropout_p)
    check_backend(backend, "x", x)
    rows = x.flatten(0, -2) if x.dim() != 2 else x
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    out = torch.ops.bert_kernels.glu(rows, activation, dropout_p, dropout_seed(x, dropout_p), backend)
    return out.view(*x.shape[:-1], -1) if x.dim() != 2 else out


def _launcher(backend: str) -> ModuleType:
    if backend == "cpu":
        from kernels.cpu import glu as launcher
    else:
        from kernels.triton import glu as launcher
    return launcher


@torch.library.custom_op("bert_kernels::glu", mutates_args=())
def _forward(x: Tensor, activation: str, dropout_p: float, seed: Tensor | None, backend: str = "triton") -> Tensor:
    return _launcher(backend).forward(x, activation, dropout_p, seed)


@_forward.register_fake
def _(x, activation, dropout_p, seed, backend="triton"):
    return x.new_empty((x.shape[0], x.shape[1] // 2))


@torch.library.custom_op("bert_kernels::glu_backward", mutates_args=())
def _backward(
    dout: Tensor, x: Tensor, activation: str, dropout_p: float, seed: Tensor | None, backend: str = "triton"
) -> Tensor:
    return _launcher(backend).backward(dout.contiguous(), x, activation, dropout_p, seed)


@_backward.register_fake
def _(dout, x, activation, dropout_p, seed, backend="triton"):
    return x.new_empty(x.shape)


def _save(ctx, inputs, output) -> None:
    x, ctx.activation, ctx.dropout_p, seed, ctx.backend = inputs
    ctx.save_for_backward(x, seed)


def _differentiate(ctx, dout: Tensor) -> tuple:
    x, seed = ctx.saved_tensors
    dx = torch.ops.bert_kernels.glu_backward(dout, x, ctx.activation, ctx.dropout_p, seed, ctx.backend)
    return dx, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
