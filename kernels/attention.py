"""Bidirectional attention over a stream of sequences, with ALiBi, by the backend that the caller resolved.

Shapes: T tokens, N heads, H head size, S sequences, L the longest sequence.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import reference


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None = None,
    window: int | None = None,
    dropout_p: float = 0.0,
    backend: str = "reference",
) -> Tensor:
    """Attention of each sequence of the stream to itself.

    Args:
        q, k, v: (T, N, H), any strides; float32, bfloat16 or float16.
        cu_seqlens: (S + 1,) int32, where sequence s is tokens cu_seqlens[s] to cu_seqlens[s + 1].
        max_seqlen: at least the length of the longest sequence, a number on the host.
        slopes: (N,) float32, ALiBi's; None for no bias.
        window: tokens further apart than this do not see each other; None for no limit.
        dropout_p: probability with which an attention weight is dropped.
        backend: a name from `kernels.backends.resolve`.

    Returns:
        (T, N, H) in the dtype of q.

    Raises:
        ValueError: an argument does not fit, or the backend has no such name.
    """
    _check(q, k, v, cu_seqlens, max_seqlen, slopes, window)
    if backend not in _BACKENDS:
        raise ValueError(f"backend={backend!r}: known are {', '.join(_BACKENDS)}")
    return _BACKENDS[backend](q, k, v, cu_seqlens, max_seqlen, slopes, window, dropout_p)


def _check(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None
) -> None:
    if q.dim() != 3 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; all must be (tokens, heads, size)"
        )
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype != torch.int32 or cu_seqlens.numel() < 1:
        raise ValueError(
            f"cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}; it must be int32 (sequences + 1,)"
        )
    if slopes is not None and slopes.shape != (q.shape[1],):
        raise ValueError(f"slopes has shape {tuple(slopes.shape)}; it must be (heads,) = ({q.shape[1]},)")
    if window is not None and window < 0:
        raise ValueError(f"window={window}; it must be at least 0")
    if max_seqlen < 0 or max_seqlen * (cu_seqlens.numel() - 1) < q.shape[0]:
        raise ValueError(
            f"max_seqlen={max_seqlen}: {cu_seqlens.numel() - 1} sequences of it hold fewer than the {q.shape[0]} tokens given"
        )


def _sdpa(
    q_TNH: Tensor,
    k_TNH: Tensor,
    v_TNH: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
    dropout_p: float,
) -> Tensor:
    """torch's scaled_dot_product_attention on sequences padded for this one operation."""
    tokens, heads, size = q_TNH.shape
    sequences = cu_seqlens.numel() - 1
    if tokens == 0:
        return torch.empty_like(q_TNH)
    ragged = tokens != sequences * max_seqlen
    position = torch.arange(max_seqlen, device=q_TNH.device)
    bias = _position_bias(position, slopes, window, q_TNH.dtype)  # (N or 1, L, L) or None
    if ragged:
        lengths = cu_seqlens.diff()
        sequence = torch.arange(sequences, device=q_TNH.device).repeat_interleave(lengths, output_size=tokens)
        offset = torch.arange(tokens, device=q_TNH.device) - cu_seqlens[sequence]
        rows = sequence * max_seqlen + offset  # where each token goes in (S L)
        # A padded key is hidden from every query but a padded one: a row without any key would be NaN.
        real = position[None, :] < lengths[:, None]  # (S, L)
        hidden_key = (real[:, :, None] & ~real[:, None, :])[:, None]  # (S, 1, L, L)
        start = torch.zeros((), dtype=q_TNH.dtype, device=q_TNH.device) if bias is None else bias
        bias = torch.where(hidden_key, float("-inf"), start)  # (S, N or 1, L, L)

    def padded(x_TNH: Tensor) -> Tensor:
        if ragged:
            x_TNH = x_TNH.new_zeros((sequences * max_seqlen, heads, size)).index_copy(0, rows, x_TNH)
        return x_TNH.view(sequences, max_seqlen, heads, size).transpose(1, 2)  # (S, N, L, H)

    out = F.scaled_dot_product_attention(
        padded(q_TNH), padded(k_TNH), padded(v_TNH), attn_mask=bias, dropout_p=dropout_p
    )
    out = out.transpose(1, 2).reshape(sequences * max_seqlen, heads, size)
    return out[rows] if ragged else out


def _position_bias(position: Tensor, slopes: Tensor | None, window: int | None, dtype: torch.dtype) -> Tensor | None:
    """-slope |i - j|, and -inf beyond the window: (N or 1, L, L), or None where there is neither."""
    if slopes is None and window is None:
        return None
    distance = (position[:, None] - position[None, :]).abs()
    scale = torch.zeros(1, device=position.device) if slopes is None else slopes
    bias = -scale[:, None, None] * distance
    if window is not None:
        bias = bias.masked_fill(distance > window, float("-inf"))
    return bias.to(dtype)


_BACKENDS = {"sdpa": _sdpa, "reference": reference.attention}
