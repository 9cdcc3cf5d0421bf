"""The table of where word embeddings begin: `model.initial_words`. What it needs is imported where it is used, so that the table
needs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipe.config import TrainConfig
    from recipe.data.documents import Documents
    from recipe.model.config import EncoderConfig

RANDOM = "random"
MOST_TOKENS = 10_000_000  # that are counted


@dataclass(frozen=True)
class Row:
    """What counts of the text give; without any of it, nothing is counted."""

    bias: bool = False  # of the decoder
    embeddings: bool = False


INITIAL_WORDS = {RANDOM: Row(), "frequencies": Row(bias=True), "counts": Row(bias=True, embeddings=True)}


@dataclass(frozen=True)
class Words:
    """On the CPU, for ids below V: the vocabulary, of which a model may have more rows."""

    tokens: int  # that were counted
    bias_V: Tensor | None
    embeddings_VD: Tensor | None  # 0 for tokens that nothing is known of


def learn(config: TrainConfig, documents: Documents, encoder: EncoderConfig, vocabulary: int) -> Words:
    """Raises:
    UserError: a shard that cannot be fetched, or is not what the index says.
    """
    from recipe.data import cooccurrence
    from recipe.model import word_vectors

    row = INITIAL_WORDS[config.model.initial_words]
    counts = cooccurrence.count(
        documents, vocabulary, MOST_TOKENS, config.data.sequence_length - 2, near=row.embeddings
    )
    bias_V = word_vectors.log_frequencies(counts.frequency_V) if row.bias else None
    embeddings_VD = None
    if counts.near_VV is not None:
        settings = (encoder.hidden_size, encoder.initializer_range, config.seed)
        embeddings_VD = word_vectors.word_vectors(counts.near_VV, *settings)
    return Words(counts.tokens, bias_V, embeddings_VD)


def put(model: nn.Module, names: Sequence[str], words: Words) -> None:
    """Into a model's parameters that have a row per entry of the vocabulary, the word embeddings the first of `names`; a model
    without a decoder has no bias to begin. Rows of tokens that nothing is known of stay as they are."""
    import torch

    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name in set(names[1:]) & set(parameters):
            if words.bias_V is not None and parameters[name].dim() == 1:
                parameters[name][: len(words.bias_V)] = words.bias_V
        if words.embeddings_VD is not None:
            known_V = words.embeddings_VD.any(dim=1)
            rows_VD = parameters[names[0]][: len(known_V)]
            rows_VD.copy_(torch.where(known_V[:, None], words.embeddings_VD, rows_VD))
