"""A masked-language model as Composer's trainer wants it."""

from __future__ import annotations

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


class MaskedLM(AutocastModel):
    """Either model of this recipe: it asks for `masked_lm_loss` and nothing else."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        with self.autocast():
            loss, accuracy = self.model.masked_lm_loss(batch)
        return {"loss": loss, "masked_accuracy": accuracy}

    def loss(self, outputs: dict[str, Tensor], batch: Batch) -> Tensor:
        return outputs["loss"]

    def eval_forward(self, batch: Batch, outputs: Any = None) -> dict[str, Tensor]:
        return self.forward(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        return {} if is_train else {name: OutputMean(name) for name in ("loss", "masked_accuracy")}

    def update_metric(self, batch: Batch, outputs: dict[str, Tensor], metric: OutputMean) -> None:
        """Weighted by masked tokens, so a last, shorter batch counts for what it holds."""
        metric.update(outputs[metric.output].detach(), weight=count_tokens(batch)["loss_generating"])
