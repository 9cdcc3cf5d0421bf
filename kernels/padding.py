"""Between padded batches and the stream of real tokens, for inputs that arrive padded."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import reference
from kernels.checks import check_triton, may_look_at


def unpad(x: Tensor, mask: Tensor, backend: str = "reference") -> tuple[Tensor, Tensor, Tensor, int]:
    """The real tokens of a padded batch. The host waits for the device once, to know how many they are.

    Args:
        x: (S, L, ...), any type.
        mask: (S, L), 0 where there is padding.
        backend: a name from `kernels.backends.resolve`.

    Returns:
        the stream (T, ...), its rows' flat indices (T,) int64 in x, cu_seqlens (S + 1,) int32, and the longest length.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here.
    """
    if mask.dim() != 2 or x.shape[:2] != mask.shape or x.device != mask.device:
        raise ValueError(
            f"mask is {tuple(mask.shape)} on {mask.device}; x begins with {tuple(x.shape[:2])} and is on {x.device}"
        )
    return _implementation(backend)[0](x, mask)


def pad(tokens: Tensor, indices: Tensor, sequences: int, length: int, backend: str = "reference") -> Tensor:
    """The inverse of `unpad`: (T, ...) to (sequences, length, ...), zero where there was padding.

    `indices` (T,) int64 are all different; outside the batch they are looked for on the CPU, and on a GPU inside
    `kernels.checks.value_checks`.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here.
    """
    if indices.dim() != 1 or tokens.shape[:1] != indices.shape or indices.dtype != torch.int64:
        raise ValueError(
            f"indices is {indices.dtype} {tuple(indices.shape)}; it must be int64 and tokens has {tokens.shape[0]} rows"
        )
    if sequences < 0 or length < 0:
        raise ValueError(f"sequences={sequences}, length={length}; neither may be negative")
    if may_look_at(indices):
        outside = indices[(indices < 0) | (indices >= sequences * length)]
        if outside.numel():
            raise ValueError(f"indices holds {outside[0].item()}; it must be in 0 to {sequences * length - 1}")
    return _implementation(backend)[1](tokens, indices, sequences, length)


def _implementation(backend: str) -> tuple:
    if backend not in _BACKENDS:
        raise ValueError(f"backend={backend!r}: known are {', '.join(_BACKENDS)}")
    return _BACKENDS[backend]


def _triton_unpad(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    check_triton("x", x, computes=False)
    indices, cu_seqlens, totals = torch.ops.bert_kernels.plan_unpadding(mask)
    tokens, longest = totals.tolist()
    indices = indices[:tokens]
    stream = torch.ops.bert_kernels.gather_rows(_as_rows(x, 2), indices)
    return stream.view(tokens, *x.shape[2:]), indices, cu_seqlens, longest


def _triton_pad(tokens: Tensor, indices: Tensor, sequences: int, length: int) -> Tensor:
    check_triton("tokens", tokens, computes=False)
    batch = torch.ops.bert_kernels.scatter_rows(_as_rows(tokens, 1), indices.contiguous(), sequences * length)
    return batch.view(sequences, length, *tokens.shape[1:])


def _as_rows(x: Tensor, leading: int) -> Tensor:
    """(rows, elements of a row), the first `leading` dimensions of x counted as rows."""
    if x.element_size() > 8:
        raise ValueError(f"{x.dtype}: backend=triton moves elements of at most 8 bytes; use backend=reference")
    return x.reshape(x.shape[:leading].numel(), x.shape[leading:].numel())


@torch.library.custom_op("bert_kernels::plan_unpadding", mutates_args=())
def _plan(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from kernels.triton import padding as kernel

    return kernel.plan(mask)


@_plan.register_fake
def _(mask):
    sizes = (mask.shape[0] + 1, 2)
    indices = mask.new_empty(mask.shape[0] * mask.shape[1], dtype=torch.int64)
    return indices, *(mask.new_empty(size, dtype=torch.int32) for size in sizes)


@torch.library.custom_op("bert_kernels::gather_rows", mutates_args=())
def _gather(x: Tensor, indices: Tensor) -> Tensor:
    from kernels.triton import padding as kernel

    return kernel.gather(x, indices)


@_gather.register_fake
def _(x, indices):
    return x.new_empty((indices.shape[0], x.shape[1]))


@torch.library.custom_op("bert_kernels::scatter_rows", mutates_args=())
def _scatter(x: Tensor, indices: Tensor, rows: int) -> Tensor:
    from kernels.triton import padding as kernel

    return kernel.scatter(x, indices, rows)


@_scatter.register_fake
def _(x, indices, rows):
    return x.new_empty((rows, x.shape[1]))


def _save_gather(ctx, inputs, output) -> None:
    x, indices = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(indices)


def _save_scatter(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[1])


def _differentiate_gather(ctx, dout: Tensor) -> tuple:
    return torch.ops.bert_kernels.scatter_rows(dout, ctx.saved_tensors[0], ctx.rows), None


def _differentiate_scatter(ctx, dout: Tensor) -> tuple:
    return torch.ops.bert_kernels.gather_rows(dout, ctx.saved_tensors[0]), None, None


# Each is the other's backward.
_gather.register_autograd(_differentiate_gather, setup_context=_save_gather)
_scatter.register_autograd(_differentiate_scatter, setup_context=_save_scatter)
_BACKENDS = {
    "triton": (_triton_unpad, _triton_pad),
    "cpu": (reference.unpad, reference.pad),  # which move each element once
    "reference": (reference.unpad, reference.pad),
}
