"""Which of the attention kernels serves a call: the one that keeps whole sequences on chip, wherever they fit."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.triton import attention_short, attention_tiled


def forward(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None
) -> tuple[Tensor, Tensor]:
    """Output (T, N, H) and the base-2 logarithm (N, T) of each softmax's denominator."""
    if q.numel() == 0:
        return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    window = _within(window, max_seqlen)
    short = attention_short.fits(max_seqlen, q.shape[-1], q.dtype, window is not None)
    kernels = attention_short if short else attention_tiled
    return kernels.forward(q, k, v, cu_seqlens, max_seqlen, slopes, window)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dq: Tensor, dk: Tensor, dv: Tensor,
    cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None,
) -> None:  # fmt: skip
    """Fills dq, dk, dv."""
    if q.numel() == 0:
        return
    if dout.stride(-1) != 1:  # the gradient of a sum, for one, has stride 0
        dout = dout.contiguous()
    window = _within(window, max_seqlen)
    if attention_short.fits(max_seqlen, q.shape[-1], q.dtype, window is not None):
        attention_short.backward(dout, q, k, v, lse, dq, dk, dv, cu_seqlens, max_seqlen, slopes, window)
    else:
        attention_tiled.backward(dout, q, k, v, out, lse, dq, dk, dv, cu_seqlens, max_seqlen, slopes, window)


def _within(window: int | None, max_seqlen: int) -> int | None:
    """A window that reaches from end to end is none."""
    return None if window is None or window >= max_seqlen - 1 else window
