"""AdamW in one fused kernel, with the paper's decay."""

from __future__ import annotations

import torch
from torch import nn

from recipe.config import Optimizer


def build_optimizer(model: nn.Module, config: Optimizer) -> torch.optim.AdamW:
    """Every parameter decays, biases and norms too, by weight_decay x lr / initial lr a step, as Composer's DecoupledAdamW does.

    torch decays by lr x its own weight_decay, so that is weight_decay / initial lr.
    """
    return torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay / config.lr,
        fused=True,
    )
