"""Attention for sequences of any length, tile by tile: a running softmax forward, two passes backward, no atomics.

The first backward pass makes dq, tile of queries by tile of queries, and on its way the row sums of dout * out ("delta") that the
second needs, which makes dk and dv, tile of keys by tile of keys. Each output is written by one program, in one order: results
are the same on every run.

Shapes: M queries of a tile; K keys of a tile; H head size, padded to BLOCK_H; N heads; T tokens. Scores are in base 2.
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
    sequence_bounds,
    store_tile,
    strides,
)
from kernels.triton.device import capability, device_of


@triton.jit
def program(cu_seqlens, heads, tokens, blocks):
    """This program's tile, head, and its sequence's first token and length; tiles of one head are neighbours."""
    block = tl.program_id(0) % blocks
    head = tl.program_id(0) // blocks % heads
    start, length = sequence_bounds(cu_seqlens, tl.program_id(0) // blocks // heads, tokens)
    return block, head, start, length


@triton.jit
def span(first, length, window, ROWS: tl.constexpr, STEP: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Where the loop over the other side begins and ends for ROWS tokens from `first` on: all, or what the window reaches."""
    low = 0
    high = length
    if HAS_WINDOW:
        low = tl.maximum(first - window, 0) // STEP * STEP
        high = tl.minimum(first + ROWS + window, length)
    return low, high


