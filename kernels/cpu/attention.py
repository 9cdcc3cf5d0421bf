"""Attention on a CPU, a sequence and head at a time in a core's cache (`attention.cpp`).

Softmax and sums are in float32. Products take their operands in bfloat16 where q has that type and the processor has AMX's tiles,
otherwise in float32.

Shapes: T tokens, N heads, H head size, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cpu.build import TYPES, run


def forward(qkv_T3NH: Tensor, cu_seqlens: Tensor, slopes: Tensor | None, window: int | None) -> tuple[Tensor, Tensor]:
    """(T, N, H) in the dtype of qkv, and the natural logarithms (N, T) of the softmax's denominators."""
    qkv = _heads_in_a_row(qkv_T3NH)
    tokens, _, heads, size = qkv.shape
    out = torch.empty((tokens, heads, size), dtype=qkv.dtype)
    lse = torch.empty((heads, tokens))
    run(
        f"attention_forward_{TYPES[qkv.dtype]}", qkv, torch.tensor(qkv.stride()), _bounds(cu_seqlens, tokens), _floats(slopes),
        out, lse, len(cu_seqlens) - 1, tokens, heads, size, _reach(window, tokens), size**-0.5,
    )  # fmt: skip
    return out, lse


def backward(
    dout_TNH: Tensor,
    qkv_T3NH: Tensor,
    out_TNH: Tensor,
    lse_NT: Tensor,
    cu_seqlens: Tensor,
    slopes: Tensor | None,
    window: int | None,
) -> Tensor:
    """The gradient of qkv, (T, 3, N, H)."""
    qkv, dout = _heads_in_a_row(qkv_T3NH), _heads_in_a_row(dout_TNH)
    tokens, _, heads, size = qkv.shape
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype)
    run(
        f"attention_backward_{TYPES[qkv.dtype]}", dout, torch.tensor(dout.stride()), qkv, torch.tensor(qkv.stride()),
        _bounds(cu_seqlens, tokens), _floats(slopes), out_TNH, lse_NT, dqkv, len(cu_seqlens) - 1, tokens, heads, size,
        _reach(window, tokens), size**-0.5,
    )  # fmt: skip
    return dqkv


def _heads_in_a_row(x: Tensor) -> Tensor:
    """With each head's elements side by side in memory."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _bounds(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """Inside the stream, whatever a compiled graph, which looks at no values, lets through."""
    return cu_seqlens.clamp(0, tokens)


def _reach(window: int | None, tokens: int) -> int:
    """-1 for no window; one that reaches from end to end of a sequence need be no wider than the stream."""
    return -1 if window is None else min(window, tokens)


def _floats(slopes: Tensor | None) -> Tensor | None:
    return None if slopes is None else slopes.detach().float().contiguous()
