"""Who can run what on this machine, and why not. `python -m kernels.backends` prints it.

A backend is a row: its name and the reason, if any, for which it cannot meet given requirements. Rows stand fastest first, and
`auto` takes the first that is not refused.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None  # looked up here, where torch.compile does not trace


@dataclass(frozen=True)
class Requirements:
    """What a model asks of its backends."""

    device: str  # cpu | cuda
    dtype: torch.dtype  # that the activations will have
    head_dim: int
    attention_dropout: float = 0.0
    alibi: bool = True


@dataclass(frozen=True)
class Backend:
    name: str
    what: str
    refusal: Callable[[Requirements], str | None]  # None: it can
    slow: Callable[[Requirements], str | None] = lambda _: None  # why `auto` passes over it although it can


@dataclass(frozen=True)
class Resolved:
    """A backend's name and one line that says why it was taken."""

    name: str
    why: str


def _never(_: Requirements) -> None:
    return None


def interpreting() -> bool:
    """Whether Triton runs kernels on the CPU, in its interpreter; it must be asked for before Triton is first imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _gpu_refusal() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU here"
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"this GPU is sm_{major}{minor}; Ampere (sm_80) or newer is needed"


def triton_refusal(device: str, dtype: torch.dtype | None) -> str | None:
    """Why the Triton kernels cannot run on tensors of this device and type (None: any type will do), or None."""
    if not TRITON_INSTALLED:
        return "the package triton is not installed"
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        return f"{dtype}: the kernels compute in float32, for float32, bfloat16 or float16"
    if device == "cuda":
        return _gpu_refusal()
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


def _triton(needs: Requirements) -> str | None:
    return triton_refusal(needs.device, needs.dtype)


def _interpreted(needs: Requirements) -> str | None:
    return "interpreted on the CPU, for tests only" if needs.device == "cpu" else None


def head_refusal(head_dim: int) -> str | None:
    """Why the Triton attention cannot take heads of this size, or None."""
    if 0 < head_dim <= 128 and head_dim % 8 == 0:
        return None
    return f"head_dim={head_dim}: the kernels take multiples of 8 up to 128"


def _triton_attention(needs: Requirements) -> str | None:
    if needs.attention_dropout:
        return f"attention dropout {needs.attention_dropout}: the kernel has none; set it to 0, or take sdpa"
    return triton_refusal(needs.device, needs.dtype) or head_refusal(needs.head_dim)


def _flash_attn(needs: Requirements) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    if needs.device != "cuda":
        return f"device {needs.device}: needs a CUDA GPU"
    if needs.dtype not in (torch.bfloat16, torch.float16):
        return f"{needs.dtype}: only bfloat16 and float16"
    if needs.head_dim > 256 or needs.head_dim % 8:
        return f"head_dim={needs.head_dim}: only multiples of 8 up to 256"
    return _gpu_refusal()


def _xformers(needs: Requirements) -> str | None:
    if importlib.util.find_spec("xformers") is None:
        return "the package xformers is not installed"
    if needs.device != "cuda":
        return f"device {needs.device}: needs a CUDA GPU"
    if needs.alibi:
        return "ALiBi: xformers adds it only as a dense (heads, tokens, tokens) bias; take triton, flex or sdpa"
    return None


def _flex(needs: Requirements) -> str | None:
    if needs.attention_dropout:
        return f"attention dropout {needs.attention_dropout}: flex_attention has none; set it to 0, or take sdpa"
    if needs.device != "cuda":
        return f"device {needs.device}: compiled flex_attention has gradients on a CUDA GPU only"
    if needs.head_dim < 16:
        return f"head_dim={needs.head_dim}: at least 16"
    return None


ATTENTION = (
    Backend("triton", "fused varlen Triton kernels, ALiBi in registers", _triton_attention, slow=_interpreted),
    Backend("flash_attn", "FlashAttention 2, varlen with ALiBi", _flash_attn),
    Backend("xformers", "block-diagonal mask, no ALiBi", _xformers),
    Backend("flex", "torch's flex_attention, masked by sequence", _flex),
    Backend("sdpa", "torch's scaled_dot_product_attention, padded inside", _never),
    Backend("reference", "plain torch, one sequence at a time", _never),
)
KERNELS = (
    Backend("triton", "fused Triton kernels", _triton, slow=_interpreted),
    Backend("reference", "plain torch", _never),
)


def resolve(kind: str, requested: str, requirements: Requirements) -> Resolved:
    """The backend for `kind` (attention or kernels): `requested`, or for `auto` the first that is not refused.

    Raises:
        ValueError: no such backend, or it is refused; the message lists every backend and why.
    """
    rows = {"attention": ATTENTION, "kernels": KERNELS}[kind]
    refusals = {row.name: row.refusal(requirements) for row in rows}
    listing = "; ".join(f"{name}: {reason or 'can run'}" for name, reason in refusals.items())
    if requested == "auto":
        passed = {row.name: refusals[row.name] or row.slow(requirements) for row in rows}
        for name, reason in passed.items():
            if reason is None:
                passed_over = [f"{n}: {r}" for n, r in passed.items() if r is not None]
                return Resolved(name, "fastest that can run" + (f" ({'; '.join(passed_over)})" if passed_over else ""))
        raise ValueError(f"model.{kind}=auto: nothing can run here ({listing})")
    if requested not in refusals:
        raise ValueError(f"model.{kind}={requested}: no such backend; known are auto, {', '.join(refusals)}")
    if refusals[requested] is not None:
        raise ValueError(f"model.{kind}={requested} cannot run: {refusals[requested]} ({listing})")
    return Resolved(requested, "requested")


def main() -> None:
    """Print a table of every backend, for MosaicBERT-Base on this machine."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    requirements = Requirements(device, torch.bfloat16 if device == "cuda" else torch.float32, head_dim=64)
    print(f"device {device}, {requirements.dtype}, head size {requirements.head_dim}")
    for kind, rows in (("attention", ATTENTION), ("kernels", KERNELS)):
        chosen = resolve(kind, "auto", requirements).name
        for row in rows:
            state = row.refusal(requirements) or ("auto" if row.name == chosen else "can run")
            print(f"  {kind:<10} {row.name:<10} {row.what:<52} {state}")


if __name__ == "__main__":
    main()
