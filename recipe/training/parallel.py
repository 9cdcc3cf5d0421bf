"""The table of ways of parallelism: how the ranks of a run share the model. Composer is imported when a trainer is made, so that
the table needs nothing.

Each rank has its part of every batch, and its loss is weighed by the part's predictions: gradients are to be the ranks' mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recipe.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from torch import nn

    from recipe.config import TrainConfig
    from recipe.training.trainer import Trainer


@dataclass(frozen=True)
class Row:
    # Of the same arguments as `recipe.training.trainer.Trainer`, which it spreads over the ranks.
    trainer: Callable[..., Trainer]
    # (the networks, bytes of state that training keeps for a parameter, ranks) -> bytes that a rank holds for a parameter beside
    # the weights, the gradients and the activations of a step on one device. Where the ranks share the weights too, it may be
    # less than nothing.
    bytes_beside: Callable[[nn.Module, float, int], float]
    # (the networks of a run at its end, what makes such networks) -> with all of the weights, on rank 0. Every rank asks.
    whole: Callable[[nn.Module, Callable[[], nn.Module]], nn.Module] = lambda model, build: model
    travels: float = 2.0  # how often a parameter's float32 passes a ring of ranks in a step
    # (config, ranks) -> what cannot be trained so, in words; None: all of it can
    problem: Callable[[TrainConfig, int], str | None] = lambda config, ranks: None


def _ddp(**arguments: Any) -> Trainer:
    """The whole model on every rank; gradients are added up, bucket after bucket, while the last microbatch's are still made."""
    from recipe.training.trainer import Trainer

    return Trainer(**arguments, ddp_sync_strategy="single_auto_sync")


def _ddp_bytes(model: nn.Module, state_bytes: float, ranks: int) -> float:
    """The buckets are float32."""
    return state_bytes + (4 if ranks > 1 else 0)


def _fsdp(**arguments: Any) -> Trainer:
    """Each rank has its part of every parameter, of its gradient and of the optimizer's state (PyTorch's FSDP2, as Composer sets
    it up); a layer is whole while it works, what is in no layer from the forward's beginning to the backward's end."""
    from composer.utils.parallelism import FSDP2Config, ParallelismConfig

    from recipe.training.trainer import Trainer

    networks = arguments["model"].model
    networks.fsdp_wrap_fn = set(_layers(networks)).__contains__
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
        sharded = FSDP2Config(state_dict_type="full")  # checkpoints are whole, as DDP's
    return Trainer(**arguments, parallelism_config=ParallelismConfig(fsdp2=sharded))


def _layers(model: nn.Module) -> list[nn.Module]:
    """What is shared by itself: the members of every list of modules."""
    from torch import nn

    return [layer for one in model.modules() if isinstance(one, nn.ModuleList) for layer in one]


def _gathered(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    whole = build()
    if weights:  # on rank 0
        whole.load_state_dict(weights)
    return whole


def _fsdp_bytes(model: nn.Module, state_bytes: float, ranks: int) -> float:
    """Of weights and gradients, in float32, a rank has its part; whole at a time are what is in no layer and two layers, the one
    that works and the next, which is fetched meanwhile."""
    layers = [sum(p.numel() for p in layer.parameters()) for layer in _layers(model)]
    parameters = sum(p.numel() for p in model.parameters())
    whole = parameters - sum(layers) + sum(sorted(layers)[-2:])
    return (8 + state_bytes) / ranks + 8 * whole / parameters - 8


def _fsdp_problem(config: TrainConfig, ranks: int) -> str | None:
    if ranks == 1:
        return "parallel=fsdp: there is one rank, so nothing to share; set parallel=ddp"
    if config.average.steps:
        return f"parallel=fsdp: the mean of weights (average.steps={config.average.steps}) needs them whole; set parallel=ddp"
    if config.model.compile:
        return "parallel=fsdp: layers that are put together while they work are not compiled; set model.compile=false"
    if OPTIMIZERS[config.optimizer.name].whole_matrices:
        return f"parallel=fsdp: {config.optimizer.name} needs whole matrices, and ranks have parts; set parallel=ddp"
    return None


# FSDP's weights are gathered for the forward and for the backward pass, and gradients are summed where their part belongs.
PARALLEL = {
    "ddp": Row(_ddp, _ddp_bytes),
    "fsdp": Row(_fsdp, _fsdp_bytes, _gathered, travels=3.0, problem=_fsdp_problem),
}
