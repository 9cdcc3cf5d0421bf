"""Muon (https://kellerjordan.github.io/posts/muon) for the matrices of the layers, AdamW for everything else, in one optimizer.

A matrix moves by its momentum with all singular values brought near 1, times 0.2 x sqrt(its longer side) ("Muon is Scalable for
LLM Training", arXiv 2502.16982): then a step's root mean square is AdamW's, so one learning rate and one decay serve both kinds.
Weight decay is the house's: weight_decay x lr / initial lr a step, on every parameter.

Shapes: B matrices of R rows and C columns, R <= C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

if TYPE_CHECKING:
    from recipe.config import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, and
STEPS = 5  # how often it is applied: both the post's, and torch's defaults
EPS = 1e-7  # the least norm that is divided by
MATCH_RMS = 0.2  # AdamW's usual root mean square of a step, in learning rates
MOST = 2**25  # elements of a batch of matrices, so that its copies take some hundred MB at most


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear maps in a list of layers: no embedding, no decoder, no head."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    linear = (one for layers in lists for one in layers.modules() if isinstance(one, nn.Linear))
    return list({id(one.weight): one.weight for one in linear}.values())


def state_bytes(model: nn.Module) -> float:
    """A matrix keeps one float32 momentum, all else two moments: the mean over the parameters."""
    matrices, everything = (sum(p.numel() for p in one) for one in (hidden_matrices(model), model.parameters()))
    return 8 - 4 * matrices / everything


def problem(model: nn.Module) -> str | None:
    if hidden_matrices(model):
        return None
    return "optimizer.name=muon: this model has no layers with matrices for it; set optimizer.name=adamw"


def orthogonalized(matrices_BRC: Tensor) -> Tensor:
    """U V' of each matrix U S V', roughly: singular values between some 0.7 and 1.2, in the matrices' own precision."""
    a, b, c = COEFFICIENTS
    x_BRC = matrices_BRC / matrices_BRC.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(STEPS):
        gram_BRR = x_BRC @ x_BRC.mT
        x_BRC = torch.baddbmm(x_BRC, torch.baddbmm(gram_BRR, gram_BRR, gram_BRR, beta=b, alpha=c), x_BRC, beta=a)
    return x_BRC


class Muon(torch.optim.Optimizer):
    """Two groups, `matrices` first, of the same learning rate; a schedule moves both."""

    def __init__(self, model: nn.Module, settings: Optimizer, dtype: torch.dtype) -> None:
        """`dtype` is that of the iteration's products."""
        matrices = hidden_matrices(model)
        taken = {id(p) for p in matrices}
        rest = [p for p in model.parameters() if id(p) not in taken]
        self.dtype = dtype
        groups = [
            {"params": matrices, "momentum": settings.momentum},
            {"params": rest, "betas": tuple(settings.betas), "eps": settings.eps, "fused": True},
        ]
        super().__init__(groups, {"lr": settings.lr, "weight_decay": settings.weight_decay / settings.lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """A closure, which Composer does not give, is called as torch's optimizers do."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        matrices, rest = self.param_groups
        self._matrices(matrices)
        self._rest(rest)
        return loss

    def _matrices(self, group: dict[str, Any]) -> None:
        for batch in batches([p for p in group["params"] if p.grad is not None]):
            gradients = [p.grad for p in batch]
            momenta = [self._momentum(p) for p in batch]
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's
            wide = batch[0].shape[0] <= batch[0].shape[1]
            x_BRC = torch.stack([one if wide else one.mT for one in ahead]).to(self.dtype)
            moves = orthogonalized(x_BRC).to(batch[0].dtype)
            scale = MATCH_RMS * math.sqrt(max(batch[0].shape))
            torch._foreach_mul_(batch, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(batch, [m if wide else m.mT for m in moves], alpha=-group["lr"] * scale)

    def _momentum(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        return state["momentum"]

    def _rest(self, group: dict[str, Any]) -> None:
        moving = [p for p in group["params"] if p.grad is not None]
        for p in moving:
            if not self.state[p]:
                step = torch.zeros((), device=p.device)
                self.state[p].update(step=step, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        states = [self.state[p] for p in moving]
        first, second = group["betas"]
        adamw(
            moving,
            [p.grad for p in moving],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=first,
            beta2=second,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def batches(matrices: list[Tensor]) -> Iterator[list[Tensor]]:
    """Those of one shape together, at most `MOST` elements at a time."""
    by_shape: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        by_shape.setdefault(matrix.shape, []).append(matrix)
    for shape, alike in by_shape.items():
        count = max(1, MOST // shape.numel())
        yield from (alike[start : start + count] for start in range(0, len(alike), count))
