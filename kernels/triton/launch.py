"""What the attention kernels' launchers share."""

from __future__ import annotations

import torch
from torch import Tensor

COMPILED = (80, 86, 89, 90, 100, 120)  # the GPUs of tests/kernels/compiled.json


def nearest(capability: int) -> int:
    """The newest GPU of the tables that is no newer than this one."""
    return max((known for known in COMPILED if known <= capability), default=COMPILED[0])


def precision(dtype: torch.dtype) -> str:
    """float32 products by three TF32 products each, near float32's own error; 16-bit types need no such thing."""
    return "tf32x3" if dtype == torch.float32 else "ieee"


def strides(*tensors: Tensor) -> list[int]:
    """Of tokens and of heads, for each (T, N, H) tensor."""
    return [stride for x in tensors for stride in (x.stride(0), x.stride(1))]
