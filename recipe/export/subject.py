"""What is exported: the encoder of a pretraining run, or what `recipe.finetune` made of one.

Forms, checks and the card ask the subject for its model, its numbers and its words; nothing else tells the two apart.

Shapes: S sequences, L padded length, T real tokens, D hidden size, R rows of a head's outputs (T, or S), C numbers of a row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from recipe import records
from recipe.config import ExportConfig
from recipe.errors import UserError
from recipe.export import held_out
from recipe.finetune.batches import IGNORED_LABEL, ExampleCollator, outputs_of
from recipe.finetune.examples import Examples
from recipe.finetune.folder import FineTunedFolder
from recipe.model.architecture import Export
from recipe.model.architectures import architecture
from recipe.model.encoder import Backends
from recipe.training.checkpoint import Checkpoint, OwnCheckpoint

Inputs = dict[str, Tensor]  # as transformers takes them: input_ids (S, L), and attention_mask and token_type_ids or not

LONGEST = 512  # tokens of a text where no run says more
LABELLED = 3  # every so many-th real token has a label of masked-language modelling
AT_A_TIME = 4096  # tokens, of texts that are answered
HEAD = "head."  # what the parameters of a kind's head begin with
# What transformers' pipeline for a class is called, as the hub calls the task.
USES = {
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModel": "sentence-similarity",
}
FEATURES = "feature-extraction"  # the pipeline for an encoder without a head that answers texts

# By what transformers calls the kind of a classifier's labels: labels (R, ...) that outputs (R, C) have all wrong, so that the
# gradients of their loss are no rounding.
WRONG = {
    None: lambda outputs_RC: (outputs_RC.argmax(dim=1) + 1) % outputs_RC.shape[1],
    "single_label_classification": lambda outputs_RC: (outputs_RC.argmax(dim=1) + 1) % outputs_RC.shape[1],
    "multi_label_classification": lambda outputs_RC: (outputs_RC <= 0).float(),
    "regression": lambda outputs_RC: outputs_RC[:, 0] + 1,
}


class Subject(ABC):
    """Found and checked, its weights not read yet."""

    checkpoint: Checkpoint
    auto: str  # transformers' class of encoder and head
    longest: int | None  # tokens of an input, if they are limited
    longest_text: int  # tokens, at which a sentence encoder cuts
    settings: Mapping[str, Any] = {}  # of config.json, beside the encoder's
    task: Mapping[str, Any] | None = None  # what it was fine-tuned to do, as `recipe.finetune.folder` says it
    results: Mapping[str, Any] | None = None  # the record of that fine-tuning, where it is there
    plain_text: bool = False  # whether a special token's name in a text, such as [MASK], is no special token
    what = "the run's encoder"  # in messages
    gives = "logits"  # what `auto` answers with
    left_out: str | None = None  # of what the run left, what the folder does not have, in words

    @property
    def called(self) -> str:
        """The head of its card."""
        return self.checkpoint.name

    @property
    def use(self) -> str:
        """The name of transformers' pipeline."""
        return USES[self.auto]

    @property
    def title(self) -> str:
        """What is said of it at the start."""
        return f"{self.checkpoint.name}: {self.checkpoint.model}"

    @cached_property
    def row(self) -> Export | None:
        """How its architecture is exported; None for one of Hugging Face's own, which is what it is already.

        Raises:
            UserError: an architecture in this project's form whose row does not say how.
        """
        checkpoint = self.checkpoint
        if not isinstance(checkpoint, OwnCheckpoint):
            return None
        row = architecture(checkpoint.model).export
        if row is None:
            raise UserError(
                f"{checkpoint.name}: a `{checkpoint.model}`, whose row in the table of architectures has no export yet"
            )
        return row

    @abstractmethod
    def refuse(self, config: ExportConfig) -> None:
        """Raise a `UserError` for a form, or a setting of one, that does not fit it."""

    @abstractmethod
    def load(self) -> nn.Module:
        """Its own model, as it was trained, in plain torch."""

    @cached_property
    def ours(self) -> nn.Module:
        return self.load().eval()

    @abstractmethod
    def native(self, model: nn.Module) -> PreTrainedModel:
        """The model of transformers inside such a model of one of Hugging Face's architectures."""

    def name(self, parameter: str) -> str:
        """What the folder calls a parameter of `ours`."""
        return self.row.name(parameter) if self.row else parameter.removeprefix("model.")

    def logits(self, inputs: Inputs, model: nn.Module | None = None) -> Tensor:
        """(R, C) by `ours`, or another model like it."""
        model = model or self.ours
        return self.rows(self.native(model)(**inputs), inputs) if self.row is None else self._logits(inputs, model)

    def rows(self, answer: ModelOutput, inputs: Inputs) -> Tensor:
        """(R, C) of what transformers' class answers."""
        return rows_of(answer.logits, inputs)

    @abstractmethod
    def _logits(self, inputs: Inputs, model: nn.Module) -> Tensor:
        """The same by a model that takes streams."""

    def hidden(self, inputs: Inputs, model: nn.Module | None = None) -> Tensor:
        """(T, D), the last hidden states."""
        model = model or self.ours
        if self.row is None:
            return self.native(model).base_model(**inputs).last_hidden_state[real_tokens(inputs)]
        return model.encoder(stream(inputs))

    @abstractmethod
    def vectors(self, hidden_TD: Tensor, inputs: Inputs, pooling: str) -> Tensor:
        """(S, D), of length 1, of hidden states."""

    @abstractmethod
    def labels(self, inputs: Inputs, logits_RC: Tensor) -> tuple[Tensor, Tensor]:
        """Labels to train on: as transformers' class takes them, and those of the rows R."""

    @abstractmethod
    def loss(self, logits_RC: Tensor, labels: Tensor) -> Tensor:
        """A scalar; `labels` are of the rows R."""

    def their_loss(self, model: nn.Module, inputs: Inputs, labels: Tensor) -> Tensor:
        """The same of transformers' class, by its own loss."""
        return model(**inputs, labels=labels).loss

    @cached_property
    @abstractmethod
    def held_out(self) -> held_out.HeldOut:
        """Texts of its own that it was not trained on."""


