"""The gated linear unit, pointwise: each program takes some rows and some columns of both halves.

The backward reads x again and recomputes the activation, which is cheaper than to have stored it.

Shapes: T tokens, F columns of each half.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.device import device_of, divided, processors
from kernels.triton.dropout import dropped, threshold_and_scale

SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)
LOG2_E = tl.constexpr(1.4426950408889634)
FAR = tl.constexpr(6.0)  # standard deviations, beyond which the tail is taken as that there, 1e-9
# Numbers that follow from the batch, or from dropout: a kernel compiled for one serves all.
ANY_NUMBER = ["tokens", "rows", "threshold"]


def parameters(columns: int) -> dict[str, Any]:
    """Tile and warps. 16 elements a thread of each half: two 16-byte loads in flight of each, and registers to spare."""
    block_f = min(1024, max(8, triton.next_power_of_2(columns)))
    return {"BLOCK_T": 4096 // block_f, "BLOCK_F": block_f, "num_warps": 8, "num_stages": 1}


def programs_per_processor(backward: bool) -> int:
    """What registers, at most 80 a thread, and shared memory let run at once."""
    return 3 if backward else 4


@triton.jit
def _below(a, EXACT: tl.constexpr):
    """The normal distribution at a. The device library's `erf` is exact to float32's last digit, and spends a quarter of its
    instructions on choosing between its constants. What is rounded to 16 bits needs less: the tail's log2 as a polynomial of
    degree 6, which leaves gelu within 1e-6."""
    if EXACT:
        return 0.5 * (1.0 + tl.erf(a * SQRT_HALF))
    z = tl.minimum(tl.abs(a), FAR)
    tail = 1.90822643e-05
    tail = tail * z - 0.000658045504
    tail = tail * z + 0.00775322178
    tail = tail * z - 0.0529643160
    tail = tail * z - 0.4590606562
    tail = tail * z - 1.151122003
    tail = tl.exp2(tail * z - 0.9999996945)
    return tl.where(a < 0.0, tail, 1.0 - tail)


@triton.jit
def _activation(a, ACTIVATION: tl.constexpr, EXACT: tl.constexpr):
    """The activation of a and its derivative."""
    if ACTIVATION == "gelu":
        below = _below(a, EXACT)
        return a * below, below + a * INVERSE_SQRT_2PI * tl.exp2(-0.5 * LOG2_E * a * a)
    elif ACTIVATION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp2(-LOG2_E * a))
        return a * sigmoid, sigmoid * (1.0 + a * (1.0 - sigmoid))
    else:
        return tl.maximum(a, 0.0), tl.where(a > 0.0, 1.0, 0.0)


@triton.jit(do_not_specialize=ANY_NUMBER)
def forward_kernel(
    x, out, seed, tokens, rows, columns, x_t, out_t, threshold, scale,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_F columns of `rows` rows, a multiple of BLOCK_T, whose next ones are fetched meanwhile."""
    blocks = tl.cdiv(columns, BLOCK_F)
    start = tl.program_id(0) // blocks * rows
    first = tl.program_id(0) % blocks * BLOCK_F
    f = first + tl.arange(0, BLOCK_F)
    for row in tl.range(start, tl.minimum(start + rows, tokens), BLOCK_T, num_stages=2):
        t = row + tl.arange(0, BLOCK_T)
        mask = (t[:, None] < tokens) & (f[None, :] < columns)
        x_TF = x + t[:, None].to(tl.int64) * x_t + f[None, :]
        a = tl.load(x_TF, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x_TF + columns, mask=mask, other=0.0).to(tl.float32)
        active, _ = _activation(a, ACTIVATION, x.dtype.element_ty == tl.float32)
        y = active * b
        if DROPOUT:
            y = dropped(y, seed, t, first, threshold, scale, BLOCK_F)
        tl.store(out + t[:, None].to(tl.int64) * out_t + f[None, :], y.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=ANY_NUMBER)
def backward_kernel(
    x, dout, dx, seed, tokens, rows, columns, x_t, dout_t, dx_t, threshold, scale,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """Likewise."""
    blocks = tl.cdiv(columns, BLOCK_F)
    start = tl.program_id(0) // blocks * rows
    first = tl.program_id(0) % blocks * BLOCK_F
    f = first + tl.arange(0, BLOCK_F)
    for row in tl.range(start, tl.minimum(start + rows, tokens), BLOCK_T, num_stages=2):
        t = row + tl.arange(0, BLOCK_T)
        mask = (t[:, None] < tokens) & (f[None, :] < columns)
        x_TF = x + t[:, None].to(tl.int64) * x_t + f[None, :]
        a = tl.load(x_TF, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x_TF + columns, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dout + t[:, None].to(tl.int64) * dout_t + f[None, :], mask=mask, other=0.0).to(tl.float32)
        if DROPOUT:
            dy = dropped(dy, seed, t, first, threshold, scale, BLOCK_F)
        active, slope = _activation(a, ACTIVATION, x.dtype.element_ty == tl.float32)
        dx_TF = dx + t[:, None].to(tl.int64) * dx_t + f[None, :]
        tl.store(dx_TF, (dy * b * slope).to(dx.dtype.element_ty), mask=mask)
        tl.store(dx_TF + columns, (dy * active).to(dx.dtype.element_ty), mask=mask)


def forward(x: Tensor, activation: str, dropout_p: float, seed: Tensor | None) -> Tensor:
    """(T, 2 F) with any stride between rows to (T, F)."""
    tokens, columns = x.shape[0], x.shape[1] // 2
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    if out.numel():
        programs, rows, constants = _divided(x, backward=False)
        with device_of(x):
            forward_kernel[(programs,)](
                x, out, seed, tokens, rows, columns, x.stride(0), columns, *threshold_and_scale(dropout_p),
                ACTIVATION=activation, DROPOUT=seed is not None, **constants,
            )  # fmt: skip
    return out


def backward(dout: Tensor, x: Tensor, activation: str, dropout_p: float, seed: Tensor | None) -> Tensor:
    """The gradient (T, 2 F) of x from that (T, F) of the output."""
    tokens, columns = dout.shape
    dx = torch.empty((tokens, 2 * columns), dtype=x.dtype, device=x.device)
    if dx.numel():
        programs, rows, constants = _divided(x, backward=True)
        with device_of(x):
            backward_kernel[(programs,)](
                x, dout, dx, seed, tokens, rows, columns, x.stride(0), dout.stride(0), 2 * columns,
                *threshold_and_scale(dropout_p), ACTIVATION=activation, DROPOUT=seed is not None, **constants,
            )  # fmt: skip
    return dx


def _divided(x: Tensor, backward: bool) -> tuple[int, int, dict[str, Any]]:
    """Programs, rows of each, and the constants, for x (T, 2 F)."""
    tokens, columns = x.shape[0], x.shape[1] // 2
    constants = parameters(columns)
    blocks = triton.cdiv(columns, constants["BLOCK_F"])
    most = max(1, programs_per_processor(backward) * processors(x) // blocks)
    ranges, rows = divided(tokens, constants["BLOCK_T"], most)
    return ranges * blocks, rows, constants
