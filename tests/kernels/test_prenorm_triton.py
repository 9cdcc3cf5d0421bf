"""What a pre-norm block takes of LayerNorm, by Triton: no bias, and the sum beside its norm."""

from __future__ import annotations

import itertools

import pytest
import torch

import kernels
from tests.kernels.helpers import DEVICE, DTYPES, assert_as_exact, needs_triton
from tests.kernels.test_layer_norm_triton import inputs

SHAPES = [(0, 48), (1, 1), (3, 63), (33, 129), (9, 768)]
NAMES = "total out dx dresidual dweight dbias"


def run(x, residual, weight, bias, douts, backend, dropout_p=0.0):
    """Both outputs and every gradient, of the bias too where there is one."""
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in (x, residual, weight, bias)]
    outputs = kernels.add_layer_norm(*leaves, 1e-5, dropout_p, backend=backend)
    return *outputs, *torch.autograd.grad(outputs, [leaf for leaf in leaves if leaf is not None], douts)


def double(given):
    return [None if tensor is None else tensor.double() for tensor in given]


def given_of(shape, dtype, of_residual, with_bias):
    x, residual, weight, bias, dout = inputs(*shape, dtype)
    residual = residual.to(of_residual) * 3
    return (x, residual, weight, bias if with_bias else None), (residual.flip(0), dout)


@needs_triton
@pytest.mark.parametrize(("dtype", "of_residual"), [*zip(DTYPES, DTYPES, strict=True), (DTYPES[1], DTYPES[0])], ids=str)
@pytest.mark.parametrize(("shape", "with_bias"), zip(SHAPES, itertools.cycle([False, True])), ids=str)
def test_as_float64(shape, with_bias, dtype, of_residual):
    given, douts = given_of(shape, dtype, of_residual, with_bias)
    exact = run(*double(given), double(douts), "reference")
    plain, got = (run(*given, douts, backend) for backend in ("reference", "triton"))
    names = NAMES if with_bias else NAMES.removesuffix(" dbias")
    assert_as_exact(got, plain, exact, names)


@needs_triton
@pytest.mark.parametrize("of_residual", [torch.bfloat16, torch.float32], ids=str)
def test_dropout(of_residual):
    """As of an x whose elements were dropped beforehand; the mask is read off the gradient of x, and ruled by the seed."""
    given, douts = given_of((9, 768), torch.bfloat16, of_residual, False)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append(run(*given, douts, "triton", 0.25))
    assert all(map(torch.equal, *results))
    total, out, dx, dresidual, dweight = results[0]
    factor = (dx != 0) / 0.75
    assert abs((dx != 0).float().mean().item() - 0.75) < 0.02
    expected = []
    for cast in (lambda tensors: tensors, double):
        x, *others = cast(given)
        outputs = run(x * factor.to(x.dtype), *others, cast(douts), "reference")
        expected.append([*outputs[:2], outputs[2] * factor.to(x.dtype), *outputs[3:]])
    assert_as_exact([total, out, dx, dresidual, dweight], *expected, NAMES.removesuffix(" dbias"))


@needs_triton
def test_strides_and_one_gradient_alone():
    given, douts = given_of((6, 70), torch.float32, torch.float32, False)
    exact = run(*given, douts, "triton")
    wide = torch.zeros(6, 300, device=DEVICE)
    wide[:, 7:77], wide[:, 100:170] = given[0], given[1]
    got = run(wide[:, 7:77], wide[:, 100:170], *given[2:], [dout.t().contiguous().t() for dout in douts], "triton")
    assert all(map(torch.equal, got, exact))
    x = given[0].clone().requires_grad_()
    for i in (0, 1):  # the other output takes no part
        alone = [kernels.add_layer_norm(x, *given[1:], 1e-5, backend=name)[i] for name in ("triton", "reference")]
        gradients = [torch.autograd.grad(out, x, douts[i])[0] for out in alone]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@needs_triton
@pytest.mark.parametrize("with_residual", [True, False])
def test_layer_norm_without_bias(with_residual):
    """Of the norm alone: output and gradients as with a bias of zeros."""
    x, residual, weight, bias, dout = inputs(33, 129)
    results = []
    for offset in (None, torch.zeros_like(bias)):
        leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        out = kernels.layer_norm(*leaves, offset, residual=residual if with_residual else None, backend="triton")
        results.append([out, *torch.autograd.grad(out, leaves, dout)])
    assert all(map(torch.equal, *results))


@needs_triton
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
def test_opcheck(dropout_p):
    given, douts = given_of((5, 24), torch.float32, torch.float32, False)
    seed = torch.tensor([5], device=DEVICE) if dropout_p else None
    ops = torch.ops.bert_kernels
    leaves = [None if tensor is None else tensor.detach().requires_grad_() for tensor in given]
    torch.library.opcheck(ops.add_layer_norm, (*leaves, 1e-5, dropout_p, seed))
    total, _, statistics = ops.add_layer_norm(*given, 1e-5, dropout_p, seed)
    arguments = (*douts, total, *given[2:], statistics, dropout_p, seed)
    torch.library.opcheck(ops.add_layer_norm_backward, arguments)
    x, weight = leaves[0], leaves[2]
    torch.library.opcheck(ops.layer_norm, (x, weight, None, 1e-5, None, dropout_p, seed))


def test_bad_input():
    x, weight = torch.zeros(3, 8), torch.ones(8)
    for arguments, words in (
        ((x, x, weight[:7], None), r"weight \(7,\) must be \(8,\)"),
        ((x, x[:2], weight, None), r"residual is \(2, 8\) on cpu; it must be as x, \(3, 8\) on cpu"),
        ((x, x, weight, None, 1e-5, 1.1), "dropout_p=1.1"),
        ((x, x.double(), weight, None, 1e-5, 0.0, "cpu"), "cannot take residual, which is torch.float64"),
        ((x, x, weight.to("meta"), None, 1e-5, 0.0, "cpu"), "x is on cpu, weight on meta; all must be on one"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.add_layer_norm(*arguments)
