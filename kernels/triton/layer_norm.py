"""LayerNorm(dropout(x) + residual): a warp holds whole rows in registers, in pieces of columns of which each lane has eight.

Up to 1,024 columns a row is one warp's, so that its sums need no other warp, and no lane is idle where the columns are a multiple
of 256, as at 768; wider rows are divided among more warps.

The sum is not stored where nobody else reads it: the backward reads x and residual again, which moves as many bytes and rounds
nothing, and draws the same dropout mask. A pre-norm block does read it: then it is stored, normed as it is rounded there, and is
all that the backward reads, which adds the sum's own gradient. The gradients of weight and bias are summed in two stages, both in
a fixed order: each program over its range of rows, whose next ones are fetched meanwhile, then one kernel over the programs.

Shapes: T tokens, D columns, P programs of the backward.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.device import capability, device_of, divided, processors
from kernels.triton.dropout import dropped, threshold_and_scale

LANE = 8  # neighbours in a row that a lane has of a piece: 128 bits of bfloat16, and one call of Philox
LITTLE_SHARED = (86, 89, 120)  # GPUs with 100 KB of it a multiprocessor; the others have 164 KB and more
# Warps of the backward for two readers that fit on a multiprocessor, of up to 768 columns and of more; elsewhere 8.
AGAIN_WARPS = {True: {80: 12, 90: 16, 100: 16}, False: {80: 12, 90: 12}}
# Numbers that follow from the batch, or from dropout: a kernel compiled for one serves all.
ANY_NUMBER = ["tokens", "rows", "programs", "threshold"]
REDUCTION = {"BLOCK_P": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 1}


def parameters(columns: int) -> dict[str, Any]:
    """Columns, rows of a program, columns of a piece, stages, warps: with four pieces a lane has 32 elements of a row."""
    piece = min(256, max(LANE, triton.next_power_of_2(columns)))
    piece = max(piece, triton.next_power_of_2(triton.cdiv(columns, 4)))
    warps = max(4, piece // (32 * LANE))
    block_t = warps * 32 * LANE // piece
    # Stages of the loop over rows: with two, the next rows come into shared memory meanwhile, which has room for so many columns.
    stages = 2 if columns <= 4096 else 1
    return {
        "COLUMNS": columns,
        "BLOCK_T": block_t,
        "PIECE": piece,
        "STAGES": stages,
        "num_warps": warps,
        "num_stages": 1,
    }


def programs_per_processor(capability: int, columns: int, backward: bool, again: bool = False) -> int:
    """What registers, 128 to 174 a thread, and shared memory let run at once; `again`: of the backward for two readers."""
    warps = 16
    if backward:
        warps = 16 if columns <= 768 else 12
        if capability in LITTLE_SHARED:
            warps -= 4
    if again:
        warps = min(warps, AGAIN_WARPS[columns <= 768].get(capability, 8))
    return max(1, warps // parameters(columns)["num_warps"])


def _divided(x: Tensor, backward: bool, again: bool = False) -> tuple[int, int]:
    tokens, columns = x.shape
    most = programs_per_processor(capability(x), columns, backward, again) * processors(x)
    return divided(tokens, parameters(columns)["BLOCK_T"], most)


@triton.jit
def _mask(t_T, d, tokens, COLUMNS: tl.constexpr, BEHIND: tl.constexpr):
    """Which elements of a piece there are; BEHIND is its end."""
    mask = (t_T < tokens)[:, None]
    if BEHIND > COLUMNS:
        mask = mask & (d < COLUMNS)[None, :]
    return mask


@triton.jit
def _load(x, t, d, x_t, mask):
    return tl.load(x + t[:, None].to(tl.int64) * x_t + d[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(x, t, d, x_t, mask, value):
    tl.store(x + t[:, None].to(tl.int64) * x_t + d[None, :], value.to(x.dtype.element_ty), mask=mask)


@triton.jit
def _parameter(weight, d, COLUMNS: tl.constexpr, BEHIND: tl.constexpr, BLOCK_T: tl.constexpr, PIECE: tl.constexpr):
    """A piece of the weight or bias for every row: as the elements lie, nothing has to be handed between lanes."""
    place = weight + (tl.zeros((BLOCK_T, PIECE), dtype=tl.int32) + d[None, :])
    value = tl.load(place) if BEHIND <= COLUMNS else tl.load(place, mask=(d < COLUMNS)[None, :], other=0.0)
    return value.to(tl.float32)


@triton.jit
def _total(
    x, residual, seed, t, d, x_t, residual_t, mask, threshold, scale,
    FIRST: tl.constexpr, RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, PIECE: tl.constexpr,
):  # fmt: skip
    """dropout(x) + residual of the piece that begins at FIRST, zero beyond the mask."""
    total = _load(x, t, d, x_t, mask)
    if DROPOUT:
        total = dropped(total, seed, t, FIRST, threshold, scale, PIECE)
    if RESIDUAL:
        total += _load(residual, t, d, residual_t, mask)
    return total


@triton.jit(do_not_specialize=ANY_NUMBER)
def forward_kernel(
    x, residual, weight, bias, stream, out, statistics, seed,
    tokens, rows, x_t, residual_t, eps, threshold, scale,
    RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, BIAS: tl.constexpr, STREAM: tl.constexpr,
    COLUMNS: tl.constexpr, BLOCK_T: tl.constexpr, PIECE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`rows`, a multiple of BLOCK_T, are one program's. With STREAM, the sum is stored there, (T, D)."""
    weights = ()
    biases = ()
    for first in tl.static_range(0, COLUMNS, PIECE):
        d = first + tl.arange(0, PIECE)
        weights = weights + (_parameter(weight, d, COLUMNS, first + PIECE, BLOCK_T, PIECE),)
        if BIAS:
            biases = biases + (_parameter(bias, d, COLUMNS, first + PIECE, BLOCK_T, PIECE),)
    start = tl.program_id(0) * rows
    for row in tl.range(start, tl.minimum(start + rows, tokens), BLOCK_T, num_stages=STAGES):
        t = row + tl.arange(0, BLOCK_T)
        totals = ()
        sums = tl.zeros((BLOCK_T, PIECE), dtype=tl.float32)
        for first in tl.static_range(0, COLUMNS, PIECE):
            d = first + tl.arange(0, PIECE)
            mask = _mask(t, d, tokens, COLUMNS, first + PIECE)
            total = _total(
                x, residual, seed, t, d, x_t, residual_t, mask, threshold, scale, first, RESIDUAL, DROPOUT, PIECE
            )
            if STREAM:
                total = total.to(stream.dtype.element_ty).to(tl.float32)
                _store(stream, t, d, COLUMNS, mask, total)
            sums += total
            totals = totals + (total,)
        mean_T = tl.sum(sums, 1) / COLUMNS
        squares = tl.zeros((BLOCK_T, PIECE), dtype=tl.float32)
        for first in tl.static_range(0, COLUMNS, PIECE):
            centred = totals[first // PIECE] - mean_T[:, None]
            if first + PIECE > COLUMNS:
                centred = tl.where((first + tl.arange(0, PIECE) < COLUMNS)[None, :], centred, 0.0)
            squares += centred * centred
        rstd_T = 1.0 / tl.sqrt(tl.sum(squares, 1) / COLUMNS + eps)
        for first in tl.static_range(0, COLUMNS, PIECE):
            d = first + tl.arange(0, PIECE)
            mask = _mask(t, d, tokens, COLUMNS, first + PIECE)
            normed = (totals[first // PIECE] - mean_T[:, None]) * rstd_T[:, None] * weights[first // PIECE]
            if BIAS:
                normed += biases[first // PIECE]
            _store(out, t, d, COLUMNS, mask, normed)
        tl.store(statistics + t, mean_T, mask=t < tokens)
        tl.store(statistics + tokens + t, rstd_T, mask=t < tokens)


@triton.jit(do_not_specialize=ANY_NUMBER)
def backward_kernel(
    dout, dagain, x, residual, dstream, weight, statistics, seed, dx, dresidual, partial,
    tokens, rows, x_t, residual_t, threshold, scale,
    RESIDUAL: tl.constexpr, DROPOUT: tl.constexpr, OWN_DRESIDUAL: tl.constexpr, BIAS: tl.constexpr, STREAM: tl.constexpr,
    AGAIN: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_T: tl.constexpr, PIECE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """`rows`, a multiple of BLOCK_T, are one program's; partial is (P, 2, D), whose second row counts with BIAS. With STREAM, x
    is the sum itself, and dstream (T, D) its own gradient. With AGAIN, dagain (T, D) is added to dout."""
    dweights = ()
    dbiases = ()
    for _ in tl.static_range(0, COLUMNS, PIECE):
        dweights = dweights + (tl.zeros((BLOCK_T, PIECE), dtype=tl.float32),)
        if BIAS:
            dbiases = dbiases + (tl.zeros((BLOCK_T, PIECE), dtype=tl.float32),)
    start = tl.program_id(0) * rows
    for row in tl.range(start, tl.minimum(start + rows, tokens), BLOCK_T, num_stages=STAGES):
        t = row + tl.arange(0, BLOCK_T)
        mean_T = tl.load(statistics + t, mask=t < tokens, other=0.0)
        rstd_T = tl.load(statistics + tokens + t, mask=t < tokens, other=0.0)
        normeds = ()
        dnormeds = ()
        own_dweights = ()
        own_dbiases = ()
        along, shift = tl.zeros((BLOCK_T, PIECE), dtype=tl.float32), tl.zeros((BLOCK_T, PIECE), dtype=tl.float32)
        for first in tl.static_range(0, COLUMNS, PIECE):
            d = first + tl.arange(0, PIECE)
            mask = _mask(t, d, tokens, COLUMNS, first + PIECE)
            dy = _load(dout, t, d, COLUMNS, mask)
            if AGAIN:
                dy += _load(dagain, t, d, COLUMNS, mask)
            total = _total(
                x, residual, seed, t, d, x_t, residual_t, mask, threshold, scale,
                first, RESIDUAL, DROPOUT and not STREAM, PIECE,
            )  # fmt: skip
            # Rows beyond the last have 0 for both; columns have a gradient of 0 there.
            normed = (total - mean_T[:, None]) * rstd_T[:, None]
            own_dweights = own_dweights + (dweights[first // PIECE] + dy * normed,)
            if BIAS:
                own_dbiases = own_dbiases + (dbiases[first // PIECE] + dy,)
            dnormed = dy * _parameter(weight, d, COLUMNS, first + PIECE, BLOCK_T, PIECE)
            along += dnormed * normed
            shift += dnormed
            normeds = normeds + (normed,)
            dnormeds = dnormeds + (dnormed,)
        dweights, dbiases = own_dweights, own_dbiases
        along_T, shift_T = tl.sum(along, 1) / COLUMNS, tl.sum(shift, 1) / COLUMNS
        for first in tl.static_range(0, COLUMNS, PIECE):
            d = first + tl.arange(0, PIECE)
            mask = _mask(t, d, tokens, COLUMNS, first + PIECE)
            dtotal = dnormeds[first // PIECE] - normeds[first // PIECE] * along_T[:, None] - shift_T[:, None]
            dtotal *= rstd_T[:, None]
            if STREAM:
                dtotal += _load(dstream, t, d, COLUMNS, mask)
            if OWN_DRESIDUAL:
                _store(dresidual, t, d, COLUMNS, mask, dtotal)
            if DROPOUT:
                dtotal = dropped(dtotal, seed, t, first, threshold, scale, PIECE)
            _store(dx, t, d, COLUMNS, mask, dtotal)
    for first in tl.static_range(0, COLUMNS, PIECE):
        d = first + tl.arange(0, PIECE)
        place = partial + tl.program_id(0).to(tl.int64) * 2 * COLUMNS + d
        tl.store(place, tl.sum(dweights[first // PIECE], 0), mask=d < COLUMNS)
        if BIAS:
            tl.store(place + COLUMNS, tl.sum(dbiases[first // PIECE], 0), mask=d < COLUMNS)


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
        programs, rows = _divided(x, backward=False)
        with device_of(x):
            forward_kernel[(programs,)](
                x, residual, weight, bias, total, out, statistics, seed, tokens, rows,
                x.stride(0), _row_stride(residual), eps, *threshold_and_scale(dropout_p),
                RESIDUAL=residual is not None, DROPOUT=seed is not None, BIAS=bias is not None, STREAM=total is not None,
                **parameters(columns),
            )  # fmt: skip
    return out, statistics


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, statistics: Tensor,
    dropout_p: float, seed: Tensor | None, own_dresidual: bool, dtotal: Tensor | None = None,
    dagain: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, residual, weight, bias. Without `own_dresidual` the second is empty: it is the first.

    With `dtotal`, the gradient of the sum, x is the sum itself, and residual None. `dagain` is a second part of dout.
    """
    tokens, columns = x.shape
    dx = torch.empty((tokens, columns), dtype=dout.dtype, device=x.device)
    of_residual = residual if dtotal is None else x
    dresidual = torch.empty_like(of_residual if own_dresidual else dx[:0], memory_format=torch.contiguous_format)
    dweight = torch.empty_like(weight)
    dbias = weight.new_empty(0) if bias is None else torch.empty_like(bias)
    if not dx.numel():
        return dx, dresidual, dweight.zero_(), dbias.zero_()
    programs, rows = _divided(x, backward=True, again=dagain is not None)
    partial = torch.empty((programs, 2, columns), dtype=torch.float32, device=x.device)
    with device_of(x):
        backward_kernel[(programs,)](
            dout, dagain, x, residual, dtotal, weight, statistics, seed, dx, dresidual, partial,
            tokens, rows, x.stride(0), _row_stride(residual), *threshold_and_scale(dropout_p),
            RESIDUAL=residual is not None, DROPOUT=seed is not None, OWN_DRESIDUAL=own_dresidual,
            BIAS=bias is not None, STREAM=dtotal is not None, AGAIN=dagain is not None, **parameters(columns),
        )  # fmt: skip
        reduction_kernel[(triton.cdiv(columns, REDUCTION["BLOCK_D"]),)](
            partial, dweight, dbias, programs, columns, BIAS=bias is not None, **REDUCTION
        )
    return dx, dresidual, dweight, dbias


def _row_stride(residual: Tensor | None) -> int:
    return 0 if residual is None else residual.stride(0)
