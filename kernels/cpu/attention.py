"""Attention on a CPU: matrix products over groups of sequences of like length, a few megabytes of scores at a time.

Nothing of the size of the scores outlives a group: the backward pass makes them again from q and k. Everything between the
products is in float32; the products take their inputs in bfloat16 where q has that type (`rounded_products`).

Shapes: T tokens, N heads, H head size, S sequences; G sequences of a group, L their length, R rows of queries at a time,
P rows of the sorted stream, X what stands side by side in a row.
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
class Group:
    """Sequences that are computed together, side by side in the sorted stream."""

    first: int  # the row that it begins at
    sequences: int
    length: int
    hidden: Tensor | None  # (G, 1, 1, L) bool, padding; None where there is none

    def of(self, x_PX: Tensor) -> Tensor:
        """Its part of a sorted stream, (G, L, X)."""
        return x_PX[self.first : self.first + self.sequences * self.length].unflatten(0, (self.sequences, self.length))


@dataclass(frozen=True)
class Plan:
    """How a stream of T tokens is sorted into P rows, padding among them."""

    groups: list[Group]
    rows: Tensor | None  # (P,) int64, the token of each row, any for padding; None: sorted already
    places: Tensor | None  # (T,) int64, the row of each token

    def sort(self, x_TX: Tensor) -> Tensor:
        return x_TX if self.rows is None else x_TX.index_select(0, self.rows)

    def unsort(self, x_PX: Tensor) -> Tensor:
        return x_PX if self.places is None else x_PX.index_select(0, self.places)


def forward(qkv_T3NH: Tensor, cu_seqlens: Tensor, slopes: Tensor | None, window: int | None) -> Tensor:
    """(T, N, H) in the dtype of qkv."""
    tokens, _, heads, size = qkv_T3NH.shape
    plan = _plan(cu_seqlens, heads)
    qkv_PX = plan.sort(qkv_T3NH.flatten(1))
    out_PX = qkv_PX.new_empty((len(qkv_PX), heads * size))
    with rounded_products(qkv_PX.dtype):
        for group in plan.groups:
            q, k, v = _heads_first(group.of(qkv_PX), 3, heads)
            out = torch.empty_like(q)
            for rows, weights in _weights(group, q, k, slopes, window):
                out[:, :, rows] = weights @ v
            group.of(out_PX).unflatten(2, (heads, size)).copy_(out.transpose(1, 2))
    return plan.unsort(out_PX).view(tokens, heads, size)


def backward(
    dout_TNH: Tensor, qkv_T3NH: Tensor, cu_seqlens: Tensor, slopes: Tensor | None, window: int | None
) -> Tensor:
    """The gradient of qkv, (T, 3, N, H)."""
    _, _, heads, size = qkv_T3NH.shape
    plan = _plan(cu_seqlens, heads)
    qkv_PX, dout_PX = plan.sort(qkv_T3NH.flatten(1)), plan.sort(dout_TNH.flatten(1))
    dqkv_PX = torch.empty_like(qkv_PX)
    with rounded_products(qkv_PX.dtype):
        for group in plan.groups:
            q, k, v = _heads_first(group.of(qkv_PX), 3, heads)
            dout = _heads_first(group.of(dout_PX), 1, heads)[0]
            if group.hidden is not None:  # a padded row was given some token's gradient
                dout.masked_fill_(group.hidden.transpose(2, 3), 0.0)
            into = group.of(dqkv_PX).unflatten(2, (3, heads, size)).permute(2, 0, 3, 1, 4)
            _group_backward(group, q, k, v, dout, slopes, window, into)
    return plan.unsort(dqkv_PX).view(qkv_T3NH.shape)


def _group_backward(
    group: Group, q: Tensor, k: Tensor, v: Tensor, dout: Tensor, slopes: Tensor | None, window: int | None, into: Tensor
) -> None:
    """The gradients of q, k, v, each (G, N, L, H), into a tensor (3, G, N, L, H)."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, weights in _weights(group, q, k, slopes, window):
        dv += weights.transpose(2, 3) @ dout[:, :, rows]
        dweights = dout[:, :, rows] @ v.transpose(2, 3)
        # the gradient through the softmax: weights (dweights - sum of weights dweights)
        torch.ops.aten._softmax_backward_data.out(dweights, weights, -1, weights.dtype, grad_input=dweights)
        dq[:, :, rows] = dweights @ k
        dk += dweights.transpose(2, 3) @ q[:, :, rows]
    scale = q.shape[-1] ** -0.5
    into[0].copy_(dq.mul_(scale))
    into[1].copy_(dk.mul_(scale))
    into[2].copy_(dv)


def _heads_first(x_GLX: Tensor, parts: int, heads: int) -> Tensor:
    """(parts, G, N, L, H) in float32."""
    x = x_GLX.unflatten(2, (parts, heads, -1)).permute(2, 0, 3, 1, 4)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.empty(x.shape, dtype=wide).copy_(x)


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
            scores.masked_fill_(group.hidden, -math.inf)
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


def _plan(cu_seqlens: Tensor, heads: int) -> Plan:
    """The plan of a batch, made once for all its layers and both passes."""
    key = (cu_seqlens._version, heads)
    kept = _plans.get(cu_seqlens)
    if kept is None or kept[0] != key:
        kept = (key, make_plan(cu_seqlens.tolist(), heads))
        _plans[cu_seqlens] = kept
    return kept[1]


def make_plan(bounds: list[int], heads: int) -> Plan:
    groups, rows, places = [], [], torch.empty(bounds[-1], dtype=torch.int64)
    first = 0
    for members in together(bounds, heads):
        starts = torch.tensor([bounds[i] for i in members])[:, None]
        lengths = torch.tensor([bounds[i + 1] - bounds[i] for i in members])[:, None]
        position = torch.arange(int(lengths[0]))
        real = position < lengths  # (G, L)
        rows.append((starts + position).clamp_(max=bounds[-1] - 1).flatten())
        places[rows[-1][real.flatten()]] = first + real.flatten().nonzero().flatten()
        hidden = None if real.all() else ~real[:, None, None]
        groups.append(Group(first, len(members), len(position), hidden))
        first += real.numel()
    in_order = torch.cat(rows) if rows else places
    if first == len(places) and torch.equal(in_order, torch.arange(first)):
        return Plan(groups, None, None)
    return Plan(groups, in_order, places)


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
