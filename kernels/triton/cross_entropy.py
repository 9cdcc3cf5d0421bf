"""The masked-language-model loss and its gradients, a chunk of rows at a time: no logits of all rows, none in float32.

A chunk's logits come from a matrix product of torch's (cuBLAS on a GPU) in the precision of `hidden`. The kernel here reads
them twice, the second time out of the cache: once for the softmax's sum, once to write their gradient in their place. Two
products by torch follow, that for the weight accumulated in float32 over the chunks.

The gradients are made with the loss, in the forward: the logits are at hand there, and a backward that made them again would
pay for a fourth product beside the head's three. What the backward of the loss brings is one number, multiplied in then.

Shapes: M rows, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.triton.device import capability, device_of

IGNORED_LABEL = tl.constexpr(-100)
LOG2_E = tl.constexpr(1.4426950408889634)
LEAST = tl.constexpr(-1.0e38)  # below any logit, and finite: what is beyond the row is -inf, and infinitely far from it
# A chunk of rows may begin at any address in these: a kernel compiled for one serves all.
PER_ROW = ["labels", "losses", "right"]


def parameters(capability: int, vocabulary: int) -> dict[str, Any]:
    """A row's columns are taken AT_ONCE times 8 a thread: what a thread keeps of each place is rescaled once for all of them."""
    block = min(1024, max(8, triton.next_power_of_2(vocabulary)))
    return {"BLOCK_V": block, "AT_ONCE": 2, "STAGES": 2, "num_warps": 4, "num_stages": 1}


@triton.jit
def _logits(x_V, bias, v, columns, MASKED: tl.constexpr, OTHER: tl.constexpr):
    """With their bias, in float32; with MASKED, OTHER beyond the row."""
    if MASKED:
        x = tl.load(x_V + v, mask=v < columns, other=OTHER).to(tl.float32)
        x += tl.load(bias + v, mask=v < columns, other=0.0).to(tl.float32)
    else:
        x = tl.load(x_V + v).to(tl.float32) + tl.load(bias + v).to(tl.float32)
    return x


@triton.jit
def _with(x, greatest_V, total_V):
    """The greatest logit that each place has met, and its sum of exponentials below that, with x (AT_ONCE, BLOCK_V)."""
    raised_V = tl.maximum(tl.max(x, 0), greatest_V)
    less_V = tl.exp2((greatest_V - raised_V) * LOG2_E)
    return raised_V, total_V * less_V + tl.sum(tl.exp2((x - raised_V[None, :]) * LOG2_E), 0)


