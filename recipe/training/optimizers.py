"""The table of optimizers. torch is imported when one is built, so that the table needs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from recipe.config import Optimizer


@dataclass(frozen=True)
class Row:
    """`build` makes one group of parameters or several; a schedule scales the rates of all by one factor, and the first group's
    is the one that is printed."""

    # (model, settings, the precision that the run computes in) -> the optimizer
    build: Callable[[nn.Module, Optimizer, torch.dtype], torch.optim.Optimizer]
    state_bytes: Callable[[nn.Module], float]  # that it keeps for a parameter, the mean over a model's
    problem: Callable[[nn.Module], str | None] = lambda model: None  # why it cannot train this model, in words
    whole_matrices: bool = False  # whether a rank must have all of a matrix


def _adamw(model: nn.Module, settings: Optimizer, dtype: torch.dtype) -> torch.optim.Optimizer:
    """AdamW in one fused kernel. Every parameter decays, biases and norms too, by weight_decay x lr / initial lr a step, as
    Composer's DecoupledAdamW does.

    torch decays by lr x its own weight_decay, so that is weight_decay / initial lr.
    """
    from torch.optim import AdamW

    return AdamW(
        model.parameters(),
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        weight_decay=settings.weight_decay / settings.lr,
        fused=True,
    )


def _muon(model: nn.Module, settings: Optimizer, dtype: torch.dtype) -> torch.optim.Optimizer:
    from recipe.training.muon import Muon

    return Muon(model, settings, dtype)


def _muon_bytes(model: nn.Module) -> float:
    from recipe.training.muon import state_bytes

    return state_bytes(model)


def _muon_problem(model: nn.Module) -> str | None:
    from recipe.training.muon import problem

    return problem(model)


OPTIMIZERS = {
    "adamw": Row(_adamw, state_bytes=lambda model: 8),  # two float32 moments
    "muon": Row(_muon, _muon_bytes, _muon_problem, whole_matrices=True),
}


def build_optimizer(model: nn.Module, settings: Optimizer, dtype: torch.dtype) -> torch.optim.Optimizer:
    """The optimizer of that name, of this model's parameters; `dtype` is the precision that the run computes in."""
    return OPTIMIZERS[settings.name].build(model, settings, dtype)
