"""The gradient of rows that were taken by their numbers: each of the stream is written once, with what comes to it or with zeros.

What comes to a row is found without a sort and without adding in memory: of every row, the first and the last place where it was
taken are kept, by maxima of integers, which do not depend on their order. A program sums its rows from the first to the last
place, in float32. Where no row is taken twice that is one place.

Shapes: T rows of the stream, M that were taken, D columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton import padding
from kernels.triton.device import capability, device_of

# Numbers that change from batch to batch: a kernel compiled for one serves all.
ANY_SIZE = ["taken", "tokens"]
PLACES = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}


def parameters(capability: int, columns: int) -> dict[str, Any]:
    """Tiles as those of a gather, by two warps: each has many rows, for which it looks up places and numbers only once."""
    return {**padding.parameters(capability, columns), "num_warps": 2}


@triton.jit(do_not_specialize=ANY_SIZE)
def places_kernel(rows, places, taken, tokens, BLOCK: tl.constexpr):
    """places (2, T), which hold -1: the first place of each row, counted from behind the last, and the last."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.load(rows + m, mask=m < taken, other=-1)
    found = (row >= 0) & (row < tokens)
    tl.atomic_max(places + row, taken - 1 - m, mask=found, sem="relaxed")
    tl.atomic_max(places + tokens + row, m, mask=found, sem="relaxed")


@triton.jit(do_not_specialize=ANY_SIZE)
def backward_kernel(dout, rows, places, dx, taken, tokens, columns, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr):
    """dx[t] = the sum of dout[m] over all m where rows[m] is t."""
    blocks = tl.cdiv(columns, BLOCK_E)
    t = tl.program_id(0) // blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(0) % blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    inside = (e < columns)[None, :]
    first = taken - 1 - tl.load(places + t, mask=t < tokens, other=-1)
    last = tl.load(places + tokens + t, mask=t < tokens, other=-1)
    total = tl.zeros((BLOCK_T, BLOCK_E), dtype=tl.float32)
    for step in range(0, tl.max(last - first, 0) + 1):
        m = first + step
        row = tl.load(rows + m, mask=m <= last, other=-1)
        place = dout + m[:, None].to(tl.int64) * columns + e[None, :]
        total += tl.load(place, mask=(row == t)[:, None] & inside, other=0.0).to(tl.float32)
    place = dx + t[:, None].to(tl.int64) * columns + e[None, :]
    tl.store(place, total.to(dx.dtype.element_ty), mask=(t < tokens)[:, None] & inside)


def backward(dout: Tensor, rows: Tensor, tokens: int) -> Tensor:
    """(tokens, D) of dout (M, D) and the numbers of its rows (M,)."""
    taken, columns = dout.shape
    dx = torch.empty((tokens, columns), dtype=dout.dtype, device=dout.device)
    if not dout.numel() or not tokens:
        return dx.zero_()
    places = torch.full((2, tokens), -1, dtype=torch.int32, device=dout.device)
    constants = parameters(capability(dout), columns)
    grid = (triton.cdiv(tokens, constants["BLOCK_T"]) * triton.cdiv(columns, constants["BLOCK_E"]),)
    with device_of(dout):
        places_kernel[(triton.cdiv(taken, PLACES["BLOCK"]),)](rows, places, taken, tokens, **PLACES)
        backward_kernel[grid](dout, rows, places, dx, taken, tokens, columns, **constants)
    return dx
