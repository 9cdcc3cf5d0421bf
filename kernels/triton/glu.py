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

from kernels.triton.device import capability, device_of
from kernels.triton.dropout import dropped, threshold_and_scale

SQRT_HALF = tl.constexpr(0.7071067811865476)
INVERSE_SQRT_2PI = tl.constexpr(0.3989422804014327)


def parameters(capability: int, columns: int) -> dict[str, Any]:
    """Tile and warps. 16 elements a thread of each half: two 16-byte loads in flight of each, and registers to spare."""
    block_f = min(1024, max(8, triton.next_power_of_2(columns)))
    return {"BLOCK_T": 4096 // block_f, "BLOCK_F": block_f, "num_warps": 8, "num_stages": 1}


@triton.jit
def _activation(a, ACTIVATION: tl.constexpr):
    """The activation of a and its derivative."""
    if ACTIVATION == "gelu":
        below = 0.5 * (1.0 + tl.erf(a * SQRT_HALF))
        return a * below, below + a * INVERSE_SQRT_2PI * tl.exp(-0.5 * a * a)
    elif ACTIVATION == "silu":
        sigmoid = 1.0 / (1.0 + tl.exp(-a))
        return a * sigmoid, sigmoid * (1.0 + a * (1.0 - sigmoid))
    else:
        return tl.maximum(a, 0.0), tl.where(a > 0.0, 1.0, 0.0)


@triton.jit
def forward_kernel(
    x, out, seed, tokens, columns, x_t, out_t, threshold, scale,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, BLOCK_F)
    t = tl.program_id(0) // blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    first = tl.program_id(0) % blocks * BLOCK_F
    f = first + tl.arange(0, BLOCK_F)
    mask = (t[:, None] < tokens) & (f[None, :] < columns)
    x_TF = x + t[:, None].to(tl.int64) * x_t + f[None, :]
    a = tl.load(x_TF, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_TF + columns, mask=mask, other=0.0).to(tl.float32)
    active, _ = _activation(a, ACTIVATION)
    y = active * b
    if DROPOUT:
        y = dropped(y, seed, t, first, threshold, scale, BLOCK_F)
    tl.store(out + t[:, None].to(tl.int64) * out_t + f[None, :], y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    x, dout, dx, seed, tokens, columns, x_t, dout_t, dx_t, threshold, scale,
    ACTIVATION: tl.constexpr, DROPOUT: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(columns, BLOCK_F)
    t = tl.program_id(0) // blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    first = tl.program_id(0) % blocks * BLOCK_F
    f = first + tl.arange(0, BLOCK_F)
    mask = (t[:, None] < tokens) & (f[None, :] < columns)
    x_TF = x + t[:, None].to(tl.int64) * x_t + f[None, :]
    a = tl.load(x_TF, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x_TF + columns, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dout + t[:, None].to(tl.int64) * dout_t + f[None, :], mask=mask, other=0.0).to(tl.float32)
    if DROPOUT:
        dy = dropped(dy, seed, t, first, threshold, scale, BLOCK_F)
    active, slope = _activation(a, ACTIVATION)
    dx_TF = dx + t[:, None].to(tl.int64) * dx_t + f[None, :]
    tl.store(dx_TF, (dy * b * slope).to(dx.dtype.element_ty), mask=mask)
    tl.store(dx_TF + columns, (dy * active).to(dx.dtype.element_ty), mask=mask)


def forward(x: Tensor, activation: str, dropout_p: float, seed: Tensor | None) -> Tensor:
    """(T, 2 F) with any stride between rows to (T, F)."""
    tokens, columns = x.shape[0], x.shape[1] // 2
    out = torch.empty((tokens, columns), dtype=x.dtype, device=x.device)
    if out.numel():
        constants = parameters(capability(x), columns)
        with device_of(x):
            forward_kernel[_grid(tokens, columns, constants)](
                x, out, seed, tokens, columns, x.stride(0), columns, *threshold_and_scale(dropout_p),
                ACTIVATION=activation, DROPOUT=seed is not None, **constants,
            )  # fmt: skip
    return out


def backward(dout: Tensor, x: Tensor, activation: str, dropout_p: float, seed: Tensor | None) -> Tensor:
    """The gradient (T, 2 F) of x from that (T, F) of the output."""
    tokens, columns = dout.shape
    dx = torch.empty((tokens, 2 * columns), dtype=x.dtype, device=x.device)
    if dx.numel():
        constants = parameters(capability(x), columns)
        with device_of(x):
            backward_kernel[_grid(tokens, columns, constants)](
                x, dout, dx, seed, tokens, columns, x.stride(0), dout.stride(0), 2 * columns,
                *threshold_and_scale(dropout_p), ACTIVATION=activation, DROPOUT=seed is not None, **constants,
            )  # fmt: skip
    return dx


def _grid(tokens: int, columns: int, constants: dict[str, Any]) -> tuple[int]:
    return (triton.cdiv(tokens, constants["BLOCK_T"]) * triton.cdiv(columns, constants["BLOCK_F"]),)
