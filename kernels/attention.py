"""Bidirectional attention over a stream of sequences, with ALiBi, by the backend that the caller resolved.

Two forms: q, k and v apart, and packed as one projection's output, whose gradient is written as one tensor too.

Shapes: T tokens, N heads, H head size, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import attention_backends, reference
from kernels.checks import check_backend, check_bounds, check_bounds_type, check_triton, head_refusal
from kernels.dropout import check_probability


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
    """Attention of each sequence of the stream to itself: softmax(q k' / sqrt(H) - slope |i - j|) v.

    Args:
        q, k, v: (T, N, H), float32, bfloat16 or float16; any strides, but triton wants each head's H elements side by side.
        cu_seqlens: (S + 1,) int32, where sequence s is tokens cu_seqlens[s] to cu_seqlens[s + 1]. Its values are checked on the
            CPU, and on a GPU inside `kernels.checks.value_checks`.
        max_seqlen: at least the length of the longest sequence, a number on the host.
        slopes: (N,) float32, ALiBi's; None for no bias.
        window: tokens further apart than this do not see each other; None for no limit.
        dropout_p: probability with which an attention weight is dropped.
        backend: a name from `kernels.backends.resolve`.

    Returns:
        (T, N, H) in the dtype of q.

    Raises:
        ValueError: an argument does not fit, or the backend cannot do what is asked.
    """
    if q.dim() != 3 or k.shape != q.shape or v.shape != q.shape:
        raise ValueError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; all must be (tokens, heads, size)"
        )
    if not (q.dtype == k.dtype == v.dtype and q.device == k.device == v.device):
        raise ValueError(
            f"q, k, v are {q.dtype} on {q.device}, {k.dtype} on {k.device}, {v.dtype} on {v.device}; all must be alike"
        )
    _check(q, cu_seqlens, max_seqlen, slopes, window, dropout_p, backend)
    return _BACKENDS[backend](q, k, v, cu_seqlens, max_seqlen, slopes, window, dropout_p)


def attention_packed(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None = None,
    window: int | None = None,
    dropout_p: float = 0.0,
    backend: str = "reference",
) -> Tensor:
    """`attention` of qkv[:, 0], qkv[:, 1], qkv[:, 2], where qkv is (T, 3, N, H), without a copy of them or of their gradients."""
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv has shape {tuple(qkv.shape)}; it must be (tokens, 3, heads, size)")
    _check(qkv[:, 0], cu_seqlens, max_seqlen, slopes, window, dropout_p, backend)
    if backend in _PACKED:
        return _PACKED[backend](qkv, cu_seqlens, max_seqlen, slopes, window, dropout_p)
    return _BACKENDS[backend](*qkv.unbind(1), cu_seqlens, max_seqlen, slopes, window, dropout_p)


def _check(
    q: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
    dropout_p: float,
    backend: str,
) -> None:
    tokens, heads, _ = q.shape
    check_bounds_type(cu_seqlens)
    for name, x in (("cu_seqlens", cu_seqlens), ("slopes", slopes)):
        if x is not None and x.device != q.device:
            raise ValueError(f"{name} is on {x.device}; it must be on {q.device}, as the tokens are")
    if slopes is not None and slopes.shape != (heads,):
        raise ValueError(f"slopes has shape {tuple(slopes.shape)}; it must be (heads,) = ({heads},)")
    if window is not None and window < 0:
        raise ValueError(f"window={window}; it must be at least 0")
    check_probability(dropout_p)
    sequences = cu_seqlens.numel() - 1
    if max_seqlen < 0 or max_seqlen * sequences < tokens:
        raise ValueError(
            f"max_seqlen={max_seqlen}: {sequences} sequences of it hold fewer than the {tokens} tokens given"
        )
    if backend not in _BACKENDS:
        raise ValueError(f"backend={backend!r}: known are {', '.join(_BACKENDS)}")
    check_bounds(cu_seqlens, tokens, max_seqlen)


def _check_triton(names: str, tensors: list[Tensor], slopes: Tensor | None, dropout_p: float) -> None:
    for name, x in zip(names.split(), tensors, strict=True):
        check_triton(name, x)
        if x.stride(-1) != 1 and x.numel():
            raise ValueError(
                f"{name} has stride {x.stride(-1)} along its heads; backend=triton wants 1: {name}.contiguous()"
            )
    reason = head_refusal(tensors[0].shape[-1])
    if reason is not None:
        raise ValueError(f"backend=triton cannot take {reason}; use backend=sdpa")
    if dropout_p:
        raise ValueError(f"backend=triton cannot take dropout_p={dropout_p}: it has no dropout; use backend=sdpa")
    if slopes is not None and not slopes.is_floating_point():
        raise ValueError(f"slopes is {slopes.dtype}; it must be a floating-point type")
    if slopes is not None and slopes.requires_grad:
        raise ValueError(
            "slopes requires a gradient; backend=triton makes none for it: give slopes.detach(), or use backend=sdpa"
        )


def _triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
    dropout_p: float,
) -> Tensor:
    _check_triton("q k v", [q, k, v], slopes, dropout_p)
    return torch.ops.bert_kernels.attention(q, k, v, cu_seqlens, max_seqlen, slopes, window)[0]


def _triton_packed(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None, dropout_p: float
) -> Tensor:
    _check_triton("qkv", [qkv], slopes, dropout_p)
    return torch.ops.bert_kernels.attention_packed(qkv, cu_seqlens, max_seqlen, slopes, window)[0]


def _cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
    dropout_p: float,
) -> Tensor:
    return _cpu_packed(torch.stack([q, k, v], 1), cu_seqlens, max_seqlen, slopes, window, dropout_p)


def _cpu_packed(
    qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes: Tensor | None, window: int | None, dropout_p: float
) -> Tensor:
    check_backend("cpu", "qkv", qkv)
    if dropout_p:
        raise ValueError(f"backend=cpu cannot take dropout_p={dropout_p}: it has no dropout; use backend=sdpa")
    if slopes is not None and slopes.requires_grad:
        raise ValueError(
            "slopes requires a gradient; backend=cpu makes none for it: give slopes.detach(), or use backend=sdpa"
        )
    return torch.ops.bert_kernels.attention_packed(qkv, cu_seqlens, max_seqlen, slopes, window, "cpu")[0]


@torch.library.custom_op("bert_kernels::attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """The output (T, N, H), and what the backward needs besides: the base-2 logarithms (N, T) of the softmax's denominators."""
    from kernels.triton import attention as launcher

    return launcher.forward(q, k, v, cu_seqlens, max_seqlen, slopes, window)


@_forward.register_fake
def _(q, k, v, cu_seqlens, max_seqlen, slopes, window):
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("bert_kernels::attention_backward", mutates_args=())
def _backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from kernels.triton import attention as launcher

    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    launcher.backward(dout, q, k, v, out, lse, dq, dk, dv, cu_seqlens, max_seqlen, slopes, window)
    return dq, dk, dv


@_backward.register_fake
def _(dout, q, k, v, out, lse, cu_seqlens, max_seqlen, slopes, window):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, ctx.max_seqlen, slopes, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens, slopes)


