"""Encoders of runs that learnt to detect replaced tokens, as subjects: with the head that detects, or without any.

Shapes as in `subject`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from recipe.config import ExportConfig
from recipe.errors import UserError
from recipe.export.subject import FEATURES, Inputs, PretrainedEncoder, Subject, real_tokens
from recipe.model import electra
from recipe.model.encoder import Backends


class Discriminator(PretrainedEncoder):
    """Of a run of Hugging Face's BERT that learnt to detect: ELECTRA's, with its head."""

    auto, use = "AutoModelForPreTraining", FEATURES
    left_out = "a generator, if the run had one, which only its checkpoints have"

    def refuse(self, config: ExportConfig) -> None:
        refuse_graphs(self, config)

    def load(self) -> nn.Module:
        return self.checkpoint.detector(Backends())

    def native(self, model: nn.Module) -> PreTrainedModel:
        return electra.discriminator(model, model.bert.bert.config)

    def name(self, parameter: str) -> str:
        return electra.to_their_name(parameter)

    def logits(self, inputs: Inputs, model: nn.Module | None = None) -> Tensor:
        return (model or self.ours).judge(self.hidden(inputs, model)).unsqueeze(-1)

    def hidden(self, inputs: Inputs, model: nn.Module | None = None) -> Tensor:
        return (model or self.ours).hidden(inputs)[real_tokens(inputs).flatten()]

    def rows(self, answer: ModelOutput, inputs: Inputs) -> Tensor:
        return answer.logits[real_tokens(inputs)].unsqueeze(-1)

    def labels(self, inputs: Inputs, logits_RC: Tensor) -> tuple[Tensor, Tensor]:
        wrong, real = (logits_RC.detach()[:, 0] <= 0).long(), real_tokens(inputs)
        return torch.zeros_like(inputs["input_ids"]).masked_scatter(real, wrong), wrong

    def loss(self, logits_RC: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits_RC[:, 0], labels.float())


class BareEncoder(PretrainedEncoder):
    """Of a run that learnt to detect, where transformers has no class of such a head on this encoder."""

    auto, use, gives = "AutoModel", FEATURES, "hidden states"
    left_out = "the head that detects, which no class of this model has, and a generator, if the run had one"

    def refuse(self, config: ExportConfig) -> None:
        refuse_graphs(self, config)

    def load(self) -> nn.Module:
        return nn.ModuleDict({"encoder": self.checkpoint.detector(Backends()).encoder})

    def name(self, parameter: str) -> str:
        return super().name(parameter).partition(".")[2]  # an encoder alone has no prefix there

    def _logits(self, inputs: Inputs, model: nn.Module) -> Tensor:
        return self.hidden(inputs, model)

    def rows(self, answer: ModelOutput, inputs: Inputs) -> Tensor:
        return answer.last_hidden_state[real_tokens(inputs)]

    def labels(self, inputs: Inputs, logits_RC: Tensor) -> tuple[Tensor, Tensor]:
        any_direction = torch.randn(logits_RC.shape, generator=torch.Generator().manual_seed(0))
        return any_direction, any_direction

    def loss(self, logits_RC: Tensor, labels: Tensor) -> Tensor:
        """There is none to be trained by, so any that every parameter changes."""
        return (logits_RC * labels).mean()

    def their_loss(self, model: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
        return self.loss(self.rows(model(**inputs), inputs), labels)


def refuse_graphs(subject: Subject, config: ExportConfig) -> None:
    """Raise a `UserError` for graphs of an encoder whose head answers no text."""
    if config.format == "onnx":
        raise UserError(
            f"format=onnx: {subject.called} learnt to detect and answers no text yet; fine-tune it and export that, or set "
            "format=huggingface or sentence"
        )
