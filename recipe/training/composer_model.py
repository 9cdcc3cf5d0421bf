"""A pretraining model as Composer's trainer wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from composer.models import ComposerModel
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from recipe.data.batch import Batch, count_tokens


class AutocastModel(ComposerModel):
    """Runs a model under its own autocast, because Composer has none for a CPU."""

    def __init__(self, model: nn.Module, device: str, autocast: torch.dtype | None) -> None:
        super().__init__()
        self.model = model
        self._device = device
        self._autocast = autocast

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self._device, self._autocast) if self._autocast else nullcontext()


class OutputMean(MeanMetric):
    """The mean of one of a model's outputs."""

    def __init__(self, output: str) -> None:
        super().__init__()
        self.output = output


class Pretraining(AutocastModel):
    """A model whose `forward(batch)` gives an objective's metrics by name, `loss` among them."""

    def __init__(
        self,
        model: nn.Module,
        device: str,
        autocast: torch.dtype | None,
        metrics: Sequence[str] = ("loss",),
        compiled: Callable | None = None,
    ) -> None:
        """`compiled` is the model's `forward` for training. It stands beside the model, whose parameters keep their names.
        Evaluation, a small part of a run and without dropout, gradients or the same shapes, would need graphs of its own."""
        super().__init__(model, device, autocast)
        self._compiled = compiled
        self._metrics = tuple(metrics)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        step = self._compiled if self._compiled and self.training else self.model
        with self.autocast():
            return step(batch)

    def loss(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        return outputs["loss"]

    def eval_forward(self, batch: Batch, outputs: Any = None) -> dict[str, Tensor]:
        return self.forward(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        return {} if is_train else {name: OutputMean(name) for name in self._metrics}

    def update_metric(self, batch: Batch, outputs: dict[str, Tensor], metric: OutputMean) -> None:
        """Weighted by masked tokens, so a last, shorter batch counts for what it holds."""
        metric.update(outputs[metric.output].detach(), weight=count_tokens(batch)["loss_generating"])
