"""What the attention kernels share: tiles of one sequence and head, ALiBi, and the constants of a launch.

A tile is ROWS tokens from `row` on, of which `count` belong to the sequence, by the head's size padded to BLOCK_H. Scores are in
base 2, so that exponentials are one instruction.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COMPILED = (80, 86, 89, 90, 100, 120)  # the GPUs of tests/kernels/compiled.json
LOG2E = tl.constexpr(1.4426950408889634)
# Sizes that change from batch to batch, or from model to model: a kernel compiled for one serves all.
ANY_SIZE = ["heads", "tokens", "tasks", "blocks", "window"]


@triton.jit
def real(r, h, count, HEAD: tl.constexpr, BLOCK_H: tl.constexpr):
    """Which elements of a tile there are."""
    mask = r < count
    if HEAD < BLOCK_H:
        mask = mask & (h < HEAD)
    return mask


@triton.jit
def load_tile(pointer, row, stride, count, ROWS: tl.constexpr, HEAD: tl.constexpr, BLOCK_H: tl.constexpr):
    """(ROWS, BLOCK_H), zero beyond the sequence and beyond the head's size."""
    r = tl.arange(0, ROWS)[:, None]
    h = tl.arange(0, BLOCK_H)[None, :]
    return tl.load(
        pointer + row.to(tl.int64) * stride + r * stride + h, mask=real(r, h, count, HEAD, BLOCK_H), other=0.0
    )


@triton.jit
def store_tile(pointer, row, stride, count, x, ROWS: tl.constexpr, HEAD: tl.constexpr, BLOCK_H: tl.constexpr):
    """Rounds once, to the tensor's type."""
    r = tl.arange(0, ROWS)[:, None]
    h = tl.arange(0, BLOCK_H)[None, :]
    tl.store(
        pointer + row.to(tl.int64) * stride + r * stride + h,
        x.to(pointer.dtype.element_ty),
        mask=real(r, h, count, HEAD, BLOCK_H),
    )


@triton.jit
def sequence_bounds(cu_seqlens, sequence, tokens):
    """First token and length. What lies outside the stream is cut off: wrong bounds must not read foreign memory."""
    start = tl.maximum(tl.load(cu_seqlens + sequence), 0)
    end = tl.minimum(tl.load(cu_seqlens + sequence + 1), tokens)
    return start, end - start


@triton.jit
def head_slope(slopes, head, HAS_SLOPES: tl.constexpr):
    slope = 0.0
    if HAS_SLOPES:
        slope = tl.load(slopes + head).to(tl.float32) * LOG2E
    return slope


@triton.jit
def biased(scores, i, j, slope, window, HAS_SLOPES: tl.constexpr, HAS_WINDOW: tl.constexpr):
    """Scores less slope * |i - j|, and -inf beyond the window; i and j broadcast to the scores' shape."""
    distance = tl.abs(i - j).to(tl.float32)
    if HAS_SLOPES:
        scores -= slope * distance
    if HAS_WINDOW:
        scores = tl.where(distance <= window, scores, float("-inf"))
    return scores


def nearest(gpu: int) -> int:
    """The newest GPU of the tables that is no newer than this one."""
    return max((known for known in COMPILED if known <= gpu), default=COMPILED[0])


def padded_head(head: int) -> int:
    return max(32, triton.next_power_of_2(head))


def precision(dtype: torch.dtype) -> str:
    """float32 products by three TF32 products each, near float32's own error; 16-bit types need no such thing."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def strides(*tensors: Tensor) -> list[int]:
    """Of tokens and of heads, for each (T, N, H) tensor."""
    return [stride for x in tensors for stride in (x.stride(0), x.stride(1))]
