"""What the kernels' tests share: where Triton runs, and the bound on errors."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETING or not torch.cuda.is_available() else "cuda"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# Roundings that are allowed besides, for float32 products on tensor cores (tests/kernels/tensor_core.py): of 128 terms, four at a
# time, 32 sums are cut off, each by one rounding in the mean, all to one side; in the mean, a partial sum is half of the whole.
TF32_FLOOR = 16.0

needs_triton = pytest.mark.skipif(
    not INTERPRETING and not torch.cuda.is_available(),
    reason="needs a GPU, or TRITON_INTERPRET=1 set before pytest starts",
)


def assert_as_exact(
    got: Sequence[Tensor], plain: Sequence[Tensor], exact: Sequence[Tensor], names: str, floor: float = 4.0
) -> None:
    """Each tensor's greatest error is at most twice that of plain torch at the same precision, plus `floor` roundings.

    Args:
        got: results under test.
        plain: the same by plain torch in the same dtype.
        exact: the same in float64.
        names: one word a tensor.
        floor: allowed besides, in units of the dtype's rounding of the greatest exact value: plain torch may happen to be exact.
    """
    for name, x, p, e in zip(names.split(), got, plain, exact, strict=True):
        assert x.dtype == p.dtype and x.shape == e.shape, f"{name}: {x.dtype} {tuple(x.shape)}"
        if e.numel() == 0:
            continue
        error, allowed = ((y.double() - e).abs().max().item() for y in (x, p))
        rounding = torch.finfo(x.dtype).eps / 2 * e.abs().max().item()
        assert error <= 2 * allowed + floor * rounding, f"{name}: error {error:.3g}, plain torch's {allowed:.3g}"
