"""Labelled texts to batches: a stream of real tokens for MosaicBERT, padded rows for Hugging Face's models.

What runs at a time is bounded in tokens, not in examples, so that neither memory nor time follows the longest text. A training
batch keeps its number of examples, the one that a protocol states, and is cut into microbatches whose gradients add up to its
own; what is only predicted is sorted by length first.

Shapes: N examples, S sequences of a batch, T real tokens, L the longest sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from recipe.finetune.examples import Examples

CHUNK = 4096  # texts that are tokenised at a time
Batch = dict[str, Tensor | int]


@dataclass(frozen=True)
class EncodedExamples:
    """Examples as token ids, one after another."""

    ids: np.ndarray  # int32, all tokens
    types: np.ndarray  # int8, 0 in the first text and 1 in the second
    offsets: np.ndarray  # (N + 1,) int64, where each example begins, and the end
    labels: np.ndarray  # (N,), int64 ids or float32 numbers
    truncated: int  # examples that were longer

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64, in tokens."""
        return np.diff(self.offsets)

    def stream(self, indices: Sequence[int]) -> Batch:
        """input_ids (T,), token_type_ids (T,), cu_seqlens (S + 1,) int32, max_seqlen, labels (S,)."""
        chosen = np.asarray(indices)
        lengths = self.lengths[chosen]
        cu_seqlens = np.concatenate([[0], lengths.cumsum()])
        # a token's place in `ids`: its example's start, and how far it is from its sequence's start in the stream
        places = np.repeat(self.offsets[chosen] - cu_seqlens[:-1], lengths) + np.arange(cu_seqlens[-1])
        return {
            "input_ids": torch.from_numpy(self.ids[places].astype(np.int64)),
            "token_type_ids": torch.from_numpy(self.types[places].astype(np.int64)),
            "cu_seqlens": torch.from_numpy(cu_seqlens.astype(np.int32)),
            "max_seqlen": int(lengths.max()),
            "labels": torch.from_numpy(self.labels[chosen]),
        }

    def padded(self, indices: Sequence[int], pad_id: int) -> Batch:
        """input_ids, attention_mask, token_type_ids, all (S, L) int64, and labels (S,)."""
        stream = self.stream(indices)
        real = torch.arange(stream["max_seqlen"])[None, :] < stream["cu_seqlens"].diff()[:, None]
        return {
            "input_ids": torch.full(real.shape, pad_id).masked_scatter(real, stream["input_ids"]),
            "attention_mask": real.long(),
            "token_type_ids": torch.zeros(real.shape, dtype=torch.int64).masked_scatter(real, stream["token_type_ids"]),
            "labels": stream["labels"],
        }


def encode(tokenizer: Tokenizer, examples: Examples, max_length: int) -> EncodedExamples:
    """Tokenise with [CLS] and [SEP]; of a pair that is too long, the longer text is cut first.

    A special token's name in a text, such as [MASK], is plain text.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    ids, types, lengths, truncated = [], [], [], 0
    for start in range(0, len(examples), CHUNK):
        texts = [two if len(two) == 2 else two[0] for two in examples.sentences[start : start + CHUNK]]
        for encoding in tokenizer.encode_batch(texts):
            ids.append(np.array(encoding.ids, dtype=np.int32))
            types.append(np.array(encoding.type_ids, dtype=np.int8))
            lengths.append(len(encoding.ids))
            truncated += bool(encoding.overflowing)
    return EncodedExamples(
        ids=np.concatenate(ids),
        types=np.concatenate(types),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.array(examples.labels, dtype=np.float32 if isinstance(examples.labels[0], float) else np.int64),
        truncated=truncated,
    )


@dataclass(frozen=True)
class Form:
    """How a model takes its batches: as streams, or, with `pad_id`, as padded rows; at most `max_tokens` at a time."""

    max_tokens: int  # padding included, where there is any
    pad_id: int | None = None

    def batch(self, examples: EncodedExamples, indices: Sequence[int]) -> Batch:
        return examples.stream(indices) if self.pad_id is None else examples.padded(indices, self.pad_id)

    def parts(self, examples: EncodedExamples, indices: Sequence[int]) -> list[list[int]]:
        """`indices` in parts of at most `max_tokens`, by falling length; in their own order where one part holds them all.

        A single text that is longer is a part of its own.
        """
        lengths = examples.lengths
        parts: list[list[int]] = []
        room = 0
        for index in sorted(indices, key=lambda i: -lengths[i]):
            longest = lengths[parts[-1][0]] if parts and self.pad_id is not None else lengths[index]
            if not parts or longest > room:
                parts.append([])
                longest, room = lengths[index], self.max_tokens
            parts[-1].append(index)
            room -= longest
        return [list(indices)] if len(parts) == 1 else parts

    def microbatches(self, examples: EncodedExamples, indices: Sequence[int]) -> list[Batch]:
        """One batch in as many pieces as its tokens need."""
        return [self.batch(examples, part) for part in self.parts(examples, indices)]


def count_tokens(batch: Batch) -> int:
    """Real tokens of either form."""
    return len(batch["input_ids"]) if "cu_seqlens" in batch else int(batch["attention_mask"].sum())


def count_sequences(batch: Batch) -> int:
    return len(batch["labels"])
