"""Rows of a stream by their numbers, by Triton: exactly torch's where each is taken once, and as float64's sums where not."""

from __future__ import annotations

import pytest
import torch

import kernels
from tests.kernels.helpers import DEVICE, DTYPES, assert_as_exact, needs_triton

# Tokens, columns, numbers of rows: none, all, in any order, and a bin's filling between others.
ONCE = {
    "none": (5, 8, []),
    "all": (3, 63, [0, 1, 2]),
    "some": (70, 129, [69, 3, 0, 17, 41, 16]),
    "Base": (40, 768, [5, 39]),
}
SEVERAL = {
    "filling": (64, 40, [3, 9, 12, 0, 0, 0, 33, 35, 60, 32, 32]),
    "one": (1, 7, [0] * 20),
    "mixed": (20, 300, [19, 0, 19, 7, 0, 7, 7, 11, 19]),
}


def run(x, rows, dout, backend):
    """The rows, and the gradient of x."""
    x = x.detach().requires_grad_()
    out = kernels.take_rows(x, rows, backend=backend)
    return out, *torch.autograd.grad(out, x, dout)


def given_of(case, dtype=torch.float32):
    tokens, columns, numbers = case
    torch.manual_seed(tokens)
    x, dout = (torch.randn(n, columns, device=DEVICE).to(dtype) for n in (tokens, len(numbers)))
    return x, torch.tensor(numbers, dtype=torch.int64, device=DEVICE), dout


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ONCE)
def test_as_torch(name, dtype):
    given = given_of(ONCE[name], dtype)
    assert all(map(torch.equal, run(*given, "triton"), run(*given, "reference")))


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SEVERAL)
def test_rows_that_are_taken_several_times(name, dtype):
    """As float64's sums rounded once or little worse, and the same every time."""
    x, rows, dout = given_of(SEVERAL[name], dtype)
    got = run(x, rows, dout, "triton")
    exact = run(x.double(), rows, dout.double(), "reference")
    in_float32 = [result.to(dtype) for result in run(x.float(), rows, dout.float(), "reference")]
    assert_as_exact(got, in_float32, exact, "rows dx")
    assert all(map(torch.equal, got, run(x, rows, dout, "triton")))
    untouched = torch.ones(len(x), dtype=torch.bool, device=DEVICE).index_fill(0, rows, False)
    assert not got[1][untouched].any()


@needs_triton
def test_more_rows_than_a_program_looks_at_and_strides(monkeypatch):
    from kernels.triton import rows as kernel

    monkeypatch.setitem(kernel.PLACES, "BLOCK", 16)
    x, _, dout = given_of((50, 24, range(37)))
    rows = torch.randperm(50, device=DEVICE)[:37]
    expected = run(x, rows, dout, "reference")
    wide = torch.zeros(50, 60, device=DEVICE)
    wide[:, 7:31] = x
    pairs = torch.stack([rows, rows], 1)
    for one, numbers, gradient in ((x, rows, dout.t().contiguous().t()), (wide[:, 7:31], pairs[:, 0], dout)):
        assert all(map(torch.equal, run(one, numbers, gradient, "triton"), expected))


@needs_triton
def test_opcheck():
    x, rows, dout = given_of(SEVERAL["mixed"])
    torch.library.opcheck(torch.ops.bert_kernels.take_rows, (x.requires_grad_(), rows))
    torch.library.opcheck(torch.ops.bert_kernels.take_rows_backward, (dout, rows, 20))


@needs_triton
def test_rows_outside_touch_nothing():
    """Where they are not looked for, as on a GPU."""
    rows = torch.tensor([1, 10**12, -4, 3], device=DEVICE)
    x, dout = torch.ones(3, 5, device=DEVICE), torch.ones(4, 5, device=DEVICE)
    assert torch.equal(torch.ops.bert_kernels.take_rows(x, rows).sum(1), torch.tensor([5.0, 0, 0, 0], device=DEVICE))
    dx = torch.ops.bert_kernels.take_rows_backward(dout, rows, 3)
    assert torch.equal(dx.sum(1), torch.tensor([0, 5.0, 0], device=DEVICE))


def test_bad_input():
    x, rows = torch.zeros(3, 4), torch.arange(2)
    for arguments, words in (
        (
            (x, rows.int()),
            r"rows is torch.int32 \(2,\) on cpu; it must be int64 \(M,\) and where x is, \(3, 4\) on cpu",
        ),
        ((x[0], rows), r"x is, \(4,\)"),
        ((x, rows.to("meta")), "rows is torch.int64 .* on meta"),
        ((x, rows, "cuda"), "backend='cuda'.*triton, cpu, reference"),
        ((x.double(), rows, "cpu"), "cannot take x, which is torch.float64"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.take_rows(*arguments)


@needs_triton
def test_rows_outside_are_found_on_a_cpu():
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="rows holds 3; it must be in 0 to 2"):
            kernels.take_rows(torch.zeros(3, 4), torch.tensor([0, 3]), backend="triton")
