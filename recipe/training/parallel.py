"""The table of ways of parallelism: how the ranks of a run share the model. Composer is imported when a trainer is made, so that
the table needs nothing.

Each rank has its part of every batch, and its loss is weighed by the part's predictions: gradients are to be the ranks' mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipe.training.trainer import Trainer


@dataclass(frozen=True)
class Row:
    trainer: Callable[
        ..., Trainer
    ]  # of the same arguments as `recipe.training.trainer.Trainer`, which it spreads over the ranks
    # (bytes of the optimizer's state for a parameter, ranks) -> bytes that a rank holds for a parameter beside the weights, the
    # gradients and the activations of a step on one device. Where the ranks share the weights too, it is less than nothing.
    bytes_beside: Callable[[float, int], float]


def _ddp(**arguments: Any) -> Trainer:
    """The whole model on every rank; gradients are added up, bucket after bucket, while the last microbatch's are still made."""
    from recipe.training.trainer import Trainer

    return Trainer(**arguments, ddp_sync_strategy="single_auto_sync")


def _ddp_bytes(state_bytes: float, ranks: int) -> float:
    """The buckets are float32."""
    return state_bytes + (4 if ranks > 1 else 0)


PARALLEL = {"ddp": Row(_ddp, _ddp_bytes)}
