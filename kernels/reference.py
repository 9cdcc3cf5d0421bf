"""The mathematics in plain torch, readable beside the papers. Every other backend is tested against these functions.

Shapes: T tokens of a batch in a row, N heads, H head size, D hidden size, F feed-forward size, V vocabulary, M masked
tokens, S sequences. Statistics and accumulation are in float32 (float64 stays float64), with one cast at the end.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}
IGNORED_LABEL = -100


def alibi_slopes(heads: int) -> Tensor:
    """Slopes of ALiBi for `heads` heads, float32 (heads,).

    2^(-8/n), 2^(-16/n), ... for n a power of two; otherwise those of the power of two below, then every second one of the
    power of two above (Press et al., arXiv 2108.12409, the authors' own rule for other head counts).
    """

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** math.floor(math.log2(heads))
    slopes = geometric(below) + geometric(2 * below)[0::2][: heads - below]
    return torch.tensor(slopes, dtype=torch.float32)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def attention(
    q_TNH: Tensor,
    k_TNH: Tensor,
    v_TNH: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None = None,
    window: int | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """softmax(q k' / sqrt(H) - slope |i - j|) v, each sequence alone (arXiv 1706.03762 eq. 1, 2108.12409)."""
    outputs = []
    bounds = cu_seqlens.tolist()
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        q, k, v = (at_least_float32(x[start:end]).transpose(0, 1) for x in (q_TNH, k_TNH, v_TNH))  # (N, length, H)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])  # (N, length, length)
        position = torch.arange(end - start, device=q.device)
        distance = (position[:, None] - position[None, :]).abs()
        if slopes is not None:
            scores = scores - slopes.to(scores)[:, None, None] * distance
        if window is not None:
            scores = scores.masked_fill(distance > window, float("-inf"))
        weights = F.dropout(scores.softmax(dim=-1), dropout_p)
        outputs.append((weights @ v).transpose(0, 1))
    return torch.cat(outputs).to(q_TNH.dtype) if outputs else no_tokens(q_TNH, k_TNH, v_TNH, slopes)


def no_tokens(q_TNH: Tensor, k_TNH: Tensor, v_TNH: Tensor, slopes: Tensor | None = None) -> Tensor:
    """Attention of a stream without a token, (0, N, H): empty, and yet with a gradient for everything it was given."""
    out = q_TNH + k_TNH + v_TNH
    return out if slopes is None else out + slopes.to(out)[:, None]


def glu(x: Tensor, activation: str = "gelu", dropout_p: float = 0.0) -> Tensor:
    """dropout(activation(a) * b), where x = [a, b] is the output (T, 2 F) of one fused projection (arXiv 2002.05202)."""
    a, b = at_least_float32(x).chunk(2, dim=-1)
    return F.dropout((ACTIVATIONS[activation](a) * b).to(x.dtype), dropout_p)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None, dropout_p: float = 0.0
) -> Tensor:
    """LayerNorm(dropout(x) + residual): statistics in float32, output in the dtype of x (T, D)."""
    total = at_least_float32(F.dropout(x, dropout_p))
    if residual is not None:
        total = total + at_least_float32(residual)
    return _normed(total, weight, bias, eps).to(x.dtype)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """total = dropout(x) + residual in the dtype of residual, and LayerNorm(total) in that of x: pre-norm (arXiv 2002.04745)."""
    total = (at_least_float32(F.dropout(x, dropout_p)) + at_least_float32(residual)).to(residual.dtype)
    return total, _normed(at_least_float32(total), weight, bias, eps).to(x.dtype)


def _normed(total: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    bias = None if bias is None else bias.to(total.dtype)
    return F.layer_norm(total, total.shape[-1:], weight.to(total.dtype), bias, eps)


def rotary_table(cu_seqlens: Tensor, tokens: int, size: int, theta: float) -> Tensor:
    """Cosines and sines, (2, T, H / 2), of position theta^(-2 c / H), c < H / 2 (arXiv 2104.09864, eq. 15), in float32."""
    token = torch.arange(tokens, dtype=torch.int32, device=cu_seqlens.device)
    sequence = torch.bucketize(token, cu_seqlens[1:], right=True)  # how many have ended: a token of none is the end's
    position = (token - cu_seqlens[sequence.clamp(max=cu_seqlens.numel() - 1)]).float()
    exponents = torch.arange(0, size, 2, dtype=torch.float32, device=cu_seqlens.device) / size
    angles = position[:, None] * (1.0 / theta**exponents)
    return torch.stack([angles.cos(), angles.sin()])


def rotary(qkv: Tensor, table: Tensor) -> Tensor:
    """q and k of (T, 3, N, H) as x cos + rotate(x) sin, where rotate([a, b]) = [-b, a] of a head's halves; v as it is."""
    a, b = at_least_float32(qkv[:, :2]).chunk(2, dim=-1)
    cos, sin = table.to(a.dtype)[:, :, None, None]  # (T, 1, 1, H / 2)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    return torch.cat([turned.to(qkv.dtype), qkv[:, 2:]], dim=1)


def masked_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, z_loss: float = 0.0, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of softmax(hidden weight' + bias) against labels, and the share predicted right.

    hidden (M, D), weight (V, D), bias (V,), labels (M,) int64, where -100 is left out. To the loss is added z_loss times the
    mean of log(sum exp logits)^2 (arXiv 2204.02311). Both results are float32 scalars, and 0 where no label is left.
    """
    logits = at_least_float32(F.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype)))
    present = labels != IGNORED_LABEL
    counted = present.sum().clamp(min=1)
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum", label_smoothing=label_smoothing)
    if z_loss:
        loss = loss + z_loss * (logits.logsumexp(dim=-1).square() * present).sum()
    accuracy = (logits.argmax(dim=-1) == labels).sum() / counted
    return loss / counted, accuracy.float()


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """x[rows], (M, D) of (T, D)."""
    return x[rows]


def unpad(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """The rows of x (S, length, ...) where mask (S, length) is not 0.

    Returns the stream (T, ...), the flat indices (T,) int64 of its rows in x, cu_seqlens (S + 1,) int32 and the longest length.
    """
    lengths = (mask != 0).sum(dim=1, dtype=torch.int32)
    indices = mask.flatten().nonzero().flatten()
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return x.flatten(0, 1)[indices], indices, cu_seqlens, int(lengths.max()) if len(lengths) else 0


def pad(tokens: Tensor, indices: Tensor, sequences: int, length: int) -> Tensor:
    """The inverse of `unpad`: (T, ...) back to (sequences, length, ...), zero where there was padding."""
    flat = tokens.new_zeros((sequences * length, *tokens.shape[1:]))
    return flat.index_copy(0, indices, tokens).unflatten(0, (sequences, length))