@triton.jit
def _met(
    x_V, bias, first, end, columns, places, greatest_V, total_V, sum_V,
    SMOOTHING: tl.constexpr, WIDE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """What each place has met, with the row's columns from `first` to `end`, a multiple of WIDE of them."""
    for start in tl.range(first, end, WIDE, num_stages=STAGES):
        x = _logits(x_V, bias, start + places, columns, False, 0.0)
        greatest_V, total_V = _with(x, greatest_V, total_V)
        if SMOOTHING:
            sum_V += tl.sum(x, 0)
    return greatest_V, total_V, sum_V


@triton.jit
def _write_gradient(
    x_V,
    bias,
    columns,
    places,
    label,
    inside,
    of_label,
    lse,
    z_loss,
    smoothing,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Of the loss by the row's logits, in their place; the label's own term behind all others."""
    scale, share = 1.0 + 2.0 * z_loss * lse, smoothing / columns
    whole = columns // WIDE * WIDE
    for first in tl.range(0, whole, WIDE, num_stages=STAGES):
        v = first + places
        gradient = tl.exp2((_logits(x_V, bias, v, columns, False, 0.0) - lse) * LOG2_E) * scale - share
        tl.store(x_V + v, gradient.to(x_V.dtype.element_ty))
    if whole < columns:
        v = whole + places
        gradient = tl.exp2((_logits(x_V, bias, v, columns, True, 0.0) - lse) * LOG2_E) * scale - share
        tl.store(x_V + v, gradient.to(x_V.dtype.element_ty), mask=v < columns)
    tl.debug_barrier()  # whichever thread wrote the label's, it is written again
    gradient = tl.exp2((of_label - lse) * LOG2_E) * scale - share - (1.0 - smoothing)
    tl.store(x_V + label, gradient.to(x_V.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=PER_ROW)
def rows_kernel(
    logits, bias, labels, losses, right, columns, logits_m, z_loss, smoothing,
    GRADIENT: tl.constexpr, SMOOTHING: tl.constexpr, BLOCK_V: tl.constexpr, AT_ONCE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program a row: its loss, whether its label is the first of the greatest logits, and, in place, the logits' gradient.

    Each place of the block keeps its own greatest logit and sum, so there is one reduction a row, not one a block. Whether an
    earlier logit is as great as the label's is asked when those have been met, and whether a later one is greater at the end.
    """
    row = tl.program_id(0)
    label = tl.load(labels + row)
    x_V = logits + row.to(tl.int64) * logits_m
    WIDE: tl.constexpr = AT_ONCE * BLOCK_V
    places = tl.arange(0, AT_ONCE)[:, None] * BLOCK_V + tl.arange(0, BLOCK_V)[None, :]
    if label == IGNORED_LABEL:
        tl.store(losses + row, 0.0)
        tl.store(right + row, 0.0)
        if GRADIENT:
            for first in range(0, columns, WIDE):
                v = first + places
                tl.store(x_V + v, tl.zeros((AT_ONCE, BLOCK_V), dtype=logits.dtype.element_ty), mask=v < columns)
        return
    inside = (label >= 0) & (label < columns)  # no label may make a kernel read elsewhere
    of_label = tl.load(x_V + label, mask=inside, other=0.0).to(tl.float32)
    of_label += tl.load(bias + label, mask=inside, other=0.0).to(tl.float32)
    greatest_V = tl.full((BLOCK_V,), LEAST, tl.float32)
    total_V = tl.zeros((BLOCK_V,), tl.float32)
    sum_V = tl.zeros((BLOCK_V,), tl.float32)
    whole = columns // WIDE * WIDE
    at = tl.where(inside, label // WIDE * WIDE, whole).to(tl.int32)
    greatest_V, total_V, sum_V = _met(
        x_V, bias, 0, at, columns, places, greatest_V, total_V, sum_V, SMOOTHING, WIDE, STAGES
    )
    if at < columns:  # the label's, which may be the last ones
        v = at + places
        x = _logits(x_V, bias, v, columns, True, -float("inf"))
        before_V = tl.maximum(greatest_V, tl.max(tl.where(v < label, x, LEAST), 0))
        greatest_V, total_V = _with(x, greatest_V, total_V)
        if SMOOTHING:
            sum_V += tl.sum(tl.where(v < columns, x, 0.0), 0)
    else:
        before_V = greatest_V
    greatest_V, total_V, sum_V = _met(
        x_V, bias, at + WIDE, whole, columns, places, greatest_V, total_V, sum_V, SMOOTHING, WIDE, STAGES
    )
    if (at < whole) & (whole < columns):
        v = whole + places
        x = _logits(x_V, bias, v, columns, True, -float("inf"))
        greatest_V, total_V = _with(x, greatest_V, total_V)
        if SMOOTHING:
            sum_V += tl.sum(tl.where(v < columns, x, 0.0), 0)
    greatest, before = tl.max(greatest_V, 0), tl.max(before_V, 0)
    lse = greatest + tl.log(tl.sum(total_V * tl.exp2((greatest_V - greatest) * LOG2_E), 0))
    loss = lse - (1.0 - smoothing) * of_label + z_loss * lse * lse
    if SMOOTHING:
        loss -= smoothing / columns * tl.sum(sum_V, 0)
    tl.store(losses + row, loss)
    tl.store(right + row, tl.where(inside & (of_label == greatest) & (before < of_label), 1.0, 0.0))
    if GRADIENT:
        _write_gradient(
            x_V, bias, columns, places, label, inside, of_label, lse, z_loss, smoothing, WIDE, STAGES
        )  # fmt: skip


def forward(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor,
    z_loss: float, label_smoothing: float, chunk_rows: int, with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Sums over the rows: (2,) float32 of loss and right guesses, the number of labels (), and the gradients of the first.

    The gradients are dhidden (M, D) in the dtype of hidden, dweight (V, D) and dbias (V,) in float32; without `with_gradients`
    they have no rows.
    """
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    low_weight = weight.to(hidden.dtype)
    per_row = torch.zeros((2, rows), dtype=torch.float32, device=hidden.device)
    buffer = torch.empty((min(rows, chunk_rows), vocabulary), dtype=hidden.dtype, device=hidden.device)
    dhidden = torch.empty_like(hidden if with_gradients else hidden[:0], memory_format=torch.contiguous_format)
    dweight = weight.new_zeros((vocabulary * with_gradients, weight.shape[1]), dtype=torch.float32)
    dbias = bias.new_zeros(vocabulary * with_gradients, dtype=torch.float32)
    constants = parameters(capability(hidden), vocabulary)
    with torch.autocast(hidden.device.type, enabled=False), device_of(hidden):
        for first in range(0, rows, chunk_rows):
            chunk = hidden[first : first + chunk_rows]
            logits = torch.mm(chunk, low_weight.t(), out=buffer[: len(chunk)])
            rows_kernel[(len(chunk),)](
                logits, bias, labels[first:], per_row[0, first:], per_row[1, first:],
                vocabulary, vocabulary, z_loss, label_smoothing,
                GRADIENT=with_gradients, SMOOTHING=label_smoothing > 0, **constants,
            )  # fmt: skip
            if with_gradients:
                torch.mm(logits, low_weight, out=dhidden[first : first + chunk_rows])
                _accumulate(dweight, logits.t(), chunk)
                dbias += logits.sum(0, dtype=torch.float32)
    counted = (labels != IGNORED_LABEL.value).sum(dtype=torch.float32).clamp(min=1)
    return per_row.sum(1), counted, dhidden, dweight, dbias


def _accumulate(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in float32 whatever a and b are."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    elif a.device.type == "cuda":
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())
