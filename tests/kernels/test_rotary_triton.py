"""Rotary embedding: the table and the reference against complex numbers, the Triton kernel against float64, refusals."""

from __future__ import annotations

import pytest
import torch

import kernels
from kernels import reference
from tests.kernels.helpers import DEVICE, DTYPES, assert_as_exact, needs_triton

THETA = 160_000.0
SHAPES = [(0, 2, 8), (1, 1, 2), (67, 3, 24), (33, 2, 64), (9, 1, 130)]  # tokens, heads, size


def inputs(tokens, heads, size, dtype=torch.float32):
    """qkv and dout (T, 3, N, H), and a table as positions far into a sequence have it."""
    torch.manual_seed(tokens + size)
    qkv, dout = (torch.randn(tokens, 3, heads, size, device=DEVICE).to(dtype) for _ in range(2))
    angles = torch.randn(tokens, size // 2, device=DEVICE) * 100
    return qkv, dout, torch.stack([angles.cos(), angles.sin()])


def both(qkv, dout, table, backend):
    """The output and the gradient of qkv."""
    qkv = qkv.detach().requires_grad_()
    out = kernels.rotary(qkv, table, backend)
    return out, *torch.autograd.grad(out, qkv, dout)


def test_a_token_turns_by_its_place_in_its_sequence():
    """Each pair of elements is a complex number times e^(i angle), in float64."""
    lengths = [5, 0, 1, 0, 70]
    qkv, _, _ = inputs(76, 2, 6)
    bounds = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
    table = kernels.rotary_table(bounds, 76, 6, THETA)
    position = torch.cat([torch.arange(n, device=DEVICE) for n in lengths]).double()
    angles = position[:, None] * THETA ** (-2 * torch.arange(3, device=DEVICE) / 6).double()
    exact = torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(table.double(), torch.stack([exact.real, exact.imag]), atol=1e-5, rtol=0)
    turned = torch.complex(*qkv.double().chunk(2, -1)) * exact[:, None, None]
    out = kernels.rotary(qkv, table)
    torch.testing.assert_close(out[:, :2].double(), torch.cat([turned.real, turned.imag], -1)[:, :2], atol=1e-5, rtol=0)
    assert torch.equal(out[:, 2], qkv[:, 2])
    assert kernels.rotary_table(bounds[:1] * 0, 0, 6, THETA).shape == (2, 0, 3)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_float64(shape, dtype):
    qkv, dout, table = inputs(*shape, dtype)
    exact = both(qkv.double(), dout.double(), table, "reference")
    assert_as_exact(both(qkv, dout, table, "triton"), both(qkv, dout, table, "reference"), exact, "out dqkv")


@needs_triton
def test_strides():
    """Views of any token, part and head stride are read as they are; a head that is spread out is copied first."""
    qkv, dout, table = inputs(9, 2, 20)
    exact = both(qkv, dout, table, "triton")
    wide = torch.zeros(9, 200, device=DEVICE)
    wide[:, 7:127] = qkv.flatten(1)
    heads_first = qkv.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
    for other in (wide[:, 7:127].unflatten(1, (3, 2, 20)), heads_first, qkv.mT.contiguous().mT):
        assert all(map(torch.equal, both(other, dout, table, "triton"), exact))
    one = torch.ones(1, device=DEVICE)  # a gradient with strides of 0, as sum() makes
    summed = both(qkv, one.expand(dout.shape), table, "triton")[1]
    assert torch.equal(summed, both(qkv, torch.ones_like(dout), table, "triton")[1])


@needs_triton
def test_opcheck_and_one_graph():
    qkv, _, table = inputs(5, 2, 8)
    torch.library.opcheck(torch.ops.bert_kernels.rotary, (qkv.clone().requires_grad_(), table, False))
    bounds = torch.tensor([0, 2, 5], device=DEVICE).int()

    def function(x):
        return kernels.rotary(x, kernels.rotary_table(bounds, 5, 8, THETA), "triton")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(qkv), function(qkv))


def test_bad_input():
    qkv, table = torch.zeros(4, 3, 2, 8), torch.zeros(2, 4, 4)
    for arguments, words in (
        ((qkv[..., :7], table), r"qkv has shape \(4, 3, 2, 7\)"),
        ((qkv[:, :2], table), r"qkv has shape \(4, 2, 2, 8\)"),
        ((qkv, table[:, :3]), r"table is torch.float32 \(2, 3, 4\) on cpu; it must be float32 \(2, 4, 4\) on cpu"),
        ((qkv, table.double()), "table is torch.float64"),
        ((qkv, table, "cuda"), "backend='cuda'.*triton, cpu, reference"),
        ((qkv.double(), table, "triton"), "cannot take qkv: torch.float64"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.rotary(*arguments)
    bounds = torch.tensor([0, 3, 4]).int()
    for arguments, words in (
        ((bounds, 4, 7, THETA), "head size 7"),
        ((bounds, 4, 8, 0.0), "theta=0.0; it must be positive"),
        ((bounds.long(), 4, 8, THETA), "cu_seqlens is torch.int64"),
        ((bounds, 5, 8, THETA), "runs from 0 to 4; it must run from 0 to the 5 tokens"),
        ((torch.tensor([0, 3, 2, 4]).int(), 4, 8, THETA), "cu_seqlens falls by 1"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.rotary_table(*arguments)


def test_bounds_that_were_not_checked_reach_nothing_outside():
    table = reference.rotary_table(torch.tensor([-5, 4, 2, 9999]).int(), 12, 8, THETA)
    assert table.shape == (2, 12, 4) and table.isfinite().all()
