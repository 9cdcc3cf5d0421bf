"""The fused optimizer takes the steps of Composer's DecoupledAdamW, which the paper used."""

from __future__ import annotations

import pytest
import torch
from composer.optim import DecoupledAdamW
from torch import nn

from recipe.config import Optimizer
from recipe.training.optimizers import build_optimizer
from recipe.training.schedules import linear_with_warmup

STEPS = 20


def a_model() -> nn.Module:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 40), nn.LayerNorm(40), nn.Tanh(), nn.Linear(40, 7))
    for parameter in model.parameters():
        nn.init.normal_(parameter)  # biases and norms too, so that their decay is seen
    return model


def steps_of(model: nn.Module, optimizer: torch.optim.Optimizer, lr: float) -> None:
    generator = torch.Generator().manual_seed(5)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = lr * linear_with_warmup(step / STEPS, 0.2, 0.02)
        ids, labels = (torch.randint(n, (16,), generator=generator) for n in (50, 7))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(ids), labels).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "config",
    [Optimizer(), Optimizer(lr=1e-2, betas=[0.8, 0.9], eps=1e-8, weight_decay=0.05), Optimizer(weight_decay=0.0)],
    ids=["the paper's", "large", "no decay"],
)
def test_equals_decoupled_adamw(config):
    ours, theirs = a_model(), a_model()
    steps_of(ours, build_optimizer(ours, config, torch.float32), config.lr)
    reference = DecoupledAdamW(
        theirs.parameters(),
        lr=config.lr,
        betas=tuple(config.betas),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    steps_of(theirs, reference, config.lr)
    start = a_model()
    for name, parameter in ours.named_parameters():
        moved = (parameter - start.get_parameter(name)).abs().max()
        assert moved > config.lr, name
        # Adam's ratio is of order 1, so a step carries some 1e-7 of relative rounding, of the lr and of the weight itself
        torch.testing.assert_close(
            parameter, theirs.get_parameter(name), rtol=STEPS * 2**-23, atol=STEPS * 1e-5 * config.lr, msg=lambda m: m
        )


def test_every_parameter_decays():
    """Without a gradient's help: zero gradients leave the decay alone, by (1 - weight_decay) a step at the initial rate."""
    model = a_model()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, Optimizer(lr=1e-3, weight_decay=0.1), torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] /= 2
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), start[name] * 0.9 * 0.95)
