"""The gated linear unit's pointwise half."""

from __future__ import annotations

from torch import Tensor

from kernels import reference


def glu(x: Tensor, activation: str = "gelu", backend: str = "reference") -> Tensor:
    """activation(a) * b with x = [a, b].

    Args:
        x: (T, 2 F), the fused projection's output, activated half first.
        activation: gelu (erf), silu or relu.
        backend: a name from `kernels.backends.resolve`.

    Returns:
        (T, F) in the dtype of x.
    """
    if activation not in reference.ACTIVATIONS:
        raise ValueError(f"activation={activation!r}: known are {', '.join(reference.ACTIVATIONS)}")
    if x.shape[-1] % 2:
        raise ValueError(f"x has {x.shape[-1]} columns; the two halves need an even number")
    return _BACKENDS[backend](x, activation)


_BACKENDS = {"reference": reference.glu}
