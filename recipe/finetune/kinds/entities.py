"""A label for each word of a text that was split into words beforehand; a linear layer reads the first sub-word of each.

The words are joined by spaces and tokenised as running text, because what a byte-level or Unigram vocabulary learnt of a word is
the word with the space before it. A text that is too long becomes overlapping windows, and a word is read where the nearer of the
window's ends is farthest.

Shapes: N texts, R tokens of all their windows, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from scipy import special
from tokenizers import Encoding, Tokenizer
from torch import Tensor, nn

from recipe.finetune.batches import CHUNK, IGNORED_LABEL, EncodedExamples, joined
from recipe.finetune.entities import OUTSIDE, f1_by_type, not_iob2
from recipe.finetune.examples import WORD_BREAK, Examples
from recipe.finetune.kinds.kind import Kind, Labels
from recipe.finetune.kinds.sequence import balanced_classes

OVERLAP = 4  # a window repeats a quarter of the one before


class TokenHead(nn.Module):
    def __init__(self, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, outputs)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """(T, C) of every token."""
        return self.classifier(self.dropout(hidden_TD))


def token_loss(logits_TC: Tensor, labels_T: Tensor, weights_C: Tensor | None = None) -> Tensor:
    """The mean cross-entropy over the tokens that have a label, a float32 scalar, 0 where none has; labels are int64 ids, -100
    for none."""
    total = F.cross_entropy(logits_TC.float(), labels_T, weights_C, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (labels_T != IGNORED_LABEL).sum().clamp(min=1)


class BadTag(ValueError):
    """`place` says which of an example's tags it is."""

    def __init__(self, place: int, problem: str) -> None:
        super().__init__(problem)
        self.place = place


def _read(tags: Sequence[str], labels: Labels) -> list[int]:
    if bad := not_iob2(tags):
        raise BadTag(*bad)
    if unknown := [place for place, tag in enumerate(tags) if tag not in labels]:
        raise BadTag(unknown[0], f"tag `{tags[unknown[0]]}`; known are {', '.join(labels)}")
    return [labels.index(tag) for tag in tags]


