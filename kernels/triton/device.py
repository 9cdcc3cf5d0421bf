"""What a launcher asks about the device that a tensor is on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
from torch import Tensor

INTERPRETED_PROCESSORS = 3  # stands in for a GPU's number of multiprocessors on the CPU, small and no power of two


def capability(x: Tensor) -> int:
    """90 for sm_90; 80 in the interpreter, which has no registers to run out of."""
    if x.device.type != "cuda":
        return 80
    major, minor = torch.cuda.get_device_capability(x.device)
    return 10 * major + minor


def processors(x: Tensor) -> int:
    if x.device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(x.device).multi_processor_count


def divided(tokens: int, block_t: int, most: int) -> tuple[int, int]:
    """How many programs share the tokens, at most `most`, and the rows of each, a multiple of block_t."""
    rows = triton.cdiv(triton.cdiv(tokens, most), block_t) * block_t
    return triton.cdiv(tokens, rows), rows


def device_of(x: Tensor) -> AbstractContextManager:
    """Launches go to the current device, which need not be that of `x`."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
