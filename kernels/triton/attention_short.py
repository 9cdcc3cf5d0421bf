"""Attention for sequences of at most 128 tokens: one program for each (sequence, head), which keeps all keys on chip.

The rows of the softmax are whole, so the forward needs no running maximum, and the backward finds its row sums of dP * P (the
"delta" that other kernels make in a pass of its own) in registers: one kernel reads q, k, v, dout and writes dq, dk, dv, without
atomics.

Shapes: L keys of a sequence, padded to BLOCK_L; M queries of a tile; H head size, padded to BLOCK_H. Scores are in base 2.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.device import capability, device_of
from kernels.triton.launch import nearest, precision, strides

MAX_LENGTH = 128
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _rows(pointer, start, stride, offsets, offsets_h, length, HEAD: tl.constexpr):
    """A (rows, BLOCK_H) tile of one sequence and head, zero beyond the sequence and the head's size."""
    address = pointer + start.to(tl.int64) * stride + offsets[:, None] * stride + offsets_h[None, :]
    return tl.load(address, mask=(offsets[:, None] < length) & (offsets_h[None, :] < HEAD), other=0.0)


@triton.jit
def _store_rows(pointer, start, stride, offsets, offsets_h, length, x, HEAD: tl.constexpr):
    address = pointer + start.to(tl.int64) * stride + offsets[:, None] * stride + offsets_h[None, :]
    mask = (offsets[:, None] < length) & (offsets_h[None, :] < HEAD)
    tl.store(address, x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _biased(scores, distance, slope, window, HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Scores less slope * distance, and -inf beyond the window."""
    if HAS_SLOPES:
        scores -= slope * distance
    if HAS_WINDOW:
        scores = tl.where(distance <= window, scores, float("-inf"))
    return scores


@triton.jit
def forward_kernel(
    q, k, v, out, lse, cu_seqlens, slopes,
    heads, tokens, scale, window,
    q_t, q_n, k_t, k_n, v_t, v_n, out_t, out_n,
    HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    start = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - start
    if length <= 0:
        return
    slope = 0.0
    if HAS_SLOPES:
        slope = tl.load(slopes + head).to(tl.float32) * LOG2E
    h = tl.arange(0, BLOCK_H)
    j = tl.arange(0, BLOCK_L)
    k_LH = _rows(k + head * k_n, start, k_t, j, h, length, HEAD)
    v_LH = _rows(v + head * v_n, start, v_t, j, h, length, HEAD)
    for first in tl.range(0, length, BLOCK_M, num_stages=1):
        i = first + tl.arange(0, BLOCK_M)
        q_MH = _rows(q + head * q_n, start, q_t, i, h, length, HEAD)
        s_ML = tl.dot(q_MH, tl.trans(k_LH), input_precision=PRECISION) * (scale * LOG2E)
        distance = tl.abs(i[:, None] - j[None, :]).to(tl.float32)
        s_ML = _biased(s_ML, distance, slope, window, HAS_SLOPES, HAS_WINDOW)
        s_ML = tl.where(j[None, :] < length, s_ML, float("-inf"))
        # A padded query far outside the window sees no key; its row, never stored, must not become NaN arithmetic.
        greatest = tl.maximum(tl.max(s_ML, 1), -1e30)
        p_ML = tl.exp2(s_ML - greatest[:, None])
        total = tl.sum(p_ML, 1)
        o_MH = tl.dot(p_ML.to(v_LH.dtype), v_LH, input_precision=PRECISION) / total[:, None]
        _store_rows(out + head * out_n, start, out_t, i, h, length, o_MH, HEAD)
        tl.store(lse + head.to(tl.int64) * tokens + start + i, greatest + tl.log2(total), mask=i < length)


@triton.jit
def backward_kernel(
    dout, q, k, v, lse, dq, dk, dv, cu_seqlens, slopes,
    heads, tokens, scale, window,
    do_t, do_n, q_t, q_n, k_t, k_n, v_t, v_n, dq_t, dq_n, dk_t, dk_n, dv_t, dv_n,
    HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0) // heads
    head = tl.program_id(0) % heads
    start = tl.load(cu_seqlens + sequence)
    length = tl.load(cu_seqlens + sequence + 1) - start
    if length <= 0:
        return
    slope = 0.0
    if HAS_SLOPES:
        slope = tl.load(slopes + head).to(tl.float32) * LOG2E
    h = tl.arange(0, BLOCK_H)
    j = tl.arange(0, BLOCK_L)
    k_LH = _rows(k + head * k_n, start, k_t, j, h, length, HEAD)
    v_LH = _rows(v + head * v_n, start, v_t, j, h, length, HEAD)
    dk_LH = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
    dv_LH = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
    for first in tl.range(0, length, BLOCK_M, num_stages=1):
        i = first + tl.arange(0, BLOCK_M)
        q_MH = _rows(q + head * q_n, start, q_t, i, h, length, HEAD)
        do_MH = _rows(dout + head * do_n, start, do_t, i, h, length, HEAD)
        # Padded queries: exp2(s - inf) = 0, so they add nothing to dk and dv.
        lse_M = tl.load(lse + head.to(tl.int64) * tokens + start + i, mask=i < length, other=float("inf"))
        # Keys are the rows here, so that the products for dv and dk take P and dS as they stand in registers.
        s_LM = tl.dot(k_LH, tl.trans(q_MH), input_precision=PRECISION) * (scale * LOG2E)
        distance = tl.abs(j[:, None] - i[None, :]).to(tl.float32)
        s_LM = _biased(s_LM, distance, slope, window, HAS_SLOPES, HAS_WINDOW)
        p_LM = tl.where(j[:, None] < length, tl.exp2(s_LM - lse_M[None, :]), 0.0)
        dv_LH = tl.dot(p_LM.to(do_MH.dtype), do_MH, dv_LH, input_precision=PRECISION)
        dp_LM = tl.dot(v_LH, tl.trans(do_MH), input_precision=PRECISION)
        delta_M = tl.sum(p_LM * dp_LM, 0)
        ds_LM = (p_LM * (dp_LM - delta_M[None, :])).to(q_MH.dtype)
        dk_LH = tl.dot(ds_LM, q_MH, dk_LH, input_precision=PRECISION)
        dq_MH = tl.dot(tl.trans(ds_LM), k_LH, input_precision=PRECISION) * scale
        _store_rows(dq + head * dq_n, start, dq_t, i, h, length, dq_MH, HEAD)
    _store_rows(dk + head * dk_n, start, dk_t, j, h, length, dk_LH * scale, HEAD)
    _store_rows(dv + head * dv_n, start, dv_t, j, h, length, dv_LH, HEAD)


# Queries a tile and warps, by size of the padded head. Chosen by what tests/kernels/compiled.json shows: no spill on any
# GPU, and on most of them two programs or more at once on a multiprocessor. Not measured.
_FORWARD = {32: (64, 4), 64: (32, 4), 128: (32, 4)}
_BACKWARD = {32: (32, 4), 64: (32, 4), 128: (32, 8)}
# Warp-group and fifth-generation products want 64 queries in the forward; sm_120 has a tighter register budget here.
_FORWARD_FOR = {gpu: {32: (64, 4), 64: (64, 4), 128: (64, 4)} for gpu in (90, 100)}
_BACKWARD_FOR = {120: {32: (32, 4), 64: (32, 8), 128: (16, 8)}}


def constants(
    kernel: str, gpu: int, max_seqlen: int, head: int, dtype: torch.dtype, slopes: bool, window: bool
) -> dict:
    """The constants of a launch of "forward" or "backward", for launchers and for ahead-of-time compilation."""
    block_h = max(32, triton.next_power_of_2(head))
    block_l = max(16, triton.next_power_of_2(max_seqlen))
    default, special = (_FORWARD, _FORWARD_FOR) if kernel == "forward" else (_BACKWARD, _BACKWARD_FOR)
    block_m, warps = special.get(nearest(gpu), default)[block_h]
    if window and kernel == "backward":
        warps = 8  # its comparisons need the few registers that four warps have left
    return {
        "HEAD": head, "BLOCK_H": block_h, "BLOCK_L": block_l, "BLOCK_M": min(block_m, block_l),
        "HAS_SLOPES": slopes, "HAS_WINDOW": window, "PRECISION": precision(dtype),
        "num_warps": warps, "num_stages": 1,
    }  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Output (T, N, H) and the base-2 logarithm (N, T) of each softmax's denominator."""
    tokens, heads, head = q.shape
    out = q.new_empty((tokens, heads, head))
    lse = q.new_empty((heads, tokens), dtype=torch.float32)
    chosen = constants("forward", capability(q), max_seqlen, head, q.dtype, slopes is not None, window is not None)
    with device_of(q):
        forward_kernel[((cu_seqlens.numel() - 1) * heads,)](
            q, k, v, out, lse, cu_seqlens, slopes, heads, tokens, head**-0.5, window or 0,
            *strides(q, k, v, out), **chosen,
        )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None,
) -> None:  # fmt: skip
    """Fills dq, dk, dv."""
    tokens, heads, head = q.shape
    chosen = constants("backward", capability(q), max_seqlen, head, q.dtype, slopes is not None, window is not None)
    with device_of(q):
        backward_kernel[((cu_seqlens.numel() - 1) * heads,)](
            dout, q, k, v, lse, dq, dk, dv, cu_seqlens, slopes, heads, tokens, head**-0.5, window or 0,
            *strides(dout, q, k, v, dq, dk, dv), **chosen,
        )  # fmt: skip
