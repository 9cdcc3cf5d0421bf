"""A text or a pair of texts has a class, any number of labels, or a number. BERT's pooler and a linear layer read token 0.

Shapes: N examples, S sequences, as many, C labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import special, stats
from sklearn import metrics
from tokenizers import Tokenizer
from torch import Tensor, nn

from recipe.finetune.batches import IGNORED_LABEL, EncodedExamples, encodings, first_tokens, joined
from recipe.finetune.examples import Examples
from recipe.finetune.kinds.kind import Kind, Labels


class SequenceHead(nn.Module):
    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.pooler = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, hidden_SD: Tensor) -> Tensor:
        """(S, C) of the first token of each sequence."""
        return self.classifier(self.dropout(torch.tanh(self.pooler(hidden_SD))))


def _encode(tokenizer: Tokenizer, examples: Examples, max_length: int, dtype: type) -> EncodedExamples:
    texts = [two if len(two) == 2 else two[0] for two in examples.sentences]
    return joined(encodings(tokenizer, texts, max_length), np.array(examples.labels, dtype=dtype))


def _class(word: str, labels: Labels) -> int:
    if word not in labels:
        raise ValueError(f"label `{word}`; known are {', '.join(labels)}")
    return labels.index(word)


def _several(words: Sequence[str], labels: Labels) -> tuple[int, ...]:
    """(C,) of 0 and 1."""
    ids = {_class(word, labels) for word in words}
    return tuple(int(label in ids) for label in range(len(labels)))


def _number(word: str, labels: Labels) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"score `{word}` is not a number")
    return value


def _correlation(of: Callable, gold: Sequence[float], predicted: np.ndarray, labels: Labels) -> float:
    """0 where one side is constant: the coefficient has no value there, and nothing was learnt."""
    if np.ptp(gold) == 0 or np.ptp(predicted) == 0:
        return 0.0
    return float(of(gold, predicted).statistic)


def classification_loss(logits_SC: Tensor, labels_S: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """The mean cross-entropy, a float32 scalar; labels are int64 ids, -100 for none.

    With weights it is the sum of the weighted terms by the number of labels, not by that of their weights, so that the gradient
    of a batch does not depend on how it is cut into pieces.
    """
    if weights_C is None:
        return F.cross_entropy(logits_SC.float(), labels_S)
    total = F.cross_entropy(logits_SC.float(), labels_S, weights_C, reduction="sum")
    return total / (labels_S != IGNORED_LABEL).sum().clamp(min=1)


def multilabel_loss(logits_SC: Tensor, labels_SC: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """The mean binary cross-entropy, a float32 scalar; labels are 0 or 1, and weights multiply what their presence costs."""
    return F.binary_cross_entropy_with_logits(logits_SC.float(), labels_SC.float(), pos_weight=weights_C)


def regression_loss(numbers_S1: Tensor, labels_S: Tensor) -> Tensor:
    """The mean squared error, a float32 scalar."""
    return F.mse_loss(numbers_S1[:, 0].float(), labels_S.float())


def balanced_classes(labels: np.ndarray, classes: int) -> np.ndarray:
    """labels / (classes x labels of the class), scikit-learn's `balanced`; 0 for a class without any."""
    counts = np.bincount(labels[labels != IGNORED_LABEL], minlength=classes)
    return (counts.sum() / (classes * np.maximum(counts, 1)) * (counts > 0)).astype(np.float32)


def _balanced_presence(labels_SC: np.ndarray, classes: int) -> np.ndarray:
    """absent / present, 1 for a label that is nowhere."""
    present = labels_SC.sum(axis=0)
    return np.where(present > 0, (len(labels_SC) - present) / np.maximum(present, 1), 1.0).astype(np.float32)


def _classes_said(
    examples: EncodedExamples, logits_SC: np.ndarray, labels: Labels, all_labels: bool
) -> Iterator[dict[str, Any]]:
    for p_C in special.softmax(logits_SC, axis=1):
        best = int(p_C.argmax())
        yield {"prediction": labels[best], "probability": float(p_C[best]), **_every(p_C, labels, all_labels)}