@triton.jit(do_not_specialize=ANY_SIZE)
def forward_kernel(
    q, k, v, out, lse, cu_seqlens, slopes,
    heads, tokens, blocks, scale, window,
    q_t, q_n, k_t, k_n, v_t, v_n, out_t, out_n,
    HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    block, head, start, length = program(cu_seqlens, heads, tokens, blocks)
    first = block * BLOCK_M
    if first >= length:
        return
    slope = head_slope(slopes, head, HAS_SLOPES)
    i = first + tl.arange(0, BLOCK_M)
    q_MH = load_tile(q + head * q_n, start + first, q_t, length - first, BLOCK_M, HEAD, BLOCK_H)
    o_MH = tl.zeros((BLOCK_M, BLOCK_H), dtype=tl.float32)
    total_M = tl.zeros((BLOCK_M,), dtype=tl.float32)
    # Finite, so that a row which has not met a key yet, by its window, does not become inf - inf.
    greatest_M = tl.full((BLOCK_M,), -1e30, dtype=tl.float32)
    low, high = span(first, length, window, BLOCK_M, BLOCK_K, HAS_WINDOW)
    for key in tl.range(low, high, BLOCK_K):
        j = key + tl.arange(0, BLOCK_K)
        k_KH = load_tile(k + head * k_n, start + key, k_t, length - key, BLOCK_K, HEAD, BLOCK_H)
        s_MK = tl.dot(q_MH, tl.trans(k_KH), input_precision=PRECISION) * (scale * LOG2E)
        s_MK = biased(s_MK, i[:, None], j[None, :], slope, window, HAS_SLOPES, HAS_WINDOW)
        s_MK = tl.where(j[None, :] < length, s_MK, float("-inf"))
        raised_M = tl.maximum(greatest_M, tl.max(s_MK, 1))
        p_MK = tl.exp2(s_MK - raised_M[:, None])
        shrink_M = tl.exp2(greatest_M - raised_M)
        total_M = total_M * shrink_M + tl.sum(p_MK, 1)
        v_KH = load_tile(v + head * v_n, start + key, v_t, length - key, BLOCK_K, HEAD, BLOCK_H)
        o_MH = tl.dot(p_MK.to(v_KH.dtype), v_KH, o_MH * shrink_M[:, None], input_precision=PRECISION)
        greatest_M = raised_M
    o_MH = o_MH / total_M[:, None]
    store_tile(out + head * out_n, start + first, out_t, length - first, o_MH, BLOCK_M, HEAD, BLOCK_H)
    tl.store(lse + head.to(tl.int64) * tokens + start + i, greatest_M + tl.log2(total_M), mask=i < length)


@triton.jit(do_not_specialize=ANY_SIZE)
def dq_kernel(
    dout, q, k, v, out, lse, delta, dq, cu_seqlens, slopes,
    heads, tokens, blocks, scale, window,
    do_t, do_n, q_t, q_n, k_t, k_n, v_t, v_n, out_t, out_n, dq_t, dq_n,
    HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    block, head, start, length = program(cu_seqlens, heads, tokens, blocks)
    first = block * BLOCK_M
    if first >= length:
        return
    slope = head_slope(slopes, head, HAS_SLOPES)
    i = first + tl.arange(0, BLOCK_M)
    q_MH = load_tile(q + head * q_n, start + first, q_t, length - first, BLOCK_M, HEAD, BLOCK_H)
    do_MH = load_tile(dout + head * do_n, start + first, do_t, length - first, BLOCK_M, HEAD, BLOCK_H)
    o_MH = load_tile(out + head * out_n, start + first, out_t, length - first, BLOCK_M, HEAD, BLOCK_H)
    delta_M = tl.sum(do_MH.to(tl.float32) * o_MH.to(tl.float32), 1)
    row = head.to(tl.int64) * tokens + start + i
    tl.store(delta + row, delta_M, mask=i < length)
    lse_M = tl.load(lse + row, mask=i < length, other=float("inf"))
    dq_MH = tl.zeros((BLOCK_M, BLOCK_H), dtype=tl.float32)
    low, high = span(first, length, window, BLOCK_M, BLOCK_K, HAS_WINDOW)
    for key in tl.range(low, high, BLOCK_K):
        j = key + tl.arange(0, BLOCK_K)
        k_KH = load_tile(k + head * k_n, start + key, k_t, length - key, BLOCK_K, HEAD, BLOCK_H)
        v_KH = load_tile(v + head * v_n, start + key, v_t, length - key, BLOCK_K, HEAD, BLOCK_H)
        s_MK = tl.dot(q_MH, tl.trans(k_KH), input_precision=PRECISION) * (scale * LOG2E)
        s_MK = biased(s_MK, i[:, None], j[None, :], slope, window, HAS_SLOPES, HAS_WINDOW)
        # Keys beyond the sequence score 0, which may be so far above the real ones that the exponential overflows.
        p_MK = tl.where(j[None, :] < length, tl.exp2(s_MK - lse_M[:, None]), 0.0)
        dp_MK = tl.dot(do_MH, tl.trans(v_KH), input_precision=PRECISION)
        ds_MK = (p_MK * (dp_MK - delta_M[:, None])).to(k_KH.dtype)
        dq_MH = tl.dot(ds_MK, k_KH, dq_MH, input_precision=PRECISION)
    store_tile(dq + head * dq_n, start + first, dq_t, length - first, dq_MH * scale, BLOCK_M, HEAD, BLOCK_H)


@triton.jit(do_not_specialize=ANY_SIZE)
def dkdv_kernel(
    dout, q, k, v, lse, delta, dk, dv, cu_seqlens, slopes,
    heads, tokens, blocks, scale, window,
    do_t, do_n, q_t, q_n, k_t, k_n, v_t, v_n, dk_t, dk_n, dv_t, dv_n,
    HEAD: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    block, head, start, length = program(cu_seqlens, heads, tokens, blocks)
    first = block * BLOCK_K
    if first >= length:
        return
    slope = head_slope(slopes, head, HAS_SLOPES)
    j = first + tl.arange(0, BLOCK_K)
    k_KH = load_tile(k + head * k_n, start + first, k_t, length - first, BLOCK_K, HEAD, BLOCK_H)
    v_KH = load_tile(v + head * v_n, start + first, v_t, length - first, BLOCK_K, HEAD, BLOCK_H)
    dk_KH = tl.zeros((BLOCK_K, BLOCK_H), dtype=tl.float32)
    dv_KH = tl.zeros((BLOCK_K, BLOCK_H), dtype=tl.float32)
    low, high = span(first, length, window, BLOCK_K, BLOCK_M, HAS_WINDOW)
    for query in tl.range(low, high, BLOCK_M):
        i = query + tl.arange(0, BLOCK_M)
        row = head.to(tl.int64) * tokens + start + i
        q_MH = load_tile(q + head * q_n, start + query, q_t, length - query, BLOCK_M, HEAD, BLOCK_H)
        do_MH = load_tile(dout + head * do_n, start + query, do_t, length - query, BLOCK_M, HEAD, BLOCK_H)
        # Queries beyond the sequence: exp2(s - inf) = 0. Keys beyond it fill rows that are not stored.
        lse_M = tl.load(lse + row, mask=i < length, other=float("inf"))
        delta_M = tl.load(delta + row, mask=i < length, other=0.0)
        s_KM = tl.dot(k_KH, tl.trans(q_MH), input_precision=PRECISION) * (scale * LOG2E)
        s_KM = biased(s_KM, i[None, :], j[:, None], slope, window, HAS_SLOPES, HAS_WINDOW)
        p_KM = tl.exp2(s_KM - lse_M[None, :])
        dv_KH = tl.dot(p_KM.to(do_MH.dtype), do_MH, dv_KH, input_precision=PRECISION)
        dp_KM = tl.dot(v_KH, tl.trans(do_MH), input_precision=PRECISION)
        ds_KM = (p_KM * (dp_KM - delta_M[None, :])).to(q_MH.dtype)
        dk_KH = tl.dot(ds_KM, q_MH, dk_KH, input_precision=PRECISION)
    store_tile(dk + head * dk_n, start + first, dk_t, length - first, dk_KH * scale, BLOCK_K, HEAD, BLOCK_H)
    store_tile(dv + head * dv_n, start + first, dv_t, length - first, dv_KH, BLOCK_K, HEAD, BLOCK_H)


# Rows that a program keeps, rows a step of its loop, warps, pipeline stages; by size of the padded head. Chosen by what
# tests/kernels/compiled.json shows: nothing spills, and where it can be two programs share a multiprocessor. Not measured.
_WARP = {
    "forward": dict.fromkeys((32, 64, 128), (128, 64, 8, 2)),
    "dq": {32: (64, 64, 4, 2), 64: (64, 64, 4, 2), 128: (64, 32, 4, 2)},
    "dkdv": {32: (64, 64, 4, 2), 64: (64, 32, 4, 2), 128: (64, 64, 8, 2)},
}
# Products by warp groups (sm_90) or by the fifth generation's unit (sm_100) take operands from shared memory: registers are free.
_WIDE = {
    "forward": _WARP["forward"],
    "dq": {32: (128, 64, 8, 2), 64: (128, 64, 8, 2), 128: (128, 32, 8, 2)},
    "dkdv": {32: (64, 64, 4, 2), 64: (64, 64, 4, 2), 128: (64, 64, 8, 2)},
}
# With a window, what a tile meets beyond it is computed for nothing: 64 queries and a reach of 64 meet 192 keys, 128 would 256.
_LOCAL = {"forward": _WARP["dq"], "dq": _WARP["dq"]}
_FLOAT32 = {
    "forward": {32: (32, 32, 4, 1), 64: (32, 32, 4, 1), 128: (16, 16, 4, 1)},
    "dq": {32: (32, 32, 4, 1), 64: (32, 32, 4, 1), 128: (16, 16, 4, 1)},
    "dkdv": {32: (32, 16, 4, 1), 64: (32, 16, 4, 1), 128: (16, 16, 4, 1)},
}


def constants(kernel: str, gpu: int, head: int, dtype: torch.dtype, slopes: bool, window: bool) -> dict:
    """The constants of a launch of "forward", "dq" or "dkdv", for launchers and for ahead-of-time compilation."""
    block_h = padded_head(head)
    table = _FLOAT32 if dtype == torch.float32 else _WIDE if nearest(gpu) in (90, 100) else _WARP
    if window and table is not _FLOAT32:
        table = {**table, **_LOCAL}
    kept, step, warps, stages = table[kernel][block_h]
    if window and kernel == "dkdv" and table["dkdv"] is _WARP["dkdv"] and block_h == 128:
        step = 32  # with 64, Triton 3.9 spills on sm_120
    block_m, block_k = (step, kept) if kernel == "dkdv" else (kept, step)
    return {
        "HEAD": head, "BLOCK_H": block_h, "BLOCK_M": block_m, "BLOCK_K": block_k,
        "HAS_SLOPES": slopes, "HAS_WINDOW": window, "PRECISION": precision(dtype),
        "num_warps": warps, "num_stages": stages,
    }  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Output (T, N, H) and the base-2 logarithm (N, T) of each softmax's denominator."""
    tokens, heads, head = q.shape
    out = q.new_empty((tokens, heads, head))
    lse = q.new_empty((heads, tokens), dtype=torch.float32)
    chosen = constants("forward", capability(q), head, q.dtype, slopes is not None, window is not None)
    blocks = triton.cdiv(max_seqlen, chosen["BLOCK_M"])
    with device_of(q):
        forward_kernel[((cu_seqlens.numel() - 1) * heads * blocks,)](
            q, k, v, out, lse, cu_seqlens, slopes, heads, tokens, blocks, head**-0.5, window or 0,
            *strides(q, k, v, out), **chosen,
        )  # fmt: skip
    return out, lse


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None,
) -> None:  # fmt: skip
    """Fills dq, dk, dv."""
    tokens, heads, head = q.shape
    delta = torch.empty_like(lse)
    programs = (cu_seqlens.numel() - 1) * heads
    variant = (capability(q), head, q.dtype, slopes is not None, window is not None)
    with device_of(q):
        chosen = constants("dq", *variant)
        blocks = triton.cdiv(max_seqlen, chosen["BLOCK_M"])
        dq_kernel[(programs * blocks,)](
            dout, q, k, v, out, lse, delta, dq, cu_seqlens, slopes, heads, tokens, blocks, head**-0.5, window or 0,
            *strides(dout, q, k, v, out, dq), **chosen,
        )  # fmt: skip
        chosen = constants("dkdv", *variant)
        blocks = triton.cdiv(max_seqlen, chosen["BLOCK_K"])
        dkdv_kernel[(programs * blocks,)](
            dout, q, k, v, lse, delta, dk, dv, cu_seqlens, slopes, heads, tokens, blocks, head**-0.5, window or 0,
            *strides(dout, q, k, v, dk, dv), **chosen,
        )  # fmt: skip
