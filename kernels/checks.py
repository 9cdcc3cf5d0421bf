"""What a kernel can take: devices, types, sizes, and values.

To look at values and not only at shapes, the host must wait for a GPU: there it is done when asked for, in `value_checks()`, and
on the CPU always. A graph that is being compiled has none to look at, nor has a tensor without storage.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None  # looked up here, where torch.compile does not trace

CPU_TYPES = (torch.float32, torch.bfloat16)
CPU_REFUSAL = "its loops are for float32 and bfloat16"

_asked_for = False


@contextmanager
def value_checks() -> Iterator[None]:
    """Check values on the GPU too, for as long as this lasts. Each check waits for the GPU."""
    global _asked_for
    before, _asked_for = _asked_for, True
    try:
        yield
    finally:
        _asked_for = before


def may_look_at(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor):
        return False
    return _asked_for or x.device.type == "cpu"


def interpreting() -> bool:
    """Whether Triton runs kernels on the CPU, in its interpreter; it must be asked for before Triton is first imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def gpu_refusal() -> str | None:
    """Why no kernel can run on this machine's GPU, or None."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU here"
    if torch.compiler.is_compiling():
        return None  # the next question would be a node of the graph, for each kernel; `resolve` has asked it
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"this GPU is sm_{major}{minor}; Ampere (sm_80) or newer is needed"


def triton_refusal(device: str, dtype: torch.dtype | None) -> str | None:
    """Why the Triton kernels cannot run on tensors of this device and type (None: any type will do), or None."""
    if not TRITON_INSTALLED:
        return "the package triton is not installed"
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        return f"{dtype}: the kernels compute in float32, for float32, bfloat16 or float16"
    if device == "cuda":
        return gpu_refusal()
    if device == "cpu" and interpreting():
        return None
    return f"device {device}: needs a CUDA GPU (for tests, Triton's interpreter: TRITON_INTERPRET=1)"


def check_triton(name: str, x: torch.Tensor, computes: bool = True) -> None:
    """Raise a `ValueError` where the Triton kernels cannot run on tensor `x`, which the caller knows as `name`.

    A kernel that only moves elements, and does not compute with them, takes any type.
    """
    reason = triton_refusal(x.device.type, x.dtype if computes else None)
    if reason is not None:
        raise ValueError(f"backend=triton cannot take {name}: {reason}; use backend=reference")


def check_backend(backend: str, name: str, x: torch.Tensor) -> None:
    """Raise a `ValueError` for a backend that is none, or that cannot compute with tensor `x`, known to the caller as `name`."""
    if backend == "triton":
        check_triton(name, x)
    elif backend != "cpu":
        raise ValueError(f"backend={backend!r}: known are triton, cpu, reference")
    elif x.device.type != "cpu":
        raise ValueError(f"backend=cpu cannot take {name}, which is on {x.device}; use backend=triton or reference")
    elif x.dtype not in CPU_TYPES:
        raise ValueError(f"backend=cpu cannot take {name}, which is {x.dtype}: {CPU_REFUSAL}; use backend=reference")


def check_bounds_type(cu_seqlens: torch.Tensor) -> None:
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.numel() < 1:
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}; it must be int32 (sequences + 1,)"
        )


def check_bounds(cu_seqlens: torch.Tensor, tokens: int, max_seqlen: int) -> None:
    """Raise a `ValueError` for bounds, where they may be looked at, that are not those of sequences of `tokens` tokens."""
    if not may_look_at(cu_seqlens):
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != tokens:
        raise ValueError(
            f"cu_seqlens runs from {bounds[0]} to {bounds[-1]}; it must run from 0 to the {tokens} tokens given"
        )
    lengths = [end - start for start, end in zip(bounds[:-1], bounds[1:], strict=True)]
    if lengths and min(lengths) < 0:
        raise ValueError(f"cu_seqlens falls by {-min(lengths)} somewhere; it must never fall")
    if lengths and max(lengths) > max_seqlen:
        raise ValueError(f"max_seqlen={max_seqlen}; the longest sequence of cu_seqlens has {max(lengths)} tokens")


def head_refusal(head_dim: int) -> str | None:
    """Why the Triton attention cannot take heads of this size, or None."""
    if 0 < head_dim <= 128 and head_dim % 8 == 0:
        return None
    return f"head_dim={head_dim}: the kernels take multiples of 8 up to 128"
