"""What must hold of attention whatever the batch: order, neighbours and empty sequences change nothing, ALiBi is symmetric."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import kernels
from tests.kernels.helpers import DEVICE, needs_triton

HEADS, SIZE = 2, 16
# float16 is kept on chip, float32 goes tile by tile; both paths are asked.
paths = pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["on_chip", "tiled"])
few = settings(max_examples=5, deadline=None, derandomize=True)
lengths_of = st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(sum)

pytestmark = needs_triton


def stream(lengths, dtype):
    """Packed qkv of each sequence, which depends on the length and place alone."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randn(n, 3, HEADS, SIZE, generator=generator).to(DEVICE, dtype) for n in lengths]


def attend(parts, longest=40, slopes=True, window=None):
    """Output and gradient of each sequence, for dout = out."""
    qkv = torch.cat(parts).requires_grad_()
    lengths = [len(part) for part in parts]
    cu_seqlens = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
    given = kernels.alibi_slopes(HEADS).to(DEVICE) if slopes else None
    out = kernels.attention_packed(qkv, cu_seqlens, longest, given, window, backend="triton")
    (gradient,) = torch.autograd.grad(out, qkv, out.detach())
    return list(out.split(lengths)), list(gradient.split(lengths))


def assert_same(some, others):
    for x, y in zip(some, others, strict=True):
        assert len(x) == len(y) and all(torch.equal(a, b) for a, b in zip(x, y, strict=True))


@paths
@few
@given(data=st.data())
def test_another_order_permutes_the_output(dtype, data):
    parts = stream(data.draw(lengths_of), dtype)
    order = data.draw(st.permutations(range(len(parts))))
    expected = [[results[i] for i in order] for results in attend(parts)]
    assert_same(attend([parts[i] for i in order]), expected)


@paths
@few
@given(data=st.data())
def test_neighbours_do_not_matter(dtype, data):
    """Not even where they are not a number."""
    parts = stream(data.draw(lengths_of), dtype)
    one = data.draw(st.sampled_from([i for i, part in enumerate(parts) if len(part)]))
    others = [part if i == one else torch.full_like(part, float("nan")) for i, part in enumerate(parts)]
    assert_same([[results[one]] for results in attend(others)], attend([parts[one]]))


@paths
@few
@given(data=st.data())
def test_empty_sequences_are_no_ops(dtype, data):
    parts = stream(data.draw(lengths_of), dtype)
    place = data.draw(st.integers(0, len(parts)))
    more = [*parts[:place], parts[0][:0], *parts[place:]]
    assert_same([[x for i, x in enumerate(r) if i != place] for r in attend(more)], attend(parts))


@paths
@few
@given(length=st.integers(1, 40), window=st.one_of(st.none(), st.integers(0, 40)))
def test_read_backwards(dtype, length, window):
    """-slope |i - j| and the window are symmetric, so a reversed sequence gives the reversed output."""
    (part,) = stream([length], dtype)
    forwards, backwards = attend([part], window=window), attend([part.flip(0)], window=window)
    for (x,), (y,) in zip(forwards, backwards, strict=True):
        torch.testing.assert_close(x, y.flip(0), atol=4e-3 if dtype == torch.float16 else 1e-5, rtol=2e-3)


@few
@given(length=st.integers(1, SIZE))
def test_the_weights_are_alibis_alone(length):
    """With no scores and one-hot values the output is the weights themselves: log w_ij - log w_ii = -slope |i - j|."""
    qkv = torch.zeros(length, 3, HEADS, SIZE, device=DEVICE)
    qkv[:, 2] = torch.eye(length, SIZE, device=DEVICE)[:, None]
    (weights,), _ = attend([qkv])  # (length, heads, size), where size counts keys
    logs = weights.detach()[:, :, :length].log().transpose(0, 1)  # (heads, i, j)
    distance = (torch.arange(length)[:, None] - torch.arange(length)[None, :]).abs().to(DEVICE)
    bias = logs - logs.diagonal(dim1=1, dim2=2)[:, :, None]
    expected = -kernels.alibi_slopes(HEADS).to(DEVICE)[:, None, None] * distance
    torch.testing.assert_close(bias, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(bias, bias.transpose(1, 2), atol=1e-4, rtol=1e-5)