def _several_said(
    examples: EncodedExamples, logits_SC: np.ndarray, labels: Labels, all_labels: bool
) -> Iterator[dict[str, Any]]:
    for p_C in special.expit(logits_SC):
        found = np.flatnonzero(p_C > 0.5)
        said = {"prediction": [labels[i] for i in found], "probability": [float(p_C[i]) for i in found]}
        yield {**said, **_every(p_C, labels, all_labels)}


def _f1_of_several(gold: Sequence, predicted: Sequence, average: str) -> float:
    return metrics.f1_score(np.array(gold), np.array(predicted), average=average, zero_division=0.0)


def _every(p_C: np.ndarray, labels: Labels, wanted: bool) -> dict[str, Any]:
    return {"probabilities": dict(zip(labels, p_C.tolist(), strict=True))} if wanted else {}


SEQUENCE: dict = {"auto_class": "AutoModelForSequenceClassification", "keep": first_tokens, "head": SequenceHead,
                  "exports": ("huggingface", "onnx")}  # fmt: skip
CLASSIFICATION = Kind(
    name="classification",
    **SEQUENCE,
    unlabelled=0,
    read=_class,
    encode=partial(_encode, dtype=np.int64),
    outputs=len,
    loss=classification_loss,
    decode=lambda examples, logits_SC: logits_SC.argmax(axis=1),
    constant=lambda train, gold: np.full(len(gold), np.bincount(train).argmax()),
    word=lambda label, labels: labels[label],
    metrics={
        "accuracy": lambda gold, predicted, labels: metrics.accuracy_score(gold, predicted),
        "f1": lambda gold, predicted, labels: metrics.f1_score(gold, predicted, zero_division=0.0),
        "macro_f1": lambda gold, predicted, labels: metrics.f1_score(
            gold, predicted, average="macro", zero_division=0.0
        ),
        "matthews": lambda gold, predicted, labels: metrics.matthews_corrcoef(gold, predicted),
    },
    answers=_classes_said,
    balance=balanced_classes,
    problem_type="single_label_classification",
)
MULTILABEL = Kind(
    name="multilabel",
    **SEQUENCE,
    unlabelled=(),
    read=_several,
    encode=partial(_encode, dtype=np.float32),
    outputs=len,
    loss=multilabel_loss,
    decode=lambda examples, logits_SC: (logits_SC > 0).astype(np.int64),
    constant=lambda train, gold: np.repeat([np.mean(train, axis=0) > 0.5], len(gold), axis=0).astype(np.int64),
    word=lambda present, labels: ", ".join(label for label, one in zip(labels, present, strict=True) if one),
    metrics={
        "micro_f1": lambda gold, predicted, labels: _f1_of_several(gold, predicted, "micro"),
        "macro_f1": lambda gold, predicted, labels: _f1_of_several(gold, predicted, "macro"),
        "accuracy": lambda gold, predicted, labels: float((np.array(gold) == np.array(predicted)).all(axis=1).mean()),
    },
    answers=_several_said,
    words=tuple,
    separator=",",
    balance=_balanced_presence,
    problem_type="multi_label_classification",
)
REGRESSION = Kind(
    name="regression",
    **SEQUENCE,
    unlabelled=0.0,
    read=_number,
    encode=partial(_encode, dtype=np.float32),
    outputs=lambda labels: 1,
    loss=regression_loss,
    decode=lambda examples, numbers_S1: numbers_S1[:, 0].astype(np.float64),
    constant=lambda train, gold: np.full(len(gold), np.mean(train)),
    word=lambda number, labels: f"{number:.9g}",
    metrics={"pearson": partial(_correlation, stats.pearsonr), "spearman": partial(_correlation, stats.spearmanr)},
    answers=lambda examples, numbers_S1, labels, all_labels: ({"prediction": float(n)} for n in numbers_S1[:, 0]),
    words=lambda label: (),
    problem_type="regression",
)
