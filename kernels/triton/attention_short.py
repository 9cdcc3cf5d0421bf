"""Attention for sequences of at most 128 tokens: one program for each (sequence, head), which keeps all keys on chip.

The rows of the softmax are whole, so the forward needs no running maximum, and the backward finds its row sums of dP * P (the
"delta" that other kernels make in a pass of its own) in registers: one kernel reads q, k, v, dout and writes dq, dk, dv, without
atomics. It has two forms. On a GPU whose products are a warp group's and that has room for two sequences on chip, a program takes
one (sequence, head) after another, all queries at once, while the next one comes; elsewhere it takes one, a tile of queries at a
time.

Shapes: L keys of a sequence, padded to BLOCK_L; M queries of a tile; H head size, padded to BLOCK_H; N heads; T tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.attention_parts import (
    ANY_SIZE,
    LOG2E,
    biased,
    head_slope,
    load_tile,
    nearest,
    padded_head,
    precision,
    real,
    sequence_bounds,
    store_tile,
    strides,
)
from kernels.triton.device import capability, device_of, processors

MAX_LENGTH = 128


@triton.jit(do_not_specialize=ANY_SIZE)
def forward_kernel(
    q, k, v, out, lse, cu_seqlens, slopes,
    heads, tokens, scale, window,
    q_t, q_n, k_t, k_n, v_t, v_n, out_t, out_n,
    HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    start, length = sequence_bounds(cu_seqlens, tl.program_id(0) // heads, tokens)
    slope = head_slope(slopes, head, HAS_SLOPES)
    k_LH = load_tile(k + head * k_n, start, k_t, length, BLOCK_L, HEAD, BLOCK_H)
    v_LH = load_tile(v + head * v_n, start, v_t, length, BLOCK_L, HEAD, BLOCK_H)
    j = tl.arange(0, BLOCK_L)[None, :]
    for first in tl.range(0, length, BLOCK_M, num_stages=1):
        i = first + tl.arange(0, BLOCK_M)
        q_MH = load_tile(q + head * q_n, start + first, q_t, length - first, BLOCK_M, HEAD, BLOCK_H)
        s_ML = tl.dot(q_MH, tl.trans(k_LH), input_precision=PRECISION) * (scale * LOG2E)
        s_ML = biased(s_ML, i[:, None], j, slope, window, HAS_SLOPES, HAS_WINDOW)
        s_ML = tl.where(j < length, s_ML, float("-inf"))
        # A padded query can be outside every key's window; its row, which is not stored, must not become inf - inf.
        greatest = tl.maximum(tl.max(s_ML, 1), -1e30)
        p_ML = tl.exp2(s_ML - greatest[:, None])
        total = tl.sum(p_ML, 1)
        o_MH = tl.dot(p_ML.to(v_LH.dtype), v_LH, input_precision=PRECISION) / total[:, None]
        store_tile(out + head * out_n, start + first, out_t, length - first, o_MH, BLOCK_M, HEAD, BLOCK_H)
        tl.store(lse + head.to(tl.int64) * tokens + start + i, greatest + tl.log2(total), mask=i < length)


@triton.jit
def _load_whole(pointer, row, stride, count, ROWS: tl.constexpr, HEAD: tl.constexpr, BLOCK_H: tl.constexpr):
    """`load_tile`, whose addresses each pass of a loop makes anew: kept from pass to pass, they would take registers."""
    r = tl.arange(0, ROWS)[:, None]
    h = tl.arange(0, BLOCK_H)[None, :]
    return tl.load(pointer + (row + r).to(tl.int64) * stride + h, mask=real(r, h, count, HEAD, BLOCK_H), other=0.0)


@triton.jit
def _store_whole(pointer, row, stride, count, x, ROWS: tl.constexpr, HEAD: tl.constexpr, BLOCK_H: tl.constexpr):
    """`store_tile`, likewise."""
    r = tl.arange(0, ROWS)[:, None]
    h = tl.arange(0, BLOCK_H)[None, :]
    place = pointer + (row + r).to(tl.int64) * stride + h
    tl.store(place, x.to(pointer.dtype.element_ty), mask=real(r, h, count, HEAD, BLOCK_H))


@triton.jit(do_not_specialize=ANY_SIZE)
def whole_backward_kernel(
    dout, q, k, v, lse, dq, dk, dv, cu_seqlens, slopes,
    heads, tokens, tasks, scale,
    do_t, do_n, q_t, q_n, k_t, k_n, v_t, v_n, dq_t, dq_n, dk_t, dk_n, dv_t, dv_n,
    HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_L: tl.constexpr, HAS_SLOPES: tl.constexpr,
):  # fmt: skip
    """A task is one (sequence, head). Queries are the rows here, so that delta is a sum along what one thread quad has."""
    i = tl.arange(0, BLOCK_L)
    for task in tl.range(tl.program_id(0), tasks, tl.num_programs(0), num_stages=2):
        head = task % heads
        start, length = sequence_bounds(cu_seqlens, task // heads, tokens)
        q_LH = _load_whole(q + head * q_n, start, q_t, length, BLOCK_L, HEAD, BLOCK_H)
        k_LH = _load_whole(k + head * k_n, start, k_t, length, BLOCK_L, HEAD, BLOCK_H)
        do_LH = _load_whole(dout + head * do_n, start, do_t, length, BLOCK_L, HEAD, BLOCK_H)
        v_LH = _load_whole(v + head * v_n, start, v_t, length, BLOCK_L, HEAD, BLOCK_H)
        # Padded queries: exp2(s - inf) = 0, so they add nothing to dk and dv.
        lse_L = tl.load(lse + head.to(tl.int64) * tokens + start + i, mask=i < length, other=float("inf"))
        # |slope i - slope j| in place of slope |i - j|: of the second, every thread would keep all its distances. A padded key is
        # infinitely far away.
        place_L = i.to(tl.float32) * head_slope(slopes, head, HAS_SLOPES)
        of_key_L = tl.where(i < length, place_L, float("inf"))
        s_LL = tl.dot(q_LH, tl.trans(k_LH)) * (scale * LOG2E) - lse_L[:, None]
        p_LL = tl.exp2(s_LL - tl.abs(place_L[:, None] - of_key_L[None, :]))
        dp_LL = tl.dot(do_LH, tl.trans(v_LH))
        delta_L = tl.sum(p_LL * dp_LL, 1)
        ds_LL = (p_LL * (dp_LL - delta_L[:, None])).to(q_LH.dtype)
        dv_LH = tl.dot(tl.trans(p_LL.to(do_LH.dtype)), do_LH)
        _store_whole(dv + head * dv_n, start, dv_t, length, dv_LH, BLOCK_L, HEAD, BLOCK_H)
        dk_LH = tl.dot(tl.trans(ds_LL), q_LH) * scale
        _store_whole(dk + head * dk_n, start, dk_t, length, dk_LH, BLOCK_L, HEAD, BLOCK_H)
        dq_LH = tl.dot(ds_LL, k_LH) * scale
        _store_whole(dq + head * dq_n, start, dq_t, length, dq_LH, BLOCK_L, HEAD, BLOCK_H)


@triton.jit(do_not_specialize=ANY_SIZE)
def backward_kernel(
    dout, q, k, v, lse, dq, dk, dv, cu_seqlens, slopes,
    heads, tokens, scale, window,
    do_t, do_n, q_t, q_n, k_t, k_n, v_t, v_n, dq_t, dq_n, dk_t, dk_n, dv_t, dv_n,
    HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    start, length = sequence_bounds(cu_seqlens, tl.program_id(0) // heads, tokens)
    slope = head_slope(slopes, head, HAS_SLOPES)
    k_LH = load_tile(k + head * k_n, start, k_t, length, BLOCK_L, HEAD, BLOCK_H)
    v_LH = load_tile(v + head * v_n, start, v_t, length, BLOCK_L, HEAD, BLOCK_H)
    dk_LH = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
    dv_LH = tl.zeros((BLOCK_L, BLOCK_H), dtype=tl.float32)
    j = tl.arange(0, BLOCK_L)[:, None]
    for first in tl.range(0, length, BLOCK_M, num_stages=1):
        i = first + tl.arange(0, BLOCK_M)
        q_MH = load_tile(q + head * q_n, start + first, q_t, length - first, BLOCK_M, HEAD, BLOCK_H)
        do_MH = load_tile(dout + head * do_n, start + first, do_t, length - first, BLOCK_M, HEAD, BLOCK_H)
        # Padded queries: exp2(s - inf) = 0, so they add nothing to dk and dv.
        lse_M = tl.load(lse + head.to(tl.int64) * tokens + start + i, mask=i < length, other=float("inf"))
        # Keys are the rows here, so that the products for dv and dk take P and dS as they stand in registers.
        s_LM = tl.dot(k_LH, tl.trans(q_MH), input_precision=PRECISION) * (scale * LOG2E)
        s_LM = biased(s_LM, i[None, :], j, slope, window, HAS_SLOPES, HAS_WINDOW)
        p_LM = tl.where(j < length, tl.exp2(s_LM - lse_M[None, :]), 0.0)
        dv_LH = tl.dot(p_LM.to(do_MH.dtype), do_MH, dv_LH, input_precision=PRECISION)
        dp_LM = tl.dot(v_LH, tl.trans(do_MH), input_precision=PRECISION)
        delta_M = tl.sum(p_LM * dp_LM, 0)
        ds_LM = (p_LM * (dp_LM - delta_M[None, :])).to(q_MH.dtype)
        dk_LH = tl.dot(ds_LM, q_MH, dk_LH, input_precision=PRECISION)
        dq_MH = tl.dot(tl.trans(ds_LM), k_LH, input_precision=PRECISION) * scale
        store_tile(dq + head * dq_n, start + first, dq_t, length - first, dq_MH, BLOCK_M, HEAD, BLOCK_H)
    store_tile(dk + head * dk_n, start, dk_t, length, dk_LH * scale, BLOCK_L, HEAD, BLOCK_H)
    store_tile(dv + head * dv_n, start, dv_t, length, dv_LH, BLOCK_L, HEAD, BLOCK_H)


# Queries a tile and warps, by size of the padded head and then by GPU. Chosen by what tests/kernels/compiled.json shows: nothing
# spills, and warp-group and fifth-generation products (sm_90, sm_100) get the tiles they want. Not measured.
_FORWARD = {32: (64, 4), 64: (32, 4), 128: (32, 4)}
_BACKWARD = {32: (32, 4), 64: (32, 8), 128: (16, 8)}
_FORWARD_ON = {gpu: dict.fromkeys((32, 64, 128), (64, 4)) for gpu in (90, 100)}
_FORWARD_ON[100][128] = (64, 8)  # with four warps, Triton 3.9 spills where 3.6 does not
_BACKWARD_ON = {90: {32: (32, 4), 64: (64, 8), 128: (32, 8)}, 100: {32: (32, 4), 64: (32, 4), 128: (32, 8)}}


def fits(max_seqlen: int, head: int, dtype: torch.dtype, window: bool) -> bool:
    """Whether sequences fit on chip: not with float32's three-fold products, nor with a window beside large heads."""
    return max_seqlen <= MAX_LENGTH and dtype != torch.float32 and not (window and head > 64)


