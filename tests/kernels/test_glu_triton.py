"""The Triton gated linear unit: against float64, with its dropout, compiled, and refused where it cannot run."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

import kernels
from kernels.triton import glu
from tests.kernels.helpers import DEVICE, DTYPES, assert_as_exact, needs_triton

SHAPES = [(0, 8), (1, 1), (1, 3), (3, 129), (5, 1001), (2, 3072)]  # tokens, columns of each half


def both(x, dout, backend, activation="gelu", dropout_p=0.0):
    """The output and the gradient of x."""
    x = x.detach().requires_grad_()
    out = kernels.glu(x, activation, dropout_p, backend=backend)
    return out, *torch.autograd.grad(out, x, dout)


def inputs(tokens, columns, dtype=torch.float32):
    torch.manual_seed(tokens + columns)
    x = torch.randn(tokens, 2 * columns, device=DEVICE) * 3
    return x.to(dtype), torch.randn(tokens, columns, device=DEVICE).to(dtype)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["gelu", "silu", "relu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_float64(shape, activation, dtype):
    x, dout = inputs(*shape, dtype)
    exact = both(x.double(), dout.double(), "reference", activation)
    plain = both(x, dout, "reference", activation)
    assert_as_exact(both(x, dout, "triton", activation), plain, exact, "out dx")


@needs_triton
def test_strides_and_leading_dimensions():
    x, dout = inputs(6, 70)
    exact = both(x, dout, "triton")
    wide = torch.zeros(6, 300, device=DEVICE)
    wide[:, 7:147] = x
    for other in (wide[:, 7:147], x.t().contiguous().t()):
        assert all(map(torch.equal, both(other, dout, "triton"), exact))
    out, dx = both(x.view(2, 3, 140), dout.view(2, 3, 70), "triton")
    assert torch.equal(out.view(6, 70), exact[0]) and torch.equal(dx.view(6, 140), exact[1])
    _, dx = both(
        x, torch.ones(1, 1, device=DEVICE).expand(6, 70), "triton"
    )  # a gradient with strides of 0, as sum() makes
    assert torch.equal(dx, both(x, torch.ones_like(dout), "triton")[1])


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout(dtype):
    """The backward drops what the forward dropped, and the rest is scaled."""
    x, dout = inputs(33, 1000, dtype)
    torch.manual_seed(7)
    out, dx = both(x, dout, "triton", "silu", dropout_p=0.25)  # SiLU has no zeros of its own
    whole, whole_dx = both(x, dout, "triton", "silu")
    kept = out != 0
    assert abs(kept.float().mean().item() - 0.75) < 0.01
    rows, columns = kept.float().mean(1), kept.float().mean(0)
    assert rows.std() < 0.03 and columns.std() < 0.15  # 0.014 and 0.075 expected: neither rows nor columns are alike
    tolerance = dict(rtol=4 * torch.finfo(dtype).eps, atol=1e-6)
    torch.testing.assert_close(out, torch.where(kept, whole / 0.75, 0), **tolerance)
    torch.testing.assert_close(dx, torch.where(kept.repeat(1, 2), whole_dx / 0.75, 0), **tolerance)


@needs_triton
def test_dropout_is_ruled_by_the_seed():
    x, dout = inputs(9, 200)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(both(x, dout, "triton", dropout_p=0.5)[0])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert not torch.equal(*(both(x, dout, "triton", dropout_p=0.5)[0] for _ in range(2)))
    # an element's fate does not depend on how many columns or rows there are beside it
    torch.manual_seed(1)
    fewer = both(x[:4], dout[:4], "triton", dropout_p=0.5)[0]
    assert torch.equal(fewer, results[0][:4])
    for backend in ("triton", "reference"):
        assert not both(x, dout, backend, dropout_p=1.0)[0].any()


@needs_triton
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_opcheck(dropout_p):
    x, dout = inputs(5, 24)
    seed = torch.tensor([5], device=DEVICE) if dropout_p else None
    torch.library.opcheck(torch.ops.bert_kernels.glu, (x.requires_grad_(), "gelu", dropout_p, seed))
    torch.library.opcheck(torch.ops.bert_kernels.glu_backward, (dout, x.detach(), "silu", dropout_p, seed))


def test_bad_input():
    x = torch.zeros(3, 8)
    for arguments, words in (
        ((x, "mish"), "activation='mish'.*gelu, silu, relu"),
        ((x[:, :7],), r"x has shape \(3, 7\)"),
        ((x, "gelu", 1.5), "dropout_p=1.5"),
        ((x, "gelu", 0.0, "cuda"), "backend='cuda'.*triton, cpu, reference"),
        ((x.double(), "gelu", 0.0, "triton"), "cannot take x: torch.float64"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.glu(*arguments)


def test_refused_without_gpu_and_interpreter(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="device cpu: needs a CUDA GPU.*TRITON_INTERPRET=1"):
        kernels.glu(torch.zeros(3, 8), backend="triton")


@triton.jit
def _gelu_kernel(a, out, COUNT: tl.constexpr, EXACT: tl.constexpr):
    i = tl.arange(0, COUNT)
    value = tl.load(a + i)
    tl.store(out + i, value * glu._below(value, EXACT))


@needs_triton
@pytest.mark.parametrize(("exact", "most"), [(False, 1e-6), (True, 5e-7)])
def test_gelu_is_within_a_millionth_where_it_is_rounded_to_16_bits(exact, most):
    a = torch.linspace(-12, 12, 2**14, device=DEVICE)
    out = torch.empty_like(a)
    _gelu_kernel[(1,)](a, out, COUNT=2**14, EXACT=exact)
    assert (out.double() - torch.nn.functional.gelu(a.double())).abs().max() < most