def _encode(tokenizer: Tokenizer, examples: Examples, max_length: int) -> EncodedExamples:
    """`labels` stand for the first token of each word in one of its text's windows; texts without labels get 0 there."""
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(max_length, stride=max_length // OVERLAP)
    windows, labels, words, lengths, ends = [], [], [], [], [0]
    for start in range(0, len(examples), CHUNK):
        texts = [text.split(WORD_BREAK) for (text,) in examples.sentences[start : start + CHUNK]]
        found = tokenizer.encode_batch([" ".join(one) for one in texts])
        for number, (text, encoding) in enumerate(zip(texts, found, strict=True), start):
            tags = np.array(examples.labels[number] or [0] * len(text), dtype=np.int64)
            for window, heads in _heads(text, encoding):
                has_word = heads >= 0
                labels.append(np.where(has_word, tags[heads], IGNORED_LABEL))
                words.append(np.where(has_word, heads + ends[-1], -1))
                windows.append(window)
                lengths.append(len(heads))
            ends.append(ends[-1] + len(text))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    whole = joined(windows, np.concatenate(labels), offsets)
    return EncodedExamples(
        whole.ids, whole.types, whole.offsets, whole.labels, truncated=0, label_offsets=offsets,
        words=np.concatenate(words), word_offsets=np.array(ends),
    )  # fmt: skip


def _heads(text: Sequence[str], encoding: Encoding) -> Iterator[tuple[Encoding, np.ndarray]]:
    """Each window of a text, with the word that each of its tokens speaks for, -1 for none."""
    lengths = np.array([len(word) for word in text])
    ends = (lengths + 1).cumsum() - 1  # of each word, in characters
    windows = [encoding, *encoding.overflowing]
    places = [_words_of(window, ends - lengths, ends) for window in windows]
    first: dict[int, tuple[int, int, int, int]] = {}  # word: character, -distance from the ends, window, token
    for number, (words, begins) in enumerate(places):
        inside = np.flatnonzero(words >= 0)
        for token in inside[np.unique(words[inside], return_index=True)[1]].tolist():
            near = min(token - inside[0], inside[-1] - token)
            here = (int(begins[token]), -int(near), number, token)
            word = int(words[token])
            first[word] = min(first.get(word, here), here)
    heads = [np.full(len(words), -1) for words, _ in places]
    for word, (_, _, number, token) in first.items():
        heads[number][token] = word
    return zip(windows, heads, strict=True)


def _words_of(window: Encoding, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The word of each token, -1 for special tokens and spaces alone, and the character at which the token begins.

    A token belongs to the word of its last character: the first of a byte-level vocabulary may begin with the space before.
    """
    begins, last = np.array(window.offsets).T - np.array([[0], [1]])
    words = np.searchsorted(starts, last, side="right") - 1
    real = (last >= begins) & (np.array(window.special_tokens_mask) == 0) & (words >= 0)
    return np.where(real & (last < ends[words]), words, -1), begins


def _by_text(examples: EncodedExamples, of_rows: np.ndarray) -> list[np.ndarray]:
    """What the rows say, of each word of each text; 0 for a word of which the vocabulary has left nothing."""
    spoken = examples.words >= 0
    of_words = np.zeros((examples.word_offsets[-1], *of_rows.shape[1:]), of_rows.dtype)
    of_words[examples.words[spoken]] = of_rows[spoken]
    return np.split(of_words, examples.word_offsets[1:-1])


def _decode(examples: EncodedExamples, logits_RC: np.ndarray) -> list[list[int]]:
    return [ids.tolist() for ids in _by_text(examples, logits_RC.argmax(axis=1))]


def _said(
    examples: EncodedExamples, logits_RC: np.ndarray, labels: Labels, all_labels: bool
) -> Iterator[dict[str, Any]]:
    for p_WC in _by_text(examples, special.softmax(logits_RC, axis=1)):
        said = {"prediction": [labels[i] for i in p_WC.argmax(axis=1)], "probability": p_WC.max(axis=1).tolist()}
        every = {"probabilities": [dict(zip(labels, p_C, strict=True)) for p_C in p_WC.tolist()]} if all_labels else {}
        yield said | every


def _most_common(train: Sequence[list[int]], gold: Sequence[list[int]]) -> list[list[int]]:
    best = int(np.bincount(np.concatenate(train)).argmax())
    return [[best] * len(tags) for tags in gold]


def _tags(ids: Sequence[Sequence[int]], labels: Labels) -> list[list[str]]:
    return [[labels[i] for i in one] for one in ids]


def _accuracy(gold: Sequence[list[int]], predicted: Sequence[list[int]], labels: Labels) -> float:
    return float(np.mean(np.concatenate(gold) == np.concatenate(predicted)))


def _entity_f1(gold: Sequence[list[int]], predicted: Sequence[list[int]], labels: Labels) -> float:
    return f1_by_type(_tags(gold, labels), _tags(predicted, labels))[0]


def _by_type(gold: Sequence[list[int]], predicted: Sequence[list[int]], labels: Labels) -> dict[str, Any]:
    by_type = f1_by_type(_tags(gold, labels), _tags(predicted, labels))[1]
    return {"entity_f1": {kind: 100 * value for kind, value in by_type.items()}}


ENTITIES = Kind(
    name="entities",
    auto_class="AutoModelForTokenClassification",
    unlabelled=(),
    read=_read,
    encode=_encode,
    outputs=len,
    keep=lambda batch: None,
    head=TokenHead,
    loss=token_loss,
    decode=_decode,
    constant=_most_common,
    word=lambda ids, labels: " ".join(labels[i] for i in ids),
    metrics={"entity_f1": _entity_f1, "accuracy": _accuracy},
    answers=_said,
    words=lambda tags: sorted(set(tags), key=lambda tag: (tag != OUTSIDE, tag)),
    separator=" ",
    texts=1,
    word_per_line=True,
    balance=balanced_classes,
    details=_by_type,
    exports=("huggingface", "onnx"),
)
