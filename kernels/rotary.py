"""Rotary position embedding of queries and keys, on the projection's output.

Shapes: T tokens, N heads, H head size, S sequences.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from kernels import reference
from kernels.checks import check_backend, check_bounds, check_bounds_type


def rotary_table(cu_seqlens: Tensor, tokens: int, size: int, theta: float) -> Tensor:
    """Cosines and sines of every token's angles: position theta^(-2 c / H), c < H / 2 (arXiv 2104.09864, eq. 15).

    It is made once per batch and theta, in plain torch, and serves all layers of that theta.

    Args:
        cu_seqlens: (S + 1,) int32, where each sequence begins, and the end; positions begin again at each. Its values are
            checked on the CPU, and on a GPU inside `kernels.checks.value_checks`.
        tokens: T.
        size: H, even.
        theta: base of the angles, such as 10,000.

    Returns:
        (2, T, H / 2) float32 on the device of cu_seqlens: cosines, sines.

    Raises:
        ValueError: an argument does not fit.
    """
    if size < 2 or size % 2:
        raise ValueError(f"head size {size}: rotary embedding turns pairs; it must be even")
    if theta <= 0:
        raise ValueError(f"theta={theta}; it must be positive")
    check_bounds_type(cu_seqlens)
    check_bounds(cu_seqlens, tokens, tokens)
    return reference.rotary_table(cu_seqlens, tokens, size, theta)


def rotary(qkv: Tensor, table: Tensor, backend: str = "reference") -> Tensor:
    """qkv with each head of q and k turned by its token's angles; v as it is.

    Element c turns with element c + H / 2, as in Hugging Face's models ("rotate half").

    Args:
        qkv: (T, 3, N, H), the projection's output; any strides.
        table: (2, T, H / 2) float32, of `rotary_table`. It gets no gradient.
        backend: a name from `kernels.backends.resolve("kernels", ...)`.

    Returns:
        (T, 3, N, H) in the dtype of qkv; computed in float32, rounded once.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here.
    """
    if qkv.dim() != 4 or qkv.shape[1] != 3 or qkv.shape[3] % 2:
        raise ValueError(f"qkv has shape {tuple(qkv.shape)}; it must be (tokens, 3, heads, size) with an even size")
    expected = (2, qkv.shape[0], qkv.shape[3] // 2)
    if table.shape != expected or table.dtype != torch.float32 or table.device != qkv.device:
        raise ValueError(
            f"table is {table.dtype} {tuple(table.shape)} on {table.device}; it must be float32 {expected} on {qkv.device}"
        )
    if backend == "reference":
        return reference.rotary(qkv, table)
    check_backend(backend, "qkv", qkv)
    return torch.ops.bert_kernels.rotary(qkv, table.contiguous(), False, backend)


def _launcher(backend: str) -> ModuleType:
    if backend == "cpu":
        from kernels.cpu import rotary as launcher
    else:
        from kernels.triton import rotary as launcher
    return launcher


@torch.library.custom_op("bert_kernels::rotary", mutates_args=())
def _rotate(qkv: Tensor, table: Tensor, backwards: bool, backend: str = "triton") -> Tensor:
    """`backwards` turns by the negative angles, which is the inverse and the gradient."""
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    return _launcher(backend).rotate(qkv, table, backwards)


@_rotate.register_fake
def _(qkv, table, backwards, backend="triton"):
    return qkv.new_empty(qkv.shape)


def _save(ctx, inputs, output) -> None:
    _, table, ctx.backwards, ctx.backend = inputs
    ctx.save_for_backward(table)


def _differentiate(ctx, dout: Tensor) -> tuple:
    (table,) = ctx.saved_tensors
    return torch.ops.bert_kernels.rotary(dout, table, not ctx.backwards, ctx.backend), None, None, None


_rotate.register_autograd(_differentiate, setup_context=_save)
