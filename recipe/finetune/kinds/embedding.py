"""Texts as vectors of length 1, the mean of their tokens' hidden states, near each other where texts belong together.

Trained by InfoNCE (arXiv 1807.03748) over the pairs of a batch: of all second texts, and of hard negatives where a row has a
third, the first text's own is to have the highest cosine. `mirror` needs no labels and no pairs (Mirror-BERT, arXiv
2104.08027): a text belongs to itself with a few characters left out, under another draw of dropout.

Shapes: N examples of k texts, D hidden size; rows of outputs stand text by text, (k N, D).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from recipe.finetune.batches import EncodedExamples
from recipe.finetune.examples import Examples
from recipe.finetune.kinds.kind import Labels
from recipe.finetune.kinds.sequence import REGRESSION
from recipe.finetune.kinds.siamese import SIAMESE, apart

if TYPE_CHECKING:
    from recipe.config import FinetuneConfig

LEFT_OUT = 5  # characters of a text, at most, that its mirror lacks


class Direction(nn.Module):
    """No parameters: a vector of length 1."""

    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()

    def forward(self, means_SD: Tensor) -> Tensor:
        """(S, D) float32."""
        return F.normalize(means_SD.float(), dim=1)


def info_nce(vectors_RD: Tensor, places_Rk: Tensor, temperature: float) -> Tensor:
    """The mean over pairs of the cross-entropy of each first text's own second among all seconds and thirds, a float32 scalar.

    `places_Rk` says by its width how many texts an example has; its values are not looked at.
    """
    first, *others = vectors_RD.float().unflatten(0, (-1, places_Rk.shape[1])).unbind(dim=1)
    scores = first @ torch.cat(others).T / temperature
    return F.cross_entropy(scores, torch.arange(len(first), device=scores.device))


def _encode(tokenizer: Tokenizer, examples: Examples, max_length: int) -> EncodedExamples:
    """Each text has a row of outputs; what it is for is its place in the example."""
    count = len(examples.sentences[0])
    places = np.tile(np.eye(count, dtype=np.float32), (len(examples), 1))
    whole = apart(tokenizer, examples, max_length, places)
    return replace(whole, label_offsets=np.arange(len(examples) + 1) * count)


def cosines(examples: EncodedExamples, vectors_RD: np.ndarray) -> np.ndarray:
    """(N,) float64 of the first two texts of each example."""
    first, second = vectors_RD.reshape(len(examples), -1, vectors_RD.shape[1]).astype(np.float64).swapaxes(0, 1)[:2]
    return (first * second).sum(axis=1)


def _said(
    examples: EncodedExamples, vectors_RD: np.ndarray, labels: Labels, all_labels: bool
) -> Iterator[dict[str, Any]]:
    yield from ({"prediction": float(cosine)} for cosine in cosines(examples, vectors_RD))


def _belonging(examples: Examples, config: FinetuneConfig) -> Examples:
    """The pairs whose number is at least `positives`; all where that is not set."""
    least = config.positives
    return examples if least is None else examples.only(i for i, n in enumerate(examples.labels) if n >= least)


def _mirrored(examples: Examples, config: FinetuneConfig) -> Examples:
    """Each text once, with itself as it is altered; the same for all seeds."""
    texts = dict.fromkeys(text for several in examples.sentences for text in several)
    return Examples([(text, altered(text)) for text in texts], [0.0] * len(texts))


def altered(text: str) -> str:
    """The text without a few characters in a row, drawn by the text alone; never empty."""
    draw = random.Random(text)
    count = min(LEFT_OUT, len(text) // 2)
    start = draw.randint(0, len(text) - count)
    return text[:start] + text[start + count :]


EMBEDDING = replace(
    REGRESSION,
    name="embedding",
    **{**SIAMESE, "head": Direction, "exports": ("sentence",)},
    texts=3,
    encode=_encode,
    outputs=lambda labels: 0,
    loss=info_nce,
    loss_settings=("temperature",),
    training=_belonging,
    train_labels=lambda config: config.positives is not None,
    decode=cosines,
    answers=_said,
    metrics=dict(reversed(REGRESSION.metrics.items())),  # Spearman's first, as cosines are no scale
    problem_type=None,
)
MIRROR = replace(EMBEDDING, name="mirror", training=_mirrored, train_labels=lambda config: False)
