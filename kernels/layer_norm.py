"""LayerNorm with the residual addition and dropout before it: the norm alone, or with the sum that it is of.

A post-norm block goes on with the norm (`layer_norm`), which its next part reads and the next sum takes (`layer_norm_twice`); a
pre-norm block goes on with the sum, whose norm its next part reads (`add_layer_norm`).
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from kernels import reference
from kernels.checks import check_backend
from kernels.dropout import check_probability, dropout_seed

MAX_COLUMNS = 8192  # a program holds whole rows in registers, a CPU's loop on its stack


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-12,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    backend: str = "reference",
) -> Tensor:
    """LayerNorm(dropout(x) + residual).

    Args:
        x: (T, D); the output has its dtype, the statistics are float32.
        weight, bias: (D,); bias may be None.
        eps: added to the variance.
        residual: (T, D), or None.
        dropout_p: probability with which an element of x is dropped; 0 when not training.
        backend: a name from `kernels.backends.resolve`. Backends draw different elements to drop.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here.
    """
    _check(x, weight, bias, residual, dropout_p)
    if backend == "reference":
        return reference.layer_norm(x, weight, bias, eps, residual, dropout_p)
    out, _ = torch.ops.bert_kernels.layer_norm(*_arguments(x, weight, bias, eps, residual, dropout_p, backend))
    return out.view(x.shape)


def layer_norm_twice(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-12,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    backend: str = "reference",
) -> tuple[Tensor, Tensor]:
    """`layer_norm`'s output for two readers, whose gradients Triton's backward reads both: autograd would add them in a kernel of
    its own, which reads both, writes their sum, and leaves it to be read.

    Args and errors: as for `layer_norm`.

    Returns:
        the same (T, D) twice, in the same memory; neither may be written to.
    """
    if backend != "triton":
        out = layer_norm(x, weight, bias, eps, residual, dropout_p, backend)
        return out, out
    _check(x, weight, bias, residual, dropout_p)
    out, again = _Twice.apply(*_arguments(x, weight, bias, eps, residual, dropout_p, backend))
    return out.view(x.shape), again.view(x.shape)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    backend: str = "reference",
) -> tuple[Tensor, Tensor]:
    """total = dropout(x) + residual, and LayerNorm(total).

    Args:
        x: (T, D).
        residual: (T, D), the stream that x is added to.
        weight, bias, eps, dropout_p, backend: as for `layer_norm`.

    Returns:
        total (T, D) in the dtype of residual, and its LayerNorm (T, D) in the dtype of x. The norm is that of the total as it
        is rounded, so that x and residual need not be kept for the backward.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here.
    """
    _check(x, weight, bias, residual, dropout_p)
    if backend == "reference":
        return reference.add_layer_norm(x, residual, weight, bias, eps, dropout_p)
    _check_backend(backend, x, weight, bias, residual)
    seed = dropout_seed(x, dropout_p)
    total, out, _ = torch.ops.bert_kernels.add_layer_norm(
        _rows(x), _rows(residual), weight.contiguous(), _contiguous(bias), eps, dropout_p, seed, backend
    )
    return total.view(x.shape), out.view(x.shape)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, dropout_p: float) -> None:
    if weight.shape != x.shape[-1:] or (bias is not None and bias.shape != x.shape[-1:]):
        given = f"weight {tuple(weight.shape)}" + ("" if bias is None else f" and bias {tuple(bias.shape)}")
        raise ValueError(f"{given} must {'' if bias is None else 'both '}be ({x.shape[-1]},)")
    if residual is not None and (residual.shape != x.shape or residual.device != x.device):
        raise ValueError(
            f"residual is {tuple(residual.shape)} on {residual.device}; it must be as x, {tuple(x.shape)} on {x.device}"
        )
    check_probability(dropout_p)


def _check_backend(backend: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    check_backend(backend, "x", x)
    columns = x.shape[-1]
    if residual is not None:
        check_backend(backend, "residual", residual)
    if columns > MAX_COLUMNS:
        raise ValueError(
            f"x has {columns} columns; backend={backend} takes at most {MAX_COLUMNS}: use backend=reference"
        )
    for name, parameter in (("weight", weight), ("bias", bias)):
        if parameter is not None and parameter.device != x.device:
            raise ValueError(f"x is on {x.device}, {name} on {parameter.device}; all must be on one")


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None, dropout_p: float, backend: str
) -> tuple:
    """What the op `layer_norm` is called with."""
    _check_backend(backend, x, weight, bias, residual)
    seed = dropout_seed(x, dropout_p)
    others = None if residual is None else _rows(residual)
    return _rows(x), weight.contiguous(), _contiguous(bias), eps, others, dropout_p, seed, backend


def _contiguous(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.contiguous()


def _rows(x: Tensor) -> Tensor:
    """(T, D) with neighbours in memory along D."""
    x = x.flatten(0, -2) if x.dim() != 2 else x
    return x if x.stride(-1) == 1 else x.contiguous()


def _launcher(backend: str) -> ModuleType:
    if backend == "cpu":
        from kernels.cpu import layer_norm as launcher
    else:
        from kernels.triton import layer_norm as launcher
    return launcher


@torch.library.custom_op("bert_kernels::layer_norm", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    dropout_p: float,
    seed: Tensor | None,
    backend: str = "triton",
) -> tuple[Tensor, Tensor]:
    return _launcher(backend).forward(x, weight, bias, eps, residual, dropout_p, seed)


@_forward.register_fake
def _(x, weight, bias, eps, residual, dropout_p, seed, backend="triton"):
    return x.new_empty(x.shape), x.new_empty((2, x.shape[0]), dtype=torch.float32)


@torch.library.custom_op("bert_kernels::layer_norm_backward", mutates_args=())
def _backward(
    dout: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    statistics: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    backend: str = "triton",
    dagain: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`dagain` is to be added to `dout`: Triton's alone takes it."""
    own = _has_own_gradient(x, residual, seed)
    more = {} if dagain is None else {"dagain": dagain.contiguous()}
    given = (dout.contiguous(), x, weight, bias, residual, statistics, dropout_p, seed, own)
    return _launcher(backend).backward(*given, **more)


