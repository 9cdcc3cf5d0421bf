"""LayerNorm with the residual addition and dropout before it."""

from __future__ import annotations

from torch import Tensor

from kernels import reference


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float = 1e-12,
    residual: Tensor | None = None,
    dropout_p: float = 0.0,
    backend: str = "reference",
) -> Tensor:
    """LayerNorm(dropout(x) + residual).

    Args:
        x: (T, D); the output has its dtype, the statistics are float32.
        weight, bias: (D,).
        eps: added to the variance.
        residual: (T, D), or None.
        dropout_p: probability with which an element of x is dropped; 0 when not training.
        backend: a name from `kernels.backends.resolve`.
    """
    if weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must both be ({x.shape[-1]},)")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}; x has {tuple(x.shape)}")
    return _BACKENDS[backend](x, weight, bias, eps, residual, dropout_p)


_BACKENDS = {"reference": reference.layer_norm}
