"""Rows of a stream by their numbers, of which some may be taken several times."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import reference
from kernels.checks import check_backend, may_look_at


def take_rows(x: Tensor, rows: Tensor, backend: str = "reference") -> Tensor:
    """x[rows].

    The backward sums what comes to a row that is taken several times, in float32 and always in the same order. Triton's needs no
    sort for that: it costs a pass over the gradients, and for such a row a look at all places from its first to its last.

    Args:
        x: (T, D).
        rows: (M,) int64, from 0 to T - 1. Triton looks for others on a CPU, and on a GPU inside `kernels.checks.value_checks`;
            not looked for, they are taken as zeros, and their gradients are left out.
        backend: a name from `kernels.backends.resolve`.

    Returns:
        (M, D) in the dtype of x.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here.
    """
    if x.dim() != 2 or rows.dim() != 1 or rows.dtype != torch.int64 or rows.device != x.device:
        raise ValueError(
            f"rows is {rows.dtype} {tuple(rows.shape)} on {rows.device}; it must be int64 (M,) and where x is, "
            f"{tuple(x.shape)} on {x.device}"
        )
    if backend == "reference":
        return reference.take_rows(x, rows)
    check_backend(backend, "x", x)
    if backend == "cpu":  # torch moves each element once
        return reference.take_rows(x, rows)
    if may_look_at(rows):
        outside = rows[(rows < 0) | (rows >= x.shape[0])]
        if outside.numel():
            raise ValueError(f"rows holds {outside[0].item()}; it must be in 0 to {x.shape[0] - 1}")
    return torch.ops.bert_kernels.take_rows(x, rows.contiguous())


@torch.library.custom_op("bert_kernels::take_rows", mutates_args=())
def _forward(x: Tensor, rows: Tensor) -> Tensor:
    from kernels.triton import padding as kernel

    return kernel.gather(x, rows)


@_forward.register_fake
def _(x, rows):
    return x.new_empty((rows.shape[0], x.shape[1]))


@torch.library.custom_op("bert_kernels::take_rows_backward", mutates_args=())
def _backward(dout: Tensor, rows: Tensor, tokens: int) -> Tensor:
    from kernels.triton import rows as kernel

    return kernel.backward(dout.contiguous(), rows, tokens)


@_backward.register_fake
def _(dout, rows, tokens):
    return dout.new_empty((tokens, dout.shape[1]))


def _save(ctx, inputs, output) -> None:
    x, rows = inputs
    ctx.tokens = x.shape[0]
    ctx.save_for_backward(rows)


def _differentiate(ctx, dout: Tensor) -> tuple:
    return torch.ops.bert_kernels.take_rows_backward(dout, ctx.saved_tensors[0], ctx.tokens), None


_forward.register_autograd(_differentiate, setup_context=_save)
