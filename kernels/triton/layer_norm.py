"""LayerNorm(dropout(x) + residual): a program holds several whole rows in registers, so that weights are read once for all.

The sum is not stored where nobody else reads it: the backward reads x and residual again, which moves as many bytes and rounds
nothing, and draws the same dropout mask. A pre-norm block does read it: then it is stored, normed as it is rounded there, and is
all that the backward reads, which adds the sum's own gradient. The gradients of weight and bias are summed in two stages, both in
a fixed order: each program over its range of rows, then one kernel over the programs.

Shapes: T tokens, D columns padded to BLOCK_D, P programs of the backward.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.device import capability, device_of, processors
from kernels.triton.dropout import dropped, threshold_and_scale

PROGRAMS_PER_PROCESSOR = 2  # of the backward: what its 128 registers a thread let run at once
# Numbers that follow from the batch, or from dropout: a kernel compiled for one serves all.
ANY_NUMBER = ["tokens", "rows", "programs", "threshold"]
REDUCTION = {"BLOCK_P": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 1}


def parameters(capability: int, columns: int) -> dict[str, Any]:
    """Tile and warps: 16 elements a thread, which leaves the backward room for two sums of as many."""
    block_d = max(8, triton.next_power_of_2(columns))
    block_t = max(1, 4096 // block_d)
    return {"BLOCK_T": block_t, "BLOCK_D": block_d, "num_warps": 8 if block_d <= 4096 else 16, "num_stages": 1}


@triton.jit
def _load(x, t, d, x_t, mask):
    return tl.load(x + t[:, None].to(tl.int64) * x_t + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(x, t, d, x_t, mask, value):
    tl.store(x + t[:, None].to(tl.int64) * x_t + d[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _total(
    x, residual, seed, t, d, x_t, residual_t, mask, threshold, scale,
    RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dropout(x) + residual, zero beyond the mask."""
    total = _load(x, t, d, x_t, mask)
    if DROPOUT:
        total = dropped(total, seed, t, 0, threshold, scale, BLOCK_D)
    if RESIDUAL:
        total += _load(residual, t, d, residual_t, mask)
    return total


