"""Who can run what on this machine, and why not. `python -m kernels.backends` prints it.

A backend is a row: its name and the reason, if any, for which it cannot meet given requirements. Rows stand fastest first, and
`auto` takes the first that is not refused.
"""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable
from dataclasses import dataclass

import torch

from kernels.checks import CPU_REFUSAL, CPU_TYPES, gpu_refusal, head_refusal, triton_refusal


@dataclass(frozen=True)
class Requirements:
    """What a model asks of its backends."""

    device: str  # cpu | cuda
    dtype: torch.dtype  # that the activations will have
    head_dim: int
    attention_dropout: float = 0.0
    alibi: bool = True
    window: bool = False  # in some layer


@dataclass(frozen=True)
class Backend:
    name: str
    what: str
    refusal: Callable[[Requirements], str | None]  # None: it can
    slow: Callable[[Requirements], str | None] = lambda _: None  # why `auto` passes over it although it can
    compiles: bool = True  # in one graph; others look at lengths on the host, or keep what they made for a batch
    few_sizes: bool = False  # whether batches of few different sizes are worth some filling (recipe/model/shapes.py)
    adds_sparse: bool = False  # whether its loss adds the word embeddings' sparse gradient to the decoder's


@dataclass(frozen=True)
class Resolved:
    """A backend's name and one line that says why it was taken."""

    name: str
    why: str  # begins with "not" where a faster one, made for this device, could not be taken

    @property
    def in_short(self) -> str:
        """The name, and only what is unusual about it."""
        return f"{self.name} ({self.why})" if self.why.startswith("not ") else self.name

    def fact(self, kind: str, name: str) -> bool:
        """What the backend's row says of it; of other people's code, which has no row, what most rows say.

        Args:
            kind: attention or kernels.
            name: a field of Backend that is true or false.
        """
        row = next((row for row in ROWS[kind] if row.name == self.name), None)
        return getattr(row or Backend, name)


def _never(_: Requirements) -> None:
    return None


def _triton(needs: Requirements) -> str | None:
    return triton_refusal(needs.device, needs.dtype)


def _interpreted(needs: Requirements) -> str | None:
    return "device cpu: interpreted, for tests only" if needs.device == "cpu" else None


def _triton_attention(needs: Requirements) -> str | None:
    refusal = triton_refusal(needs.device, needs.dtype)
    if refusal is None and needs.attention_dropout:
        return f"attention dropout {needs.attention_dropout}: the kernel has none; set it to 0, or take sdpa"
    return refusal or head_refusal(needs.head_dim)


def _flash_attn(needs: Requirements) -> str | None:
    if needs.device != "cuda":
        return f"device {needs.device}: needs a CUDA GPU"
    if importlib.util.find_spec("flash_attn") is None:
        return "the package flash-attn is not installed"
    if needs.dtype not in (torch.bfloat16, torch.float16):
        return f"{needs.dtype}: only bfloat16 and float16"
    if needs.head_dim > 256 or needs.head_dim % 8:
        return f"head_dim={needs.head_dim}: only multiples of 8 up to 256"
    return gpu_refusal()


def _xformers(needs: Requirements) -> str | None:
    if needs.device != "cuda":
        return f"device {needs.device}: needs a CUDA GPU"
    if importlib.util.find_spec("xformers") is None:
        return "the package xformers is not installed"
    if needs.alibi:
        return "ALiBi: xformers adds it only as a dense (heads, tokens, tokens) bias; take triton, flex or sdpa"
    if needs.window:
        return "windows: xformers' block-diagonal mask has none; take triton, flex or sdpa"
    return None


def _flex(needs: Requirements) -> str | None:
    if needs.device != "cuda":
        return f"device {needs.device}: compiled flex_attention has gradients on a CUDA GPU only"
    if needs.attention_dropout:
        return f"attention dropout {needs.attention_dropout}: flex_attention has none; set it to 0, or take sdpa"
    if needs.head_dim < 16:
        return f"head_dim={needs.head_dim}: at least 16"
    return None


def _cpu(needs: Requirements) -> str | None:
    if needs.device != "cpu":
        return f"device {needs.device}: written for a CPU"
    if needs.dtype not in CPU_TYPES:
        return f"{needs.dtype}: {CPU_REFUSAL}"
    from kernels.cpu import build

    return build.refusal()


def _cpu_attention(needs: Requirements) -> str | None:
    if needs.attention_dropout:
        return f"attention dropout {needs.attention_dropout}: it has none; set it to 0, or take sdpa"
    return _cpu(needs)


ATTENTION = (
    Backend("triton", "fused varlen Triton kernels, ALiBi in registers", _triton_attention, slow=_interpreted),
    Backend("flash_attn", "FlashAttention 2, varlen with ALiBi", _flash_attn),
    Backend("xformers", "block-diagonal mask, no ALiBi", _xformers, compiles=False),
    Backend("flex", "torch's flex_attention, masked by sequence", _flex, compiles=False),
    Backend("cpu", "C++ loops compiled here, scores stay in cache", _cpu_attention),
    Backend("sdpa", "torch's scaled_dot_product_attention, padded inside", _never),
    Backend("reference", "plain torch, one sequence at a time", _never, compiles=False),
)
KERNELS = (
    Backend("triton", "fused Triton kernels", _triton, slow=_interpreted),
    Backend("cpu", "C++ loops compiled here", _cpu, few_sizes=True, adds_sparse=True),
    Backend("reference", "plain torch", _never),
)
ROWS = {"attention": ATTENTION, "kernels": KERNELS}


def resolve(kind: str, requested: str, requirements: Requirements) -> Resolved:
    """The backend for `kind` (attention or kernels): `requested`, or for `auto` the first that is not refused. Those
    before it that are made for this kind of device say why they are not taken.

    Raises:
        ValueError: no such backend, or it is refused; the message lists every backend and why.
    """
    rows = ROWS[kind]
    refusals = {row.name: row.refusal(requirements) for row in rows}
    listing = "; ".join(f"{name}: {reason or 'can run'}" for name, reason in refusals.items())
    if requested == "auto":
        passed_over: list[str] = []
        for row in rows:
            reason = refusals[row.name] or row.slow(requirements)
            if reason is None:
                return Resolved(row.name, "; ".join(passed_over) or "fastest on this device")
            if not reason.startswith("device "):
                passed_over.append(f"not {row.name}: {reason}")
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
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # behind `| head` it ends without a word
    main()
