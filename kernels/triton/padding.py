"""Rows between padded batches and streams: which rows are real, and both moves as one gather.

A padded batch is not filled with zeros first and then written: the map from stream to batch is inverted, and each row of the
batch is written once, with its token or with zeros. Elements are moved as integers of their size.

Shapes: S sequences, L padded length, T tokens, N rows to gather from, E elements of a row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.device import capability, device_of

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Sizes that change from batch to batch: a kernel compiled for one serves all.
ANY_SIZE = ["sources", "rows", "tokens", "sequences", "length", "mask_s"]
PLAN = {"BLOCK": 512, "num_warps": 4, "num_stages": 1}
INVERSION = {"BLOCK": 1024, "num_warps": 4, "num_stages": 1}


def parameters(capability: int, columns: int) -> dict[str, Any]:
    """A tile of 4096 elements, and as wide as leaves no thread idle: 768 columns are three tiles of 256."""
    divisor = columns & -columns  # the greatest power of two that divides
    block_e = min(1024, divisor if divisor >= 64 else triton.next_power_of_2(columns))
    return {"BLOCK_T": 4096 // block_e, "BLOCK_E": block_e, "num_warps": 8, "num_stages": 1}


@triton.jit(do_not_specialize=ANY_SIZE)
def count_kernel(mask, lengths, length, mask_s, BLOCK: tl.constexpr):
    """One program a sequence: how many of its positions are real."""
    sequence = tl.program_id(0)
    count = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, length, BLOCK):
        position = first + tl.arange(0, BLOCK)
        real = tl.load(mask + sequence.to(tl.int64) * mask_s + position, mask=position < length, other=0) != 0
        count += real.to(tl.int32)
    tl.store(lengths + sequence, tl.sum(count, 0))


@triton.jit(do_not_specialize=ANY_SIZE)
def index_kernel(mask, lengths, indices, cu_seqlens, totals, sequences, length, mask_s, BLOCK: tl.constexpr):
    """One program a sequence: where it begins in the stream, and the flat indices of its real positions. The first program also
    writes the tokens of all and the longest length."""
    sequence = tl.program_id(0)
    before = tl.zeros((BLOCK,), dtype=tl.int32)
    for first in range(0, sequence, BLOCK):
        s = first + tl.arange(0, BLOCK)
        before += tl.load(lengths + s, mask=s < sequence, other=0)
    start = tl.sum(before, 0)
    tl.store(cu_seqlens + sequence + 1, start + tl.load(lengths + sequence))
    for first in range(0, length, BLOCK):
        position = first + tl.arange(0, BLOCK)
        real = tl.load(mask + sequence.to(tl.int64) * mask_s + position, mask=position < length, other=0) != 0
        place = start + tl.cumsum(real.to(tl.int32), 0) - 1
        tl.store(indices + place, sequence.to(tl.int64) * length + position, mask=real)
        start += tl.sum(real.to(tl.int32), 0)
    if sequence == 0:
        tokens = tl.zeros((BLOCK,), dtype=tl.int32)
        longest = tl.zeros((BLOCK,), dtype=tl.int32)
        for first in range(0, sequences, BLOCK):
            s = first + tl.arange(0, BLOCK)
            of_s = tl.load(lengths + s, mask=s < sequences, other=0)
            tokens += of_s
            longest = tl.maximum(longest, of_s)
        tl.store(cu_seqlens, 0)
        tl.store(totals, tl.sum(tokens, 0))
        tl.store(totals + 1, tl.max(longest, 0))


@triton.jit(do_not_specialize=ANY_SIZE)
def gather_kernel(x, indices, out, sources, rows, columns, x_n, BLOCK_T: tl.constexpr, BLOCK_E: tl.constexpr):
    """out[t] = x[indices[t]], and 0 where there is no such row."""
    blocks = tl.cdiv(columns, BLOCK_E)
    t = tl.program_id(0) // blocks * BLOCK_T + tl.arange(0, BLOCK_T)
    e = tl.program_id(0) % blocks * BLOCK_E + tl.arange(0, BLOCK_E)
    index = tl.load(indices + t, mask=t < rows, other=-1).to(tl.int64)
    found = (index >= 0) & (index < sources)
    inside = e[None, :] < columns
    value = tl.load(x + index[:, None] * x_n + e[None, :], mask=found[:, None] & inside, other=0)
    place = out + t[:, None].to(tl.int64) * columns + e[None, :]
    tl.store(place, value, mask=(t[:, None] < rows) & inside)


@triton.jit(do_not_specialize=ANY_SIZE)
def inversion_kernel(indices, inverse, tokens, rows, BLOCK: tl.constexpr):
    """inverse[indices[t]] = t."""
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(indices + t, mask=t < tokens, other=-1)
    tl.store(inverse + index, t, mask=(index >= 0) & (index < rows))


def plan(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a mask (S, L): flat indices (S L,) of which the first T are set, cu_seqlens (S + 1,), and (T, longest length)."""
    sequences, length = mask.shape
    indices = torch.empty(sequences * length, dtype=torch.int64, device=mask.device)
    if indices.numel() == 0:
        return indices, *(torch.zeros(n, dtype=torch.int32, device=mask.device) for n in (sequences + 1, 2))
    lengths, cu_seqlens, totals = (
        torch.empty(n, dtype=torch.int32, device=mask.device) for n in (sequences, sequences + 1, 2)
    )
    mask = _rows(mask != 0 if mask.is_floating_point() else mask)  # as an integer, -0.0 is not 0
    with device_of(mask):
        count_kernel[(sequences,)](mask, lengths, length, mask.stride(0), **PLAN)
        index_kernel[(sequences,)](
            mask, lengths, indices, cu_seqlens, totals, sequences, length, mask.stride(0), **PLAN
        )
    return indices, cu_seqlens, totals


def gather(x: Tensor, indices: Tensor) -> Tensor:
    """Rows (T, E) of x (N, E); zeros for an index that x does not have."""
    rows, columns = indices.shape[0], x.shape[1]
    out = torch.empty((rows, columns), dtype=x.dtype, device=x.device)
    if out.numel() and not x.numel():
        return out.zero_()
    if out.numel():
        constants = parameters(capability(x), columns)
        grid = (triton.cdiv(rows, constants["BLOCK_T"]) * triton.cdiv(columns, constants["BLOCK_E"]),)
        source = _rows(x)
        with device_of(x):
            gather_kernel[grid](
                source, indices, _rows(out), x.shape[0], rows, columns, source.stride(0), **constants
            )  # fmt: skip
    return out


def scatter(x: Tensor, indices: Tensor, rows: int) -> Tensor:
    """(rows, E) with x (T, E) at rows `indices`, all different, and zeros elsewhere."""
    inverse = torch.full((rows,), -1, dtype=torch.int32, device=x.device)
    tokens = indices.shape[0]
    if tokens and rows:
        with device_of(x):
            inversion_kernel[(triton.cdiv(tokens, INVERSION["BLOCK"]),)](indices, inverse, tokens, rows, **INVERSION)
    return gather(x, inverse)


def _rows(x: Tensor) -> Tensor:
    """x as integers, with neighbours in memory along a row."""
    return (x if x.stride(-1) == 1 else x.contiguous()).view(INTEGERS[x.element_size()])