@triton.jit(do_not_specialize=ANY_NUMBER)
def forward_kernel(
    x, residual, weight, bias, stream, out, statistics, seed,
    tokens, columns, x_t, residual_t, eps, threshold, scale,
    RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, BIAS: tl.constexpr, STREAM: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """With STREAM, the sum is stored there, (T, D)."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.arange(0, BLOCK_D)
    mask = (t[:, None] < tokens) & (d[None, :] < columns)
    total = _total(x, residual, seed, t, d, x_t, residual_t, mask, threshold, scale, RESIDUAL, DROPOUT, BLOCK_D)
    if STREAM:
        total = total.to(stream.dtype.element_ty).to(tl.float32)
        _store(stream, t, d, columns, mask, total)
    w = tl.load(weight + d, mask=d < columns, other=0.0).to(tl.float32)
    if BIAS:
        b = tl.load(bias + d, mask=d < columns, other=0.0).to(tl.float32)
    mean_T = tl.sum(total, 1) / columns
    centred = tl.where(mask, total - mean_T[:, None], 0.0)
    rstd_T = 1.0 / tl.sqrt(tl.sum(centred * centred, 1) / columns + eps)
    normed = centred * rstd_T[:, None] * w[None, :]
    if BIAS:
        normed += b[None, :]
    _store(out, t, d, columns, mask, normed)
    tl.store(statistics + t, mean_T, mask=t < tokens)
    tl.store(statistics + tokens + t, rstd_T, mask=t < tokens)


@triton.jit(do_not_specialize=ANY_NUMBER)
def backward_kernel(
    dout, x, residual, dstream, weight, statistics, seed, dx, dresidual, partial,
    tokens, columns, rows, x_t, residual_t, threshold, scale,
    RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, OWN_DRESIDUAL: tl.constexpr, BIAS: tl.constexpr, STREAM: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """`rows`, a multiple of BLOCK_T, are one program's; partial is (P, 2, D), whose second row counts with BIAS. With STREAM, x
    is the sum itself, and dstream (T, D) its own gradient."""
    d = tl.arange(0, BLOCK_D)
    w = tl.load(weight + d, mask=d < columns, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    dbias = tl.zeros((BLOCK_T, BLOCK_D), dtype=tl.float32)
    start = tl.program_id(0) * rows
    for first in range(start, tl.minimum(start + rows, tokens), BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        mask = (t[:, None] < tokens) & (d[None, :] < columns)
        dy = _load(dout, t, d, columns, mask)
        total = _total(
            x, residual, seed, t, d, x_t, residual_t, mask, threshold, scale, RESIDUAL, DROPOUT and not STREAM, BLOCK_D
        )
        mean_T = tl.load(statistics + t, mask=t < tokens, other=0.0)
        rstd_T = tl.load(statistics + tokens + t, mask=t < tokens, other=0.0)
        normed = tl.where(mask, (total - mean_T[:, None]) * rstd_T[:, None], 0.0)
        dweight += dy * normed
        if BIAS:
            dbias += dy
        dnormed = dy * w[None, :]
        along = tl.sum(dnormed * normed, 1) / columns
        shift = tl.sum(dnormed, 1) / columns
        dtotal = (dnormed - normed * along[:, None] - shift[:, None]) * rstd_T[:, None]
        if STREAM:
            dtotal += _load(dstream, t, d, columns, mask)
        if OWN_DRESIDUAL:
            _store(dresidual, t, d, columns, mask, dtotal)
        if DROPOUT:
            dtotal = dropped(dtotal, seed, t, 0, threshold, scale, BLOCK_D)
        _store(dx, t, d, columns, mask, dtotal)
    place = partial + tl.program_id(0).to(tl.int64) * 2 * columns + d
    tl.store(place, tl.sum(dweight, 0), mask=d < columns)
    if BIAS:
        tl.store(place + columns, tl.sum(dbias, 0), mask=d < columns)


@triton.jit(do_not_specialize=ANY_NUMBER)
def reduction_kernel(
    partial, dweight, dbias, programs, columns,
    BIAS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    w = tl.zeros((BLOCK_P, BLOCK_D), dtype=tl.float32)
    b = tl.zeros((BLOCK_P, BLOCK_D), dtype=tl.float32)
    for first in range(0, programs, BLOCK_P):
        p = first + tl.arange(0, BLOCK_P)
        mask = (p[:, None] < programs) & (d[None, :] < columns)
        place = partial + p[:, None].to(tl.int64) * 2 * columns + d[None, :]
        w += tl.load(place, mask=mask, other=0.0)
        if BIAS:
            b += tl.load(place + columns, mask=mask, other=0.0)
    tl.store(dweight + d, tl.sum(w, 0).to(dweight.dtype.element_ty), mask=d < columns)
    if BIAS:
        tl.store(dbias + d, tl.sum(b, 0).to(dbias.dtype.element_ty), mask=d < columns)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None, dropout_p: float,
    seed: Tensor | None, total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output (T, D), and the rows' means and reciprocal standard deviations, float32 (2, T). `total` becomes the sum."""
    tokens, columns = x.shape
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    statistics = torch.empty((2, tokens), dtype=torch.float32, device=x.device)
    if out.numel():
        constants = parameters(capability(x), columns)
        with device_of(x):
            forward_kernel[(triton.cdiv(tokens, constants["BLOCK_T"]),)](
                x, residual, weight, bias, total, out, statistics, seed, tokens, columns,
                x.stride(0), _row_stride(residual), eps, *threshold_and_scale(dropout_p),
                RESIDUAL=residual is not None, DROPOUT=seed is not None, BIAS=bias is not None, STREAM=total is not None,
                **constants,
            )  # fmt: skip
    return out, statistics


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, statistics: Tensor,
    dropout_p: float, seed: Tensor | None, own_dresidual: bool, dtotal: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, residual, weight, bias. Without `own_dresidual` the second is empty: it is the first.

    With `dtotal`, the gradient of the sum, x is the sum itself, and residual None.
    """
    tokens, columns = x.shape
    dx = torch.empty((tokens, columns), dtype=dout.dtype, device=x.device)
    of_residual = residual if dtotal is None else x
    dresidual = torch.empty_like(of_residual if own_dresidual else dx[:0], memory_format=torch.contiguous_format)
    dweight = torch.empty_like(weight)
    dbias = weight.new_empty(0) if bias is None else torch.empty_like(bias)
    if not dx.numel():
        return dx, dresidual, dweight.zero_(), dbias.zero_()
    constants = parameters(capability(x), columns)
    programs = min(triton.cdiv(tokens, constants["BLOCK_T"]), PROGRAMS_PER_PROCESSOR * processors(x))
    rows = triton.cdiv(triton.cdiv(tokens, programs), constants["BLOCK_T"]) * constants["BLOCK_T"]
    programs = triton.cdiv(tokens, rows)
    partial = torch.empty((programs, 2, columns), dtype=torch.float32, device=x.device)
    with device_of(x):
        backward_kernel[(programs,)](
            dout, x, residual, dtotal, weight, statistics, seed, dx, dresidual, partial,
            tokens, columns, rows, x.stride(0), _row_stride(residual), *threshold_and_scale(dropout_p),
            RESIDUAL=residual is not None, DROPOUT=seed is not None, OWN_DRESIDUAL=own_dresidual,
            BIAS=bias is not None, STREAM=dtotal is not None, **constants,
        )  # fmt: skip
        reduction_kernel[(triton.cdiv(columns, REDUCTION["BLOCK_D"]),)](
            partial, dweight, dbias, programs, columns, BIAS=bias is not None, **REDUCTION
        )
    return dx, dresidual, dweight, dbias


def _row_stride(residual: Tensor | None) -> int:
    return 0 if residual is None else residual.stride(0)
