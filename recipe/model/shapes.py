"""Sizes of batches on a CPU, rounded up so that there are few different ones.

oneDNN, which multiplies there, compiles a product for each size that it meets: tens of milliseconds a step where every batch has
a size of its own, and memory, since it keeps a thousand of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.reference import IGNORED_LABEL


def rounded(count: int) -> int:
    """At most 1/32 more, or up to a multiple of 16."""
    step = max(16, 1 << max(count.bit_length() - 6, 0))
    return -(-count // step) * step


def round_stream(
    input_ids: Tensor, token_type_ids: Tensor | None, cu_seqlens: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """With a sequence more, of token 0, which fills the stream up; nothing of it reaches the others."""
    missing = rounded(len(input_ids)) - len(input_ids)
    end = torch.full_like(cu_seqlens[:1], len(input_ids) + missing)
    types = None if token_type_ids is None else F.pad(token_type_ids, (0, missing))
    return F.pad(input_ids, (0, missing)), types, torch.cat([cu_seqlens, end])


def round_predictions(masked_indices: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """With predictions more, of the first token, that do not count."""
    missing = rounded(len(labels)) - len(labels)
    return F.pad(masked_indices, (0, missing)), F.pad(labels, (0, missing), value=IGNORED_LABEL)
