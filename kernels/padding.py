"""Between padded batches and the stream of real tokens, for inputs that arrive padded."""

from __future__ import annotations

from torch import Tensor

from kernels import reference


def unpad(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """The real tokens of a padded batch.

    Args:
        x: (S, L, ...).
        mask: (S, L), 0 where there is padding.

    Returns:
        the stream (T, ...), its rows' flat indices (T,) int64 in x, cu_seqlens (S + 1,) int32, and the longest length.
    """
    if x.shape[:2] != mask.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}; x begins with {tuple(x.shape[:2])}")
    return reference.unpad(x, mask)


def pad(tokens: Tensor, indices: Tensor, sequences: int, length: int) -> Tensor:
    """The inverse of `unpad`: (T, ...) to (sequences, length, ...), zero where there was padding."""
    if tokens.shape[:1] != indices.shape:
        raise ValueError(f"indices has shape {tuple(indices.shape)}; tokens has {tokens.shape[0]} rows")
    return reference.pad(tokens, indices, sequences, length)
