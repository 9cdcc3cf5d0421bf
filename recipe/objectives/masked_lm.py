"""Masked language modelling (arXiv 1810.04805): which tokens stood where [MASK] is now?"""

from __future__ import annotations

from torch import nn

from recipe.model.architecture import Architecture
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.flops import training_flops
from recipe.objectives.objective import Counts, Objective


def _model(architecture: Architecture, sizes: EncoderConfig, length: int, backends: Backends) -> nn.Module:
    return architecture.masked_lm(sizes, length, backends)


def flops(architecture: Architecture, sizes: dict, counts: Counts) -> float:
    """Of one network's masked language modelling."""
    return training_flops(sizes, architecture.gated, counts.tokens, counts.squared_lengths, counts.masked)


MASKED_LM = Objective("masked_lm", ("loss", "masked_accuracy"), _model, flops)
