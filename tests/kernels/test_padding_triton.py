"""Triton's moves between padded batches and streams: exactly torch's, forward and backward, whatever the mask and the type."""

from __future__ import annotations

import pytest
import torch

import kernels
from tests.kernels.helpers import DEVICE, needs_triton

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
SHAPES = [(1, 1), (1, 129), (3, 7, 5), (5, 63, 768), (2, 130, 3, 4), (9, 3, 1024)]  # S, L, ...


def ragged(sequences, length, seed=0):
    """A mask with holes, an empty sequence and a full one, if there are so many."""
    torch.manual_seed(seed)
    mask = torch.rand(sequences, length, device=DEVICE) < 0.6
    mask[sequences // 2] = True
    if sequences > 2:
        mask[1] = False
    return mask


def values(shape, dtype):
    x = torch.randn(shape, device=DEVICE) * 50
    return x > 0 if dtype == torch.bool else x.abs().to(dtype)


@needs_triton
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), *((SHAPES[2], dtype) for dtype in TYPES)],
    ids=str,
)
def test_as_torch(shape, dtype):
    mask, x = ragged(*shape[:2]), values(shape, dtype)
    expected, got = (kernels.unpad(x, mask, backend=backend) for backend in ("reference", "triton"))
    for a, b in zip(expected[:3], got[:3], strict=True):
        assert torch.equal(a, b) and a.dtype == b.dtype
    assert expected[3] == got[3] and type(got[3]) is int
    stream, indices = got[:2]
    padded = kernels.pad(stream, indices, *shape[:2], backend="triton")
    assert torch.equal(padded, kernels.pad(stream, indices, *shape[:2]))
    assert torch.equal(padded, torch.where(mask.view(*shape[:2], *[1] * (len(shape) - 2)), x, torch.zeros_like(x)))


@needs_triton
@pytest.mark.parametrize("dtype", TYPES[:4], ids=str)
@pytest.mark.parametrize("shape", [(3, 7, 5), (4, 9)], ids=str)
def test_gradients(shape, dtype):
    mask = ragged(*shape[:2])
    x = values(shape, dtype)
    results = []
    for backend in ("reference", "triton"):
        padded = x.clone().requires_grad_()
        stream, indices, _, _ = kernels.unpad(padded, mask, backend=backend)
        (dx,) = torch.autograd.grad(stream, padded, stream.detach() + 1)
        tokens = stream.detach().requires_grad_()
        batch = kernels.pad(tokens, indices, *shape[:2], backend=backend)
        (dtokens,) = torch.autograd.grad(batch, tokens, batch.detach() * 2)
        (summed,) = torch.autograd.grad(kernels.pad(tokens, indices, *shape[:2], backend=backend).sum(), tokens)
        results.append((dx, dtokens, summed))
    assert all(map(torch.equal, *results))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.float32, torch.bfloat16], ids=str)
def test_masks_of_every_type(dtype):
    mask = ragged(4, 70)
    x = values((4, 70, 3), torch.float32)
    for other in (mask.to(dtype), mask.to(dtype).t().contiguous().t(), mask.to(dtype) * -3):
        expected, got = kernels.unpad(x, other), kernels.unpad(x, other, backend="triton")
        assert all(map(torch.equal, expected[:3], got[:3])) and expected[3] == got[3]


@needs_triton
@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (3, 5, 0), (2, 3, 4)], ids=str)
def test_nothing_there(shape):
    x, mask = values(shape, torch.float32), torch.zeros(shape[:2], dtype=torch.bool, device=DEVICE)
    expected, got = kernels.unpad(x, mask), kernels.unpad(x, mask, backend="triton")
    assert all(map(torch.equal, expected[:3], got[:3])) and got[3] == 0
    assert torch.equal(kernels.pad(got[0], got[1], *shape[:2], backend="triton"), torch.zeros_like(x))


@needs_triton
def test_strides_and_many_steps(monkeypatch):
    """More sequences, and longer ones, than a program looks at in one step."""
    from kernels.triton import padding as kernel

    monkeypatch.setitem(kernel.PLAN, "BLOCK", 16)
    mask = ragged(37, 50)
    x = values((50, 37, 10), torch.float32).transpose(0, 1)[..., ::2]
    expected, got = kernels.unpad(x, mask), kernels.unpad(x, mask, backend="triton")
    assert all(map(torch.equal, expected[:3], got[:3])) and expected[3] == got[3]


@needs_triton
def test_opcheck():
    mask, x = ragged(3, 7), values((21, 5), torch.float32)
    torch.library.opcheck(
        torch.ops.bert_kernels.gather_rows, (x.requires_grad_(), torch.tensor([3, 20, 0], device=DEVICE))
    )
    tokens = values((3, 5), torch.float32).requires_grad_()
    indices = torch.tensor([3, 20, 0], device=DEVICE)
    torch.library.opcheck(torch.ops.bert_kernels.scatter_rows, (tokens, indices, 21))
    # Of the indices only as many are set as there are tokens; a mask of ones sets all, and the runs can be compared.
    torch.library.opcheck(torch.ops.bert_kernels.plan_unpadding, (torch.ones_like(mask),))


@needs_triton
def test_indices_outside_touch_nothing():
    """Where they are not checked, as on a GPU: no row is written, none is read."""
    x = torch.ones(3, 5, device=DEVICE)
    indices = torch.tensor([1, 10**12, -4], device=DEVICE)
    out = torch.ops.bert_kernels.scatter_rows(x, indices, 4)
    assert torch.equal(out.sum(1), torch.tensor([0.0, 5.0, 0.0, 0.0], device=DEVICE))
    assert torch.equal(torch.ops.bert_kernels.gather_rows(x, indices)[1:], torch.zeros(2, 5, device=DEVICE))


def test_bad_input():
    x, mask, indices = torch.zeros(2, 3, 4), torch.ones(2, 3), torch.arange(2)
    for call, words in (
        (lambda: kernels.unpad(x, mask[:, :2]), r"mask is \(2, 2\) on cpu; x begins with \(2, 3\)"),
        (lambda: kernels.unpad(x, mask, backend="cuda"), "backend='cuda'.*triton, cpu, reference"),
        (lambda: kernels.pad(x[0], indices, 2, 3), r"indices is torch.int64 \(2,\).*tokens has 3 rows"),
        (lambda: kernels.pad(x[0, :2], indices.int(), 2, 3), "indices is torch.int32"),
        (lambda: kernels.pad(x[0, :2], indices, -1, 3), "sequences=-1"),
        (lambda: kernels.pad(x[0, :2], indices + 5, 2, 3), "indices holds 6; it must be in 0 to 5"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@needs_triton
def test_elements_too_large():
    x = torch.zeros(2, 3, dtype=torch.complex128, device=DEVICE)
    with pytest.raises(ValueError, match="complex128: backend=triton moves elements of at most 8 bytes"):
        kernels.unpad(x, torch.ones(2, 3, device=DEVICE), backend="triton")
