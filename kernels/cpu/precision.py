"""Matrix products of float32 tensors that round their inputs to bfloat16 and accumulate, and answer, in float32.

This is what tensor cores do and what torch's bfloat16 products on a CPU do not: they round their results too. A CPU with AMX or
AVX512-BF16 does it at bfloat16's speed; another multiplies in float32, which is not less exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def rounded_products(dtype: torch.dtype) -> Iterator[None]:
    """Within it, where `dtype` is bfloat16; otherwise nothing changes."""
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    if dtype == torch.bfloat16:
        setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
