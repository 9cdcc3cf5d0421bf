"""The Triton LayerNorm: against float64, with residual and dropout, its gradients' two stages, and refusals."""

from __future__ import annotations

import itertools

import pytest
import torch

import kernels
from tests.kernels.helpers import DEVICE, DTYPES, assert_as_exact, needs_triton

SHAPES = [(1, 1), (1, 3), (3, 63), (70, 129), (1, 768), (129, 768), (17, 1024)]
NAMES = "out dx dresidual dweight dbias"


def inputs(tokens, columns, dtype=torch.float32):
    """x, residual, weight, bias, dout; x off centre, as activations are."""
    torch.manual_seed(tokens + columns)
    x, residual, dout = (torch.randn(tokens, columns, device=DEVICE).to(dtype) for _ in range(3))
    weight, bias = torch.rand(columns, device=DEVICE) + 0.5, torch.randn(columns, device=DEVICE)
    return x + 1, residual, weight, bias, dout


def run(x, residual, weight, bias, dout, backend, dropout_p=0.0, eps=1e-12):
    """The output and every gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, residual, weight, bias)]
    x, residual, weight, bias = leaves
    out = kernels.layer_norm(x, weight, bias, eps, residual, dropout_p, backend=backend)
    return out, *torch.autograd.grad(out, leaves, dout)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_float64(shape, dtype):
    given = inputs(*shape, dtype)
    exact = run(*(tensor.double() for tensor in given), "reference", eps=1e-5)
    plain = run(*given, "reference", eps=1e-5)
    assert_as_exact(run(*given, "triton", eps=1e-5), plain, exact, NAMES)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_residual(dtype):
    x, _, weight, bias, dout = inputs(7, 200, dtype)
    results = []
    for backend, cast in (("triton", dtype), ("reference", dtype), ("reference", torch.float64)):
        wide = torch.float64 if cast == torch.float64 else torch.float32
        leaves = [x.to(cast).requires_grad_(), *(p.detach().to(wide).requires_grad_() for p in (weight, bias))]
        out = kernels.layer_norm(*leaves, backend=backend)
        results.append([out, *torch.autograd.grad(out, leaves, dout.to(cast))])
    assert_as_exact(*results, "out dx dweight dbias")


@needs_triton
def test_parameters_in_low_precision_and_a_residual_in_another():
    x, residual, weight, bias, dout = inputs(9, 96, torch.bfloat16)
    given = (x, residual.float(), weight.bfloat16(), bias.bfloat16(), dout)
    exact = run(*(tensor.double() for tensor in given), "reference")
    assert_as_exact(run(*given, "triton"), run(*given, "reference"), exact, NAMES)


@needs_triton
def test_no_tokens_and_strides():
    out, dx, dresidual, dweight, dbias = run(*inputs(0, 48), "triton")
    assert out.shape == dx.shape == dresidual.shape == (0, 48) and not dweight.any() and not dbias.any()
    x, residual, weight, bias, dout = inputs(6, 70)
    exact = run(x, residual, weight, bias, dout, "triton")
    wide = torch.zeros(6, 300, device=DEVICE)
    wide[:, 7:77], wide[:, 100:170] = x, residual
    for a, b in ((wide[:, 7:77], wide[:, 100:170]), (x.t().contiguous().t(), residual)):
        assert all(map(torch.equal, run(a, b, weight, bias, dout, "triton"), exact))
    cube = [tensor.view(2, 3, 70) for tensor in (x, residual, dout)]
    results = run(cube[0], cube[1], weight, bias, cube[2], "triton")
    assert all(torch.equal(a.reshape(b.shape), b) for a, b in zip(results, exact, strict=True))


@needs_triton
def test_constant_rows_and_large_means():
    x, residual, weight, bias, dout = inputs(4, 100)
    out = kernels.layer_norm(torch.full_like(x, 3.0), weight, bias, backend="triton")
    torch.testing.assert_close(out, bias.expand(4, 100))
    given = (x + 1000, residual, weight, bias, dout)  # a variance by E[x^2] - E[x]^2 would lose all digits
    exact = run(*(tensor.double() for tensor in given), "reference")
    assert_as_exact(run(*given, "triton"), run(*given, "reference"), exact, NAMES)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout(dtype):
    """As the same LayerNorm of an x whose elements were dropped beforehand; the mask is read off the gradient of x."""
    given = x, residual, weight, bias, dout = inputs(21, 768, dtype)
    torch.manual_seed(3)
    out, dx, dresidual, dweight, dbias = run(*given, "triton", 0.25)
    kept = dx != 0
    assert abs(kept.float().mean().item() - 0.75) < 0.01
    factor = kept / 0.75  # a multiple of 2^-16, as the kernel has it
    expected = {}
    for name, cast in (("plain", dtype), ("exact", torch.float64)):
        masked = (x.to(cast) * factor.to(cast), *(tensor.to(cast) for tensor in (residual, *given[2:])))
        out_, dx_, *others = run(*masked, "reference")
        expected[name] = [out_, dx_ * factor.to(cast), *others]
    weights = [w.to(weight.dtype) for w in (dweight, dbias)]
    plain = [*expected["plain"][:3], *(w.to(weight.dtype) for w in expected["plain"][3:])]
    assert_as_exact([out, dx, dresidual, *weights], plain, expected["exact"], NAMES)


@needs_triton
def test_dropout_is_ruled_by_the_seed():
    x, _, weight, bias, _ = inputs(9, 64)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(kernels.layer_norm(x, weight, bias, dropout_p=0.5, backend="triton"))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


@needs_triton
def test_nothing_changes_from_call_to_call():
    given = inputs(300, 40)
    assert all(map(torch.equal, run(*given, "triton"), run(*given, "triton")))


def run_twice(x, residual, weight, bias, douts, backend, dropout_p=0.0):
    """The output and every gradient, for two readers."""
    leaves = [tensor.detach().requires_grad_() for tensor in (x, residual, weight, bias)]
    x, residual, weight, bias = leaves
    both = kernels.layer_norm_twice(x, weight, bias, 1e-5, residual, dropout_p, backend=backend)
    assert torch.equal(*both) and both[0].data_ptr() == both[1].data_ptr()
    return both[0], *torch.autograd.grad(both, leaves, douts)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 48), (1, 3), (70, 129), (5, 768)], ids=str)
def test_two_readers_as_float64(shape, dtype):
    *given, dout = inputs(*shape, dtype)
    given[1] = given[1].float()  # a residual whose gradient is not that of x
    douts = (dout, 3 * dout.flip(0) + 1)
    exact = run_twice(*(x.double() for x in given), [x.double() for x in douts], "reference")
    assert_as_exact(run_twice(*given, douts, "triton"), run_twice(*given, douts, "reference"), exact, NAMES)


@needs_triton
@pytest.mark.parametrize("dropout_p", [0.0, 0.25])
def test_two_readers_are_as_one_that_is_given_the_sum(dropout_p):
    """To the last digit, and whatever the strides; one of them alone, as the other given zeros."""
    *given, dout = inputs(9, 72)
    other = 2 * dout.flip(0) - 1
    results = []
    for call, gradients in (
        (run_twice, (dout.t().contiguous().t(), other)),
        (run, dout + other),
        (run_twice, (torch.zeros_like(dout), other)),
        (run, other),
    ):
        torch.manual_seed(3)
        more = {"eps": 1e-5} if call is run else {}
        results.append(call(*given, gradients, "triton", dropout_p, **more))
    assert all(map(torch.equal, *results[:2])) and all(map(torch.equal, *results[2:]))
    x, residual, weight, bias = given
    x.requires_grad_()
    for i in (0, 1):
        torch.manual_seed(3)
        alone = kernels.layer_norm_twice(x, weight, bias, 1e-5, residual, dropout_p, backend="triton")[i]
        assert torch.equal(torch.autograd.grad(alone, x, other)[0], results[3][1])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_elsewhere_two_readers_get_one_tensor(backend):
    x, weight = torch.ones(3, 8), torch.ones(8)
    out, again = kernels.layer_norm_twice(x, weight, None, backend=backend)
    assert out is again and torch.equal(out, kernels.layer_norm(x, weight, None, backend=backend))


@needs_triton
@pytest.mark.parametrize(("with_residual", "dropout_p"), itertools.product([True, False], [0.0, 0.3]))
def test_opcheck(with_residual, dropout_p):
    x, residual, weight, bias, dout = inputs(5, 24)
    seed = torch.tensor([5], device=DEVICE) if dropout_p else None
    leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
    other = residual.detach().requires_grad_() if with_residual else None
    torch.library.opcheck(torch.ops.bert_kernels.layer_norm, (*leaves, 1e-5, other, dropout_p, seed))
    _, statistics = torch.ops.bert_kernels.layer_norm(x, weight, bias, 1e-5, other, dropout_p, seed)
    other = residual if with_residual else None
    arguments = (dout, x, weight, bias, other, statistics, dropout_p, seed)
    for more in ({}, {"dagain": dout.flip(0)}):
        torch.library.opcheck(torch.ops.bert_kernels.layer_norm_backward, arguments, more)


def test_bad_input():
    x, weight = torch.zeros(3, 8), torch.ones(8)
    for arguments, words in (
        ((x, weight[:7], weight), r"weight \(7,\) and bias \(8,\) must both be \(8,\)"),
        ((x, weight, weight, 1e-5, x[:2]), r"residual is \(2, 8\) on cpu; it must be as x, \(3, 8\) on cpu"),
        ((x, weight, weight, 1e-5, None, -0.1), "dropout_p=-0.1"),
        ((x, weight, weight, 1e-5, None, 0.0, "cuda"), "backend='cuda'.*triton, cpu, reference"),
        ((x.long(), weight, weight, 1e-5, None, 0.0, "triton"), "cannot take x: torch.int64"),
    ):
        for function in (kernels.layer_norm, kernels.layer_norm_twice):
            with pytest.raises(ValueError, match=words):
                function(*arguments)


@needs_triton
def test_too_many_columns():
    wide = torch.zeros(1, 8193, device=DEVICE)
    with pytest.raises(ValueError, match="x has 8193 columns; backend=triton takes at most 8192"):
        kernels.layer_norm(wide, wide[0], wide[0], backend="triton")
