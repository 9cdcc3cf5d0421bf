"""The mean of a run's weights, kept beside them. Evaluations, checkpoints and the encoder get the mean, training goes on from the
weights: the two change places, without a copy.

So a checkpoint's model is the mean, and its callback state holds the weights that a resumed run goes on from.
"""

from __future__ import annotations

from typing import Any

import torch
from composer import Callback, Logger, State
from torch import Tensor, nn

from recipe.config import Average
from recipe.training.averages import AVERAGES


class Averaging(Callback):
    def __init__(self, model: nn.Module, settings: Average, batches: int) -> None:
        """`batches` are those of the run; 0 where they are not known, which the shape then does not need."""
        self.count = 0  # batches whose weights are in the mean
        self._parameters = dict(model.named_parameters())
        self._steps, self._batches, self._row = settings.steps, batches, AVERAGES[settings.shape]
        # The mean; the weights, while the mean stands in the model. None before there is one.
        self._beside: dict[str, Tensor] | None = None
        self._in_model = False
        self._before_evaluation = False

    def fit_start(self, state: State, logger: Logger) -> None:
        if self._beside is not None:  # of a checkpoint
            self._beside = {name: tensor.to(self._parameters[name].device) for name, tensor in self._beside.items()}

    def batch_start(self, state: State, logger: Logger) -> None:
        self._put(mean=False)

    @torch.no_grad()
    def batch_end(self, state: State, logger: Logger) -> None:
        share = self._row.newest(state.timestamp.batch.value, self._steps, self._batches)
        if not share:
            self.count, self._beside = 0, None
        elif self._beside is None:
            self.count, self._beside = 1, {name: p.detach().clone() for name, p in self._parameters.items()}
        else:
            self.count += 1
            torch._foreach_lerp_(list(self._beside.values()), [p.data for p in self._parameters.values()], share)

    def eval_start(self, state: State, logger: Logger) -> None:
        self._before_evaluation = self._in_model
        self._put(mean=True)

    def eval_end(self, state: State, logger: Logger) -> None:
        self._put(mean=self._before_evaluation)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self._put(mean=True)  # until the next batch; Composer's own callback, which writes, comes after the run's

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        self._put(mean=True)

    def fit_end(self, state: State, logger: Logger) -> None:
        self._put(mean=True)

    def state_dict(self) -> dict[str, Any]:
        return {"beside": self._beside, "in_model": self._in_model, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._beside, self._in_model, self.count = state["beside"], state["in_model"], state["count"]

    def _put(self, mean: bool) -> None:
        """Let the mean, or the weights, stand in the model."""
        if self._beside is None or mean == self._in_model:
            return
        for name, parameter in self._parameters.items():
            parameter.data, self._beside[name] = self._beside[name], parameter.data
        self._in_model = mean