class PretrainedEncoder(Subject):
    """Of a run, a checkpoint on its way, or anybody's folder, with the head for masked-language modelling."""

    auto = "AutoModelForMaskedLM"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.longest = checkpoint.max_length
        run = records.read_record(checkpoint.run)["config"] if checkpoint.run else {}
        trained = run.get("data", {}).get("sequence_length", LONGEST)
        self.longest_text = min(trained, checkpoint.max_length or trained)

    def refuse(self, config: ExportConfig) -> None:
        if config.int8 is not None and self.checkpoint.mask_id is None:
            raise UserError(
                f"{self.checkpoint.folder}: its tokenizer has no mask, which int8 is scored with; leave int8 out"
            )

    def load(self) -> nn.Module:
        return self.checkpoint.masked_lm(Backends())

    def native(self, model: nn.Module) -> PreTrainedModel:
        return model.model

    def _logits(self, inputs: Inputs, model: nn.Module) -> Tensor:
        return model.masked_logits({**stream(inputs), "masked_indices": torch.arange(int(real_tokens(inputs).sum()))})

    def vectors(self, hidden_TD: Tensor, inputs: Inputs, pooling: str) -> Tensor:
        parts = hidden_TD.split(inputs["attention_mask"].sum(dim=1).tolist())
        pool = {"mean": lambda part: part.mean(dim=0), "cls": lambda part: part[0]}[pooling]
        return F.normalize(torch.stack([pool(part) for part in parts]), dim=1)

    def labels(self, inputs: Inputs, logits_RC: Tensor) -> tuple[Tensor, Tensor]:
        real = real_tokens(inputs)
        labels = torch.full_like(inputs["input_ids"], IGNORED_LABEL)
        places = real.flatten().nonzero()[::LABELLED, 0]
        labels.view(-1)[places] = inputs["input_ids"].flatten()[places].roll(1)
        return labels, labels[real]

    def loss(self, logits_RC: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits_RC, labels)

    @cached_property
    def held_out(self) -> held_out.HeldOut:
        return held_out.of_run(self.checkpoint)


