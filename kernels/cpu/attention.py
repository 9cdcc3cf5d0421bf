"""Attention on a CPU: matrix products over groups of sequences of like length, a few megabytes of scores at a time.

Nothing of the size of the scores outlives a group: the backward pass makes them again from q and k. Everything between the
products is in float32; the products take their inputs in bfloat16 where q has that type (`rounded_products`).

Shapes: T tokens, N heads, H head size, S sequences; G sequences of a group, L their length, R rows of queries at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from kernels.cpu.precision import rounded_products

SCORES = 2**20  # at a time: 4 MiB, which stay in a core's cache between operations
LEAST_ROWS = 64  # of queries, however long the sequences are: fewer make slow products
OVERHEAD = 2**13  # what a group of its own costs, in scores of one head
KEPT_BIAS = 2**24  # elements of a bias that is kept from batch to batch

_plans: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by cu_seqlens: the layers of a model ask with the same one
_biases: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by slopes


@dataclass(frozen=True)
class Run:
    """Sequences of one length that follow each other in the stream and in their group."""

    start: int  # token
    first: int  # place in the group
    count: int
    length: int


@dataclass(frozen=True)
class Group:
    """Sequences that are computed together, the longest first."""

    sequences: int
    length: int
    runs: list[Run]
    hidden: Tensor | None  # (G, 1, 1, L) bool, padding; None where there is none

    def gather(self, x_TPNH: Tensor) -> Tensor:
        """(P, G, N, L, H) in float32, zero where there is padding, of P tensors side by side in the stream."""
        _, parts, heads, size = x_TPNH.shape
        wide = torch.promote_types(x_TPNH.dtype, torch.float32)
        make = torch.empty if self.hidden is None else torch.zeros
        out = make((parts, self.sequences, heads, self.length, size), dtype=wide)
        for here, there in self._pairs(out, x_TPNH):
            here.copy_(there)
        return out

    def scatter(self, x_PGNLH: Tensor, out_TPNH: Tensor) -> None:
        for here, there in self._pairs(x_PGNLH, out_TPNH):
            there.copy_(here)

    def _pairs(self, x_PGNLH: Tensor, x_TPNH: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """The same elements of the one and of the other."""
        for run in self.runs:
            stream = x_TPNH[run.start : run.start + run.count * run.length].unflatten(0, (run.count, run.length))
            yield x_PGNLH[:, run.first : run.first + run.count, :, : run.length], stream.permute(2, 0, 3, 1, 4)


def forward(qkv_T3NH: Tensor, cu_seqlens: Tensor, slopes: Tensor | None, window: int | None) -> Tensor:
    """(T, N, H) in the dtype of qkv."""
    tokens, _, heads, size = qkv_T3NH.shape
    out_T1NH = torch.empty((tokens, 1, heads, size), dtype=qkv_T3NH.dtype)
    with rounded_products(qkv_T3NH.dtype):
        for group in _plan(cu_seqlens, heads):
            q, k, v = group.gather(qkv_T3NH)
            out = torch.empty_like(q)
            for rows, weights in _weights(group, q, k, slopes, window):
                out[:, :, rows] = weights @ v
            group.scatter(out[None], out_T1NH)
    return out_T1NH[:, 0]


def backward(
    dout_TNH: Tensor, qkv_T3NH: Tensor, cu_seqlens: Tensor, slopes: Tensor | None, window: int | None
) -> Tensor:
    """The gradient of qkv, (T, 3, N, H)."""
    dqkv_T3NH = torch.empty(qkv_T3NH.shape, dtype=qkv_T3NH.dtype)
    with rounded_products(qkv_T3NH.dtype):
        for group in _plan(cu_seqlens, qkv_T3NH.shape[2]):
            q, k, v = group.gather(qkv_T3NH)
            dqkv = _group_backward(group, q, k, v, group.gather(dout_TNH[:, None])[0], slopes, window)
            group.scatter(dqkv, dqkv_T3NH)
    return dqkv_T3NH


def _group_backward(
    group: Group, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, slopes: Tensor | None, window: int | None
) -> Tensor:
    """The gradients of q, k, v, as (3, G, N, L, H)."""
    gradients = torch.zeros((3, *q.shape), dtype=q.dtype)
    dq, dk, dv = gradients
    for rows, weights in _weights(group, q, k, slopes, window):
        dv += weights.transpose(2, 3) @ dout[:, :, rows]
        dweights = dout[:, :, rows] @ v.transpose(2, 3)
        # the gradient through the softmax: weights (dweights - sum of weights dweights)
        torch.ops.aten._softmax_backward_data.out(dweights, weights, -1, weights.dtype, grad_input=dweights)
        dq[:, :, rows] = dweights @ k
        dk += dweights.transpose(2, 3) @ q[:, :, rows]
    gradients[:2] *= q.shape[-1] ** -0.5
    return gradients


def _weights(
    group: Group, q: Tensor, k: Tensor, slopes: Tensor | None, window: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """softmax(q k' / sqrt(H) + bias), some rows of queries at a time: the rows, and (G, N, R, L) in memory that is used again."""
    sequences, heads, length, size = q.shape
    at_once = max(LEAST_ROWS, SCORES // (sequences * heads * length))
    for start in range(0, length, at_once):
        rows = slice(start, min(start + at_once, length))
        scores = q[:, :, rows] @ k.transpose(2, 3)
        if slopes is None and window is None:
            scores *= size**-0.5
        else:
            torch.add(_bias(slopes, window, rows, length, scores.dtype), scores, alpha=size**-0.5, out=scores)
        if group.hidden is not None:
            # finite, for a padded query that a window hides from every real key
            scores.masked_fill_(group.hidden, torch.finfo(scores.dtype).min)
        yield rows, torch.softmax(scores, -1, out=scores)


def _bias(slopes: Tensor | None, window: int | None, rows: slice, length: int, dtype: torch.dtype) -> Tensor:
    """-slope |i - j|, and -inf beyond the window: (N or 1, R, L). One that is not large is made once for all batches."""
    if slopes is None or slopes.numel() * length**2 > KEPT_BIAS:
        return _make_bias(slopes, window, rows.start, rows.stop, length, dtype)
    key = (slopes._version, window, dtype)
    kept = _biases.get(slopes)
    if kept is None or kept[0] != key or kept[1].shape[1] < length:
        kept = (key, _make_bias(slopes, window, 0, length, length, dtype))
        _biases[slopes] = kept
    return kept[1][:, rows, :length]


def _make_bias(
    slopes: Tensor | None, window: int | None, start: int, stop: int, length: int, dtype: torch.dtype
) -> Tensor:
    distance = (torch.arange(start, stop)[:, None] - torch.arange(length)).abs()
    scale = torch.zeros(1, dtype=dtype) if slopes is None else slopes.detach().to(dtype)
    bias = -scale[:, None, None] * distance
    return bias if window is None else bias.masked_fill_(distance > window, -math.inf)


def _plan(cu_seqlens: Tensor, heads: int) -> list[Group]:
    """The groups of a batch, made once for all its layers and both passes."""
    key = (cu_seqlens._version, heads)
    kept = _plans.get(cu_seqlens)
    if kept is None or kept[0] != key:
        bounds = cu_seqlens.tolist()
        kept = (key, [_group(bounds, members) for members in together(bounds, heads)])
        _plans[cu_seqlens] = kept
    return kept[1]


def _group(bounds: list[int], members: list[int]) -> Group:
    lengths = [bounds[i + 1] - bounds[i] for i in members]
    runs: list[Run] = []
    for place, (number, length) in enumerate(zip(members, lengths, strict=True)):
        last = runs[-1] if runs else None
        if last and last.length == length and bounds[number] == last.start + last.count * length:
            runs[-1] = Run(last.start, last.first, last.count + 1, length)
        else:
            runs.append(Run(bounds[number], place, 1, length))
    if lengths[-1] == lengths[0]:
        return Group(len(members), lengths[0], runs, None)
    hidden = torch.arange(lengths[0]) >= torch.tensor(lengths)[:, None]
    return Group(len(members), lengths[0], runs, hidden[:, None, None])


def together(bounds: list[int], heads: int) -> list[list[int]]:
    """The numbers of the sequences of each group, longest first; empty sequences are in none.

    A sequence joins the group of a longer one where its padding costs less than a group of its own would, and where the
    group's scores are not too many.
    """
    lengths = {i: bounds[i + 1] - bounds[i] for i in range(len(bounds) - 1) if bounds[i + 1] > bounds[i]}
    groups: list[list[int]] = []
    for number in sorted(lengths, key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        fits = groups and (len(groups[-1]) + 1) * heads * longest**2 <= SCORES
        if fits and longest**2 - lengths[number] ** 2 <= OVERHEAD:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
