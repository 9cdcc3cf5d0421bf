"""Rotary embedding: each program takes some tokens of q, k or v, and all their heads, so that angles are read once for all.

Shapes: T tokens, N heads, H head size; a tile is BLOCK_T tokens by half a head, padded to BLOCK_C.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.device import capability, device_of


def parameters(capability: int, size: int) -> dict[str, Any]:
    """Tile and warps: 8 elements a thread of each half, one 16-byte load of each in flight."""
    block_c = max(8, triton.next_power_of_2(size // 2))
    return {"HALF": size // 2, "BLOCK_T": max(1, 1024 // block_c), "BLOCK_C": block_c, "num_warps": 4, "num_stages": 1}


@triton.jit(do_not_specialize=["tokens"])
def rotate_kernel(
    qkv, table, out, tokens, heads, qkv_t, qkv_p, qkv_n,
    BACKWARDS: tl.constexpr, HALF: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    part = tl.program_id(0) % 3
    t = tl.program_id(0) // 3 * BLOCK_T + tl.arange(0, BLOCK_T)
    c = tl.arange(0, BLOCK_C)[None, :]
    mask = (t[:, None] < tokens) & (c < HALF)
    t = t[:, None].to(tl.int64)
    source = qkv + t * qkv_t + part * qkv_p + c
    target = out + (t * 3 + part) * heads * (2 * HALF) + c
    if part == 2:
        for _ in range(heads):
            tl.store(target, tl.load(source, mask=mask), mask=mask)
            tl.store(target + HALF, tl.load(source + HALF, mask=mask), mask=mask)
            source += qkv_n
            target += 2 * HALF
    else:
        cosine = tl.load(table + t * HALF + c, mask=mask)
        sine = tl.load(table + (tokens + t) * HALF + c, mask=mask)
        if BACKWARDS:
            sine = -sine
        for _ in range(heads):
            a = tl.load(source, mask=mask).to(tl.float32)
            b = tl.load(source + HALF, mask=mask).to(tl.float32)
            tl.store(target, (a * cosine - b * sine).to(out.dtype.element_ty), mask=mask)
            tl.store(target + HALF, (b * cosine + a * sine).to(out.dtype.element_ty), mask=mask)
            source += qkv_n
            target += 2 * HALF


def rotate(qkv_T3NH: Tensor, table: Tensor, backwards: bool) -> Tensor:
    """(T, 3, N, H), with q and k turned by the angles of table (2, T, H / 2), or by their negatives."""
    out = torch.empty(qkv_T3NH.shape, dtype=qkv_T3NH.dtype, device=qkv_T3NH.device)
    tokens, _, heads, size = out.shape
    if out.numel():
        constants = parameters(capability(out), size)
        with device_of(out):
            rotate_kernel[(3 * triton.cdiv(tokens, constants["BLOCK_T"]),)](
                qkv_T3NH, table, out, tokens, heads, *qkv_T3NH.stride()[:3], BACKWARDS=backwards, **constants
            )  # fmt: skip
    return out