class FineTunedModel(Subject):
    """A folder that `recipe.finetune` wrote: encoder and head of a kind."""

    what = "the fine-tuned model"
    plain_text = True  # as in training, and in `recipe.predict`

    def __init__(self, found: FineTunedFolder) -> None:
        self.found, self.kind, self.task = found, found.kind, found.task
        self.checkpoint = found.checkpoint
        self.auto = self.kind.auto_class or "AutoModel"
        self.longest = self.longest_text = self.task["max_length"]
        self.settings = {"problem_type": self.kind.problem_type} if self.kind.problem_type else {}
        if found.labels:
            names = dict(enumerate(found.labels))
            self.settings |= {"id2label": names, "label2id": {label: number for number, label in names.items()}}
        elif self.kind.auto_class:
            self.settings |= {"num_labels": self.kind.outputs(found.labels)}
        self.results = found.results

    @property
    def called(self) -> str:
        return f"{self.task['encoder']}, fine-tuned on {self.task['name']}"

    @property
    def title(self) -> str:
        labels = f", {len(self.found.labels)} labels" if self.found.labels else ""
        return f"{self.task['name']}: {self.kind.name}{labels}, on the {self.checkpoint.model} {self.task['encoder']}"

    def refuse(self, config: ExportConfig) -> None:
        name, forms = self.kind.name, self.kind.exports
        predict = f"predict with python -m recipe.predict {config.checkpoint} FILE"
        if not forms:
            raise UserError(
                f"checkpoint={config.checkpoint}: kind `{name}`, for which neither transformers nor sentence-transformers has a "
                f"class; {predict}"
            )
        if config.format not in forms:
            raise UserError(
                f"format={config.format}: a model of kind `{name}` is exported with "
                f"{' or '.join(f'format={form}' for form in forms)}"
            )
        if config.pooling != ExportConfig.pooling:
            raise UserError(f"pooling={config.pooling}: its vectors were trained as means; leave pooling out")
        if config.int8 is not None:
            raise UserError(
                f"int8={config.int8}: minimal pairs score masked-language models, and this is of kind `{name}`; leave int8 out"
            )
        if self.kind.auto_class and self.row and not self.row.heads:
            raise UserError(
                f"checkpoint={config.checkpoint}: transformers' {self.row.classes} has another head than the one that a "
                f"`{self.checkpoint.model}` is fine-tuned with here; {predict}"
            )

    def load(self) -> nn.Module:
        return self.found.build(Backends())

    def native(self, model: nn.Module) -> PreTrainedModel:
        return model.model if self.kind.auto_class else model.encoder.model

    def name(self, parameter: str) -> str:
        if self.row and parameter.startswith(HEAD):
            module, _, last = parameter.rpartition(".")
            return f"{self.row.heads[module]}.{last}"
        return super().name(parameter)

    def _logits(self, inputs: Inputs, model: nn.Module) -> Tensor:
        return model(stream(inputs))

    def vectors(self, hidden_TD: Tensor, inputs: Inputs, pooling: str) -> Tensor:
        return self.ours.head(self.kind.pool(hidden_TD, inputs))

    def labels(self, inputs: Inputs, logits_RC: Tensor) -> tuple[Tensor, Tensor]:
        labels, real = WRONG[self.kind.problem_type](logits_RC.detach()), real_tokens(inputs)
        if len(labels) == len(real):
            return labels, labels
        return torch.full(real.shape, IGNORED_LABEL).masked_scatter(real, labels), labels

    def loss(self, logits_RC: Tensor, labels: Tensor) -> Tensor:
        return self.kind.loss(logits_RC, labels)

    @cached_property
    def held_out(self) -> held_out.HeldOut:
        return held_out.of_task(self.results)

    def answers(self, texts: Sequence[tuple[str, ...]]) -> list[dict[str, Any]]:
        """What `recipe.predict` says of texts or pairs, with the probabilities of all labels."""
        examples = Examples(list(texts), [self.kind.unlabelled] * len(texts))
        encoded = self.kind.encode(self.checkpoint.tokenizer, examples, self.longest)
        collator = ExampleCollator(max(AT_A_TIME, self.longest), self.checkpoint.padding)
        outputs = outputs_of(self.ours, encoded, collator, "cpu")
        return list(self.kind.answers(encoded, outputs, self.found.labels, True))


def real_tokens(inputs: Inputs) -> Tensor:
    """(S, L) bool."""
    return inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()


def rows_of(logits: Tensor, inputs: Inputs) -> Tensor:
    """(R, C) of what transformers' classes give, (S, C), or (S, L, C) of which the real tokens count."""
    return logits if logits.dim() == 2 else logits[real_tokens(inputs)]


def stream(inputs: Inputs) -> dict[str, Any]:
    """The same batch as a stream of its real tokens."""
    real = real_tokens(inputs)
    lengths = real.sum(dim=1)
    batch = {
        "input_ids": inputs["input_ids"][real],
        "cu_seqlens": F.pad(lengths.cumsum(0), (1, 0)).int(),
        "max_seqlen": int(lengths.max()),
    }
    return batch | ({"token_type_ids": inputs["token_type_ids"][real]} if "token_type_ids" in inputs else {})
