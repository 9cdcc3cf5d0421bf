"""One label for a pair of texts, each a sequence of its own: a class, or a number. Sentence-BERT's form (arXiv 1908.10084).

What two texts have in common a small encoder hardly learns through attention; here a linear layer reads it off the means of
their tokens' hidden states u and v: [u, v, |u - v|, u * v].
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from recipe.finetune.batches import Batch, EncodedExamples, encodings, joined, sequence_lengths
from recipe.finetune.examples import Examples
from recipe.finetune.kinds.sequence import CLASSIFICATION, REGRESSION


class SiameseHead(nn.Module):
    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(4 * width, outputs)

    def forward(self, means_SD: Tensor) -> Tensor:
        """(S / 2, C) of the texts' means, those of a pair one after the other."""
        u, v = means_SD[0::2], means_SD[1::2]
        return self.classifier(self.dropout(torch.cat([u, v, (u - v).abs(), u * v], dim=1)))


def mean_of_tokens(hidden_TD: Tensor, batch: Batch) -> Tensor:
    """(S, D) float32 of each sequence's hidden states."""
    lengths_S = sequence_lengths(batch)
    of_token_T = torch.arange(len(lengths_S), device=hidden_TD.device).repeat_interleave(
        lengths_S, output_size=len(hidden_TD)
    )
    sums_SD = hidden_TD.new_zeros((len(lengths_S), hidden_TD.shape[1]), dtype=torch.float32)
    return sums_SD.index_add(0, of_token_T, hidden_TD.float()) / lengths_S[:, None]


def apart(tokenizer: Tokenizer, examples: Examples, max_length: int, labels: np.ndarray) -> EncodedExamples:
    """Examples whose texts, k in each, are sequences of their own, of at most `max_length` tokens each."""
    texts = [text for several in examples.sentences for text in several]
    each, count = joined(encodings(tokenizer, texts, max_length), labels), len(texts) // max(len(examples), 1)
    first = None if each.first_truncated is None else each.first_truncated // count
    return replace(each, offsets=each.offsets[::count], bounds=each.offsets, first_truncated=first)


def _encode(tokenizer: Tokenizer, examples: Examples, max_length: int, dtype: type) -> EncodedExamples:
    """`max_length` is of each text."""
    return apart(tokenizer, examples, max_length, np.array(examples.labels, dtype=dtype))


SIAMESE: dict = {"auto_class": None, "keep": lambda batch: None, "pool": mean_of_tokens, "head": SiameseHead,
                 "least_texts": 2, "exports": ()}  # fmt: skip
SIAMESE_CLASSIFICATION = replace(
    CLASSIFICATION, name="siamese_classification", **SIAMESE, encode=partial(_encode, dtype=np.int64)
)
SIAMESE_REGRESSION = replace(
    REGRESSION, name="siamese_regression", **SIAMESE, encode=partial(_encode, dtype=np.float32)
)
# The kinds of one sequence that have a counterpart here.
APART = {CLASSIFICATION.name: SIAMESE_CLASSIFICATION.name, REGRESSION.name: SIAMESE_REGRESSION.name}
