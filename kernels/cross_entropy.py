"""The masked-language-model loss, from hidden states to a scalar, at the masked positions only."""

from __future__ import annotations

from torch import Tensor

from kernels import reference


def masked_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, backend: str = "reference"
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the labels, and the share of them predicted right.

    Args:
        hidden: (M, D), the masked positions' hidden states.
        weight, bias: (V, D) and (V,), the decoder.
        labels: (M,) int64; -100 is left out.
        backend: a name from `kernels.backends.resolve`.

    Returns:
        loss and accuracy, float32 scalars; both 0 where no label counts.
    """
    if hidden.shape[0] != labels.shape[0] or labels.dim() != 1:
        raise ValueError(f"labels has shape {tuple(labels.shape)}; hidden has {hidden.shape[0]} rows")
    if weight.shape[1] != hidden.shape[1] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must be (V, {hidden.shape[1]}) and (V,)"
        )
    return _BACKENDS[backend](hidden, weight, bias, labels)


_BACKENDS = {"reference": reference.masked_cross_entropy}