def _differentiate(ctx, dout: Tensor, _) -> tuple:
    *tensors, cu_seqlens, slopes = ctx.saved_tensors
    gradients = torch.ops.bert_kernels.attention_backward(
        dout, *tensors, cu_seqlens, ctx.max_seqlen, slopes, ctx.window
    )
    return *gradients, None, None, None, None


@torch.library.custom_op("bert_kernels::attention_packed", mutates_args=())
def _packed_forward(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
    backend: str = "triton",
) -> tuple[Tensor, Tensor]:
    """As `attention`, of one tensor (T, 3, N, H); the cpu's logarithms are natural ones."""
    if backend == "cpu":
        from kernels.cpu import attention as on_cpu

        return on_cpu.forward(qkv, cu_seqlens, slopes, window)
    from kernels.triton import attention as launcher

    return launcher.forward(*qkv.unbind(1), cu_seqlens, max_seqlen, slopes, window)


@_packed_forward.register_fake
def _(qkv, cu_seqlens, max_seqlen, slopes, window, backend="triton"):
    tokens, _, heads, head = qkv.shape
    return qkv.new_empty((tokens, heads, head)), qkv.new_empty((heads, tokens), dtype=torch.float32)


@torch.library.custom_op("bert_kernels::attention_packed_backward", mutates_args=())
def _packed_backward(
    dout: Tensor,
    qkv: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    slopes: Tensor | None,
    window: int | None,
    backend: str = "triton",
) -> Tensor:
    if backend == "cpu":
        from kernels.cpu import attention as on_cpu

        return on_cpu.backward(dout, qkv, out, lse, cu_seqlens, slopes, window)
    from kernels.triton import attention as launcher

    dqkv = qkv.new_empty(qkv.shape)
    launcher.backward(dout, *qkv.unbind(1), out, lse, *dqkv.unbind(1), cu_seqlens, max_seqlen, slopes, window)
    return dqkv


@_packed_backward.register_fake
def _(dout, qkv, out, lse, cu_seqlens, max_seqlen, slopes, window, backend="triton"):
    return qkv.new_empty(qkv.shape)


def _packed_save(ctx, inputs, output) -> None:
    qkv, cu_seqlens, ctx.max_seqlen, slopes, ctx.window, ctx.backend = inputs
    ctx.save_for_backward(qkv, *output, cu_seqlens, slopes)


def _packed_differentiate(ctx, dout: Tensor, _) -> tuple:
    *tensors, cu_seqlens, slopes = ctx.saved_tensors
    dqkv = torch.ops.bert_kernels.attention_packed_backward(
        dout, *tensors, cu_seqlens, ctx.max_seqlen, slopes, ctx.window, ctx.backend
    )
    return dqkv, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
_packed_forward.register_autograd(_packed_differentiate, setup_context=_packed_save)

_BACKENDS = {
    "triton": _triton,
    "flash_attn": attention_backends.flash_attn,
    "xformers": attention_backends.xformers,
    "flex": attention_backends.flex,
    "cpu": _cpu,
    "sdpa": attention_backends.sdpa,
    "reference": reference.attention,
}
# Backends that take the packed form as it is; the others are given its three views.
_PACKED = {"triton": _triton_packed, "cpu": _cpu_packed, "flash_attn": attention_backends.flash_attn_packed}
