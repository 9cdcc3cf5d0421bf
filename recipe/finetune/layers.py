"""How deep a parameter lies in an encoder, by its name, for any architecture: what is frozen, and what learns more slowly."""

from __future__ import annotations

import re

import torch
from torch import nn

from recipe.errors import UserError

# `encoder.layers.3.`, `bert.encoder.layer.3.`, `albert_layer_groups.0.`: the first list of layers in a name.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|albert_layer_groups)\.(\d+)\.")


def depths(model: nn.Module) -> dict[str, int]:
    """Of each parameter: 0 for embeddings, 1 to L for the layers from below, L + 1 for what stands above them."""
    names = [name for name, _ in model.named_parameters()]
    layers = {name: int(found[1]) + 1 for name in names if (found := _LAYER.search(name))}
    top = max(layers.values(), default=0) + 1
    return {name: layers.get(name, 0 if "embeddings" in name else top) for name in names}


def freeze(model: nn.Module, layers: int) -> None:
    """Leave the embeddings and so many layers from below as they are; -1 for all of them, 0 for none.

    Raises:
        UserError: the encoder has fewer.
    """
    if not layers:
        return
    found = depths(model)
    most = max(found.values()) - 1
    if layers > most:
        raise UserError(f"freeze_layers={layers}: the encoder has {most} layers; give at most that, or -1 for all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(found[name] > (most if layers < 0 else layers))


def slower_below(optimizer: torch.optim.Optimizer, model: nn.Module, decay: float) -> torch.optim.Optimizer:
    """Give each layer the learning rate of the one above it times `decay`; what stands above all keeps its own."""
    if decay == 1.0:
        return optimizer
    (group,) = optimizer.param_groups
    found = depths(model)
    top = max(found.values())
    by_depth: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        by_depth.setdefault(found[name], []).append(parameter)
    optimizer.param_groups = [
        {**group, "params": by_depth[depth], "lr": group["lr"] * decay ** (top - depth)}
        for depth in sorted(by_depth, reverse=True)
    ]
    return optimizer
