"""One label for a text or a pair of texts: a class, or a number. BERT's pooler and a linear layer read the first token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats
from sklearn import metrics
from tokenizers import Tokenizer
from torch import Tensor, nn

from recipe.finetune.batches import EncodedExamples, encodings, first_tokens, joined
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


def classification_loss(logits_SC: Tensor, labels_S: Tensor) -> Tensor:
    """The mean cross-entropy, a float32 scalar; labels are int64 ids."""
    return F.cross_entropy(logits_SC.float(), labels_S)


def regression_loss(numbers_S1: Tensor, labels_S: Tensor) -> Tensor:
    """The mean squared error, a float32 scalar."""
    return F.mse_loss(numbers_S1[:, 0].float(), labels_S.float())


SEQUENCE: dict = {"auto_class": "AutoModelForSequenceClassification", "keep": first_tokens, "head": SequenceHead}
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
        "matthews": lambda gold, predicted, labels: metrics.matthews_corrcoef(gold, predicted),
    },
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
)