@_backward.register_fake
def _(dout, x, weight, bias, residual, statistics, dropout_p, seed, backend="triton", dagain=None):
    dresidual = residual.new_empty(x.shape) if _has_own_gradient(x, residual, seed) else x.new_empty((0, x.shape[1]))
    return x.new_empty(x.shape), dresidual, torch.empty_like(weight), _like_bias(weight, bias)


def _has_own_gradient(x: Tensor, residual: Tensor | None, seed: Tensor | None) -> bool:
    """Whether the gradient of residual is another than that of x: it is the same tensor where nothing is dropped."""
    return residual is not None and (seed is not None or residual.dtype != x.dtype)


def _like_bias(weight: Tensor, bias: Tensor | None) -> Tensor:
    """For the gradient of bias, which is empty where there is none: an op cannot return what is not there."""
    return weight.new_empty(0) if bias is None else torch.empty_like(bias)


def _save(ctx, inputs, output) -> None:
    x, weight, bias, _, residual, ctx.dropout_p, seed, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, bias, residual, output[1], seed)


def _differentiate(ctx, dout: Tensor, *_) -> tuple:
    return _gradients(ctx, dout, None)


def _gradients(ctx, dout: Tensor, dagain: Tensor | None) -> tuple:
    x, weight, bias, residual, statistics, seed = ctx.saved_tensors
    dx, dresidual, dweight, dbias = torch.ops.bert_kernels.layer_norm_backward(
        dout, x, weight, bias, residual, statistics, ctx.dropout_p, seed, ctx.backend, dagain
    )
    if residual is None:
        dresidual = None
    elif not _has_own_gradient(x, residual, seed):
        dresidual = dx
    return dx, dweight, None if bias is None else dbias, None, dresidual, None, None, None


class _Twice(torch.autograd.Function):
    """Around the ops, because a custom op may not return one tensor twice."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, residual, dropout_p, seed, backend):
        out, statistics = torch.ops.bert_kernels.layer_norm(x, weight, bias, eps, residual, dropout_p, seed, backend)
        ctx.dropout_p, ctx.backend = dropout_p, backend
        ctx.save_for_backward(x, weight, bias, residual, statistics, seed)
        return out, out.detach()

    @staticmethod
    def backward(ctx, dout, dagain):
        return _gradients(ctx, dout, dagain)


@torch.library.custom_op("bert_kernels::add_layer_norm", mutates_args=())
def _add_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    dropout_p: float,
    seed: Tensor | None,
    backend: str = "triton",
) -> tuple[Tensor, Tensor, Tensor]:
    total = torch.empty(x.shape, dtype=residual.dtype, device=x.device)
    return total, *_launcher(backend).forward(x, weight, bias, eps, residual, dropout_p, seed, total)


@_add_forward.register_fake
def _(x, residual, weight, bias, eps, dropout_p, seed, backend="triton"):
    statistics = x.new_empty((2, x.shape[0]), dtype=torch.float32)
    return residual.new_empty(x.shape), x.new_empty(x.shape), statistics


@torch.library.custom_op("bert_kernels::add_layer_norm_backward", mutates_args=())
def _add_backward(
    dtotal: Tensor,
    dout: Tensor,
    total: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    statistics: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    backend: str = "triton",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    own = _has_own_gradient(dout, total, seed)
    return _launcher(backend).backward(
        dout.contiguous(), total, weight, bias, None, statistics, dropout_p, seed, own, dtotal.contiguous()
    )


@_add_backward.register_fake
def _(dtotal, dout, total, weight, bias, statistics, dropout_p, seed, backend="triton"):
    own = _has_own_gradient(dout, total, seed)
    dresidual = total.new_empty(total.shape if own else (0, total.shape[1]))
    return dout.new_empty(total.shape), dresidual, torch.empty_like(weight), _like_bias(weight, bias)


def _add_save(ctx, inputs, output) -> None:
    _, _, weight, bias, _, ctx.dropout_p, seed, ctx.backend = inputs
    total, _, statistics = output
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(total, weight, bias, statistics, seed)


def _add_differentiate(ctx, dtotal: Tensor, dout: Tensor, *_) -> tuple:
    total, weight, bias, statistics, seed = ctx.saved_tensors
    dx, dresidual, dweight, dbias = torch.ops.bert_kernels.add_layer_norm_backward(
        dtotal, dout, total, weight, bias, statistics, ctx.dropout_p, seed, ctx.backend
    )
    if not _has_own_gradient(dout, total, seed):
        dresidual = dx
    return dx, dresidual, dweight, None if bias is None else dbias, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
_add_forward.register_autograd(_add_differentiate, setup_context=_add_save)
