"""The attention is as exact as its tests on a GPU ask, with products that round as tensor cores do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels import tensor_core
from tests.kernels.helpers import INTERPRETING
from tests.kernels.test_attention_triton import compare

interpreted = pytest.mark.skipif(not INTERPRETING, reason="replaces the interpreter's product")


@interpreted
@pytest.mark.parametrize(
    ("lengths", "size", "dtype"),
    [
        ([33, 2], 128, torch.float32),
        ([33, 2], 24, torch.float32),
        ([130, 3], 32, torch.float32),
        ([60, 7], 64, torch.bfloat16),
        ([60, 7], 64, torch.float16),
    ],
    ids=str,
)
def test_as_float64(lengths, size, dtype):
    with tensor_core.tensor_cores():
        compare(lengths, 1, size, dtype, tensor_cores=True)


@interpreted
def test_the_path_on_chip(monkeypatch):
    from kernels.triton import attention_short

    monkeypatch.setattr(attention_short, "fits", lambda max_seqlen, *_: max_seqlen <= attention_short.MAX_LENGTH)
    with tensor_core.tensor_cores():
        compare([70, 9], 1, 96, torch.float32, window=5, tensor_cores=True)
        compare([128, 63], 1, 32, torch.float32, tensor_cores=True)


@interpreted
def test_a_processor_s_bound_would_not_do():
    with tensor_core.tensor_cores(), pytest.raises(AssertionError, match=r"d[qk]: error"):
        compare([33, 2], 1, 128, torch.float32, tensor_cores=False)


def test_sums_are_cut_off_and_not_rounded():
    ulp = np.float32(2.0**-23)
    a = np.array([[1.0, ulp, -ulp / 4, ulp * 0.75]], dtype=np.float32)
    ones = np.ones((4, 1), dtype=np.float32)
    zero = np.zeros((1, 1), dtype=np.float32)
    assert tensor_core.accumulated(a, ones, zero, 4) == 1 + ulp  # exactly, 1 + 1.5 ulp
    assert tensor_core.accumulated(a, ones, zero, 1) == 1  # cut after each: 1, 1 + ulp, 1, 1
    assert tensor_core.accumulated(-a, ones, zero, 4) == -1 - ulp


def test_three_products_make_up_for_tf32():
    generator = np.random.default_rng(1)
    a, b = (generator.standard_normal((16, 16)).astype(np.float32) for _ in range(2))
    zero = np.zeros((16, 16), dtype=np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    one = tensor_core.accumulated(tensor_core.rounded(a), tensor_core.rounded(b), zero, 4)
    assert np.abs(one - exact).max() > 1e-4 > 1e-5 > np.abs(tensor_core.product(a, b, zero) - exact).max()
    assert tensor_core.rounded(np.float32([1 + 2.0**-11, 1 + 2.0**-12])).tolist() == [1 + 2.0**-10, 1.0]
    assert tensor_core.cut(np.float32([1 + 2.0**-10 + 2.0**-11])).tolist() == [1 + 2.0**-10]
