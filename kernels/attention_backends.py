"""Attention by other people's kernels, with the arguments of `kernels.attention`; each package is imported on first use.

Shapes: T tokens, N heads, H head size, S sequences, L the longest sequence.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from kernels.reference import no_tokens


def sdpa(
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
        return no_tokens(q_TNH, k_TNH, v_TNH, slopes)
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


def flash_attn(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
    dropout_p: float,
) -> Tensor:
    """FlashAttention 2, which computes ALiBi in its kernel (arXiv 2307.08691)."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, **_flash_options(slopes, window, dropout_p)
    )


def flash_attn_packed(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None, dropout_p: float
) -> Tensor:
    from flash_attn import flash_attn_varlen_qkvpacked_func

    return flash_attn_varlen_qkvpacked_func(qkv, cu_seqlens, max_seqlen, **_flash_options(slopes, window, dropout_p))


def _flash_options(slopes: Tensor | None, window: int | None, dropout_p: float) -> dict:
    reach = -1 if window is None else window
    return {
        "dropout_p": dropout_p,
        "window_size": (reach, reach),
        "alibi_slopes": slopes,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def xformers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
    dropout_p: float,
) -> Tensor:
    """xformers' block-diagonal mask. It wants the lengths on the host, so the host waits for the device in every call.

    Raises:
        ValueError: slopes or window are given.
    """
    if slopes is not None or window is not None:
        given = "slopes" if slopes is not None else f"window={window}"
        raise ValueError(
            f"backend=xformers cannot take {given}: beside its block-diagonal mask it adds no bias and no window"
        )
    from xformers.ops import fmha

    lengths = [length for length in cu_seqlens.diff().tolist() if length]
    if not lengths:
        return no_tokens(q, k, v)
    mask = fmha.BlockDiagonalMask.from_seqlens(lengths)
    out = fmha.memory_efficient_attention(q[None], k[None], v[None], attn_bias=mask, p=dropout_p)
    return out[0]


def flex(
    q_TNH: Tensor,
    k_TNH: Tensor,
    v_TNH: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
    dropout_p: float,
) -> Tensor:
    """torch's flex_attention with ALiBi as a score modification and a mask by sequence, compiled on a GPU.

    Raises:
        ValueError: dropout_p is not 0.
    """
    if dropout_p:
        raise ValueError(f"backend=flex cannot take dropout_p={dropout_p}: flex_attention has no dropout")
    if q_TNH.shape[0] == 0:
        return no_tokens(q_TNH, k_TNH, v_TNH, slopes)

    def alibi(score: Tensor, _: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score - slopes[head] * (i - j).abs()

    mask = _block_mask(cu_seqlens, q_TNH.shape[0], window)
    q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TNH, v_TNH))  # (1, N, T, H)
    function = _flex_function(q.device.type)
    return function(q, k, v, score_mod=None if slopes is None else alibi, block_mask=mask)[0].transpose(0, 1)


@cache
def _flex_function(device: str):
    """Compiled where it can be differentiated so; on a CPU plain torch, with all scores in memory: for tests."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == "cpu" else torch.compile(flex_attention, dynamic=True)


# A batch's mask serves every layer: it is kept for as long as the batch's cu_seqlens.
_block_masks = WeakIdKeyDictionary()


def _block_mask(cu_seqlens: Tensor, tokens: int, window: int | None):
    from torch.nn.attention.flex_attention import create_block_mask

    key = (cu_seqlens._version, tokens, window)
    kept = _block_masks.get(cu_seqlens)
    if kept is not None and kept[0] == key:
        return kept[1]
    lengths = cu_seqlens.diff()
    sequence = torch.arange(lengths.numel(), device=lengths.device).repeat_interleave(lengths, output_size=tokens)

    def same_sequence(_: Tensor, __: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = sequence[i] == sequence[j]
        return same if window is None else same & ((i - j).abs() <= window)

    mask = create_block_mask(same_sequence, None, None, tokens, tokens, device=cu_seqlens.device)
    _block_masks[cu_seqlens] = (key, mask)
    return mask
