"""An optimizer with two kinds of parameter groups: matrices move by their momentum's sign, all else as Adam has it."""

from __future__ import annotations

import torch
from torch import nn

from recipe.config import Optimizer
from recipe.training.optimizers import Row


class Signs(torch.optim.Optimizer):
    def __init__(self, model: nn.Module, settings: Optimizer, dtype: torch.dtype) -> None:
        matrices = [p for p in model.parameters() if p.dim() == 2]
        others = [p for p in model.parameters() if p.dim() != 2]
        groups = [
            {"params": matrices, "kind": "sign", "lr": 0.1 * settings.lr},
            {"params": others, "kind": "adam", "lr": settings.lr},
        ]
        super().__init__(groups, {"betas": tuple(settings.betas), "eps": settings.eps})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                getattr(self, f"_{group['kind']}")(p, group)

    def _sign(self, p: torch.Tensor, group: dict) -> None:
        state = self.state[p]
        momentum = state.setdefault("momentum", torch.zeros_like(p))
        momentum.lerp_(p.grad, 1 - group["betas"][0])
        p.add_(momentum.sign(), alpha=-group["lr"])

    def _adam(self, p: torch.Tensor, group: dict) -> None:
        state = self.state[p]
        step = state["step"] = state.get("step", 0) + 1
        one = state.setdefault("one", torch.zeros_like(p)).lerp_(p.grad, 1 - group["betas"][0])
        two = state.setdefault("two", torch.zeros_like(p)).lerp_(p.grad.square(), 1 - group["betas"][1])
        scale = (1 - group["betas"][1] ** step) ** 0.5 / (1 - group["betas"][0] ** step)
        p.addcdiv_(one, two.sqrt() + group["eps"], value=-group["lr"] * scale)


SIGNS = Row(Signs, state_bytes=lambda model: 8)
