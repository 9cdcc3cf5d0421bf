"""A kind of task with as many outputs as an example has tokens: a tag for each word, on the first token of it."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from recipe.finetune.batches import IGNORED_LABEL, EncodedExamples, encodings, joined
from recipe.finetune.examples import Examples
from recipe.finetune.kinds.kind import Kind, Labels
from recipe.finetune.tasks import Task


class TagHead(nn.Module):
    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(width, outputs)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        return self.classifier(self.dropout(hidden_TD))


def read(tags: str, labels: Labels) -> list[int]:
    if unknown := [tag for tag in tags.split() if tag not in labels]:
        raise ValueError(f"tag `{unknown[0]}`; known are {', '.join(labels)}")
    return [labels.index(tag) for tag in tags.split()]


def encode(tokenizer: Tokenizer, examples: Examples, max_length: int) -> EncodedExamples:
    words, labels, lengths = [text.split() for (text,) in examples.sentences], [], []
    found = list(encodings(tokenizer, words, max_length, is_pretokenized=True))
    for encoding, tags in zip(found, examples.labels, strict=True):
        places, before = encoding.word_ids, [None, *encoding.word_ids]
        starts = [word is not None and word != last for word, last in zip(places, before, strict=False)]
        labels += [tags[word] if starts[i] else IGNORED_LABEL for i, word in enumerate(places)]
        lengths.append(len(places))
    return joined(found, np.array(labels, dtype=np.int64), np.concatenate([[0], np.cumsum(lengths)]))


def decode(examples: EncodedExamples, logits_TC: np.ndarray) -> list[list[int]]:
    rows = (examples.rows([index]) for index in range(len(examples)))
    return [logits_TC[of_one][examples.labels[of_one] != IGNORED_LABEL].argmax(1).tolist() for of_one in rows]


def accuracy(gold: list[list[int]], predicted: list[list[int]], labels: Labels) -> float:
    right = [a == b for one, two in zip(gold, predicted, strict=True) for a, b in zip(one, two, strict=False)]
    return sum(right) / sum(map(len, gold))  # a word that was cut off is wrong


def most_common(train: list[list[int]], gold: list[list[int]]) -> list[list[int]]:
    return [[int(np.bincount(np.concatenate(train)).argmax())] * len(tags) for tags in gold]


TAGS = Kind("tags", "AutoModelForTokenClassification", [], read, encode, len, lambda batch: None, TagHead, F.cross_entropy,
            decode, most_common, lambda tags, labels: " ".join(labels[tag] for tag in tags), {"accuracy": accuracy})  # fmt: skip
WORDS = Task("Words", ("text",), "tags", ("short", "long"), ("accuracy",), 3e-3, 4, 8, 0.0, (19, 7), kind="tags")