def takes_whole(gpu: int, head: int, window: bool) -> bool:
    """Whether the backward takes all queries of a sequence at once: 164 KB of shared memory for two sequences of heads of 64, and
    255 registers a thread, which a window's comparisons would exceed, and Triton 3.9 does with 28 to 44 spills."""
    return nearest(gpu) == 90 and padded_head(head) <= 64 and not window and triton.__version__.startswith("3.6.")


def whole_constants(max_seqlen: int, head: int, slopes: bool) -> dict:
    """Of a launch of the backward that takes all queries at once."""
    sizes = {"BLOCK_H": padded_head(head), "BLOCK_L": max(16, triton.next_power_of_2(max_seqlen))}
    return {"HEAD": head, **sizes, "HAS_SLOPES": slopes, "num_warps": 8, "num_stages": 1}


def constants(
    kernel: str, gpu: int, max_seqlen: int, head: int, dtype: torch.dtype, slopes: bool, window: bool
) -> dict:
    """The constants of a launch of "forward" or "backward", for launchers and for ahead-of-time compilation."""
    block_h = padded_head(head)
    block_l = max(16, triton.next_power_of_2(max_seqlen))
    default, special = (_FORWARD, _FORWARD_ON) if kernel == "forward" else (_BACKWARD, _BACKWARD_ON)
    block_m, warps = special.get(nearest(gpu), default)[block_h]
    if window and kernel == "backward":
        warps = 8  # its comparisons need registers that four warps have not left
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
    gpu, sequences = capability(q), cu_seqlens.numel() - 1
    with device_of(q):
        if takes_whole(gpu, head, window is not None):
            tasks = sequences * heads
            whole_backward_kernel[(min(tasks, processors(q)),)](
                dout, q, k, v, lse, dq, dk, dv, cu_seqlens, slopes, heads, tokens, tasks, head**-0.5,
                *strides(dout, q, k, v, dq, dk, dv), **whole_constants(max_seqlen, head, slopes is not None),
            )  # fmt: skip
            return
        chosen = constants("backward", gpu, max_seqlen, head, q.dtype, slopes is not None, window is not None)
        backward_kernel[(sequences * heads,)](
            dout, q, k, v, lse, dq, dk, dv, cu_seqlens, slopes, heads, tokens, head**-0.5, window or 0,
            *strides(dout, q, k, v, dq, dk, dv), **chosen,
        )  # fmt: skip
