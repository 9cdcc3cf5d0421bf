"""Labelled texts to batches: a stream of real tokens for MosaicBERT, padded rows for Hugging Face's models.

What runs at a time is bounded in tokens, not in examples, so that neither memory nor time follows the longest text. A training
batch keeps its number of examples, the one that a protocol states, and is cut into microbatches whose gradients add up to its
own; what is only predicted is sorted by length first.

Shapes: N examples, S sequences of a batch, T real tokens, L the longest sequence, R labels, one for each row of a head's outputs,
C numbers of such a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from recipe.data.batch import IGNORED_LABEL, Batch

CHUNK = 4096  # texts that are tokenised at a time


@dataclass(frozen=True)
class EncodedExamples:
    """Examples as token ids, one after another."""

    ids: np.ndarray  # int32, all tokens
    types: np.ndarray  # int8, 0 in the first text and 1 in the second
    offsets: np.ndarray  # (N + 1,) int64, where each example begins, and the end
    labels: np.ndarray  # (R,), int64 ids or float32 numbers; of several labels (R, C) float32, 0 or 1
    truncated: int  # examples that were longer
    label_offsets: np.ndarray | None = None  # (N + 1,) int64, where each example's labels begin; absent: it has one
    # (k N + 1,) int64, where each sequence begins, of examples whose k texts are sequences of their own; absent: one is one
    bounds: np.ndarray | None = None
    first_truncated: int | None = None  # the first of those that were longer
    # Where outputs stand for words, and a text too long is several of the N: of each row the word that it speaks for, counted
    # over all texts, or -1; and where each text's words begin, and the end.
    words: np.ndarray | None = None  # (R,) int64
    word_offsets: np.ndarray | None = None  # int64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64, in tokens."""
        return np.diff(self.offsets)

    def sequences(self, indices: np.ndarray) -> np.ndarray:
        """The lengths of the sequences of `indices`, one example after another."""
        return self._by_sequence[indices].ravel()

    @cached_property
    def _by_sequence(self) -> np.ndarray:
        """(N, k) int64, in tokens."""
        lengths = self.lengths if self.bounds is None else np.diff(self.bounds)
        return lengths.reshape(len(self), -1)

    @cached_property
    def widths(self) -> np.ndarray:
        """(N,) int64, the tokens that an example takes in rows of its own."""
        return self._by_sequence.shape[1] * self._by_sequence.max(axis=1)

    def rows(self, indices: Sequence[int]) -> np.ndarray:
        """The places among all labels of those of `indices`, one example after another."""
        return np.asarray(indices) if self.label_offsets is None else _places(self.label_offsets, np.asarray(indices))

    def stream(self, indices: Sequence[int]) -> Batch:
        """input_ids (T,), token_type_ids (T,), cu_seqlens (S + 1,) int32, max_seqlen, labels (R,); on the host `counts`, as in
        `recipe.data.batch`, with examples for sequences."""
        chosen = np.asarray(indices)
        lengths = self.sequences(chosen)
        places, labels = _places(self.offsets, chosen), self.labels[self.rows(chosen)]
        ignored = int((labels == IGNORED_LABEL).sum()) if labels.dtype == np.int64 else 0
        return {
            "input_ids": torch.from_numpy(self.ids[places].astype(np.int64)),
            "token_type_ids": torch.from_numpy(self.types[places].astype(np.int64)),
            "cu_seqlens": torch.from_numpy(np.concatenate([[0], lengths.cumsum()]).astype(np.int32)),
            "max_seqlen": int(lengths.max()),
            "labels": torch.from_numpy(labels),
            "counts": np.array([[len(chosen), len(places), int((lengths * lengths).sum()), len(labels) - ignored]]),
        }

    def padded(self, indices: Sequence[int], pad_id: int) -> Batch:
        """input_ids, attention_mask, token_type_ids, all (S, L) int64, indices (T,) int64, where in the flattened (S, L) the real
        tokens stand, and labels (R,) and `counts` as in a stream."""
        stream = self.stream(indices)
        real = torch.arange(stream["max_seqlen"])[None, :] < stream["cu_seqlens"].diff()[:, None]
        return {
            "input_ids": torch.full(real.shape, pad_id).masked_scatter(real, stream["input_ids"]),
            "attention_mask": real.long(),
            "token_type_ids": torch.zeros(real.shape, dtype=torch.int64).masked_scatter(real, stream["token_type_ids"]),
            "indices": real.flatten().nonzero()[:, 0],
            "labels": stream["labels"],
            "counts": stream["counts"],
        }


def _places(offsets: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Where what belongs to `chosen` stands: each one's start, and how far on from there."""
    lengths = np.diff(offsets)[chosen]
    ends = lengths.cumsum()
    return np.repeat(offsets[chosen] - ends + lengths, lengths) + np.arange(ends[-1])


def sequence_lengths(batch: Batch) -> Tensor:
    """(S,) int64, in real tokens."""
    return batch["cu_seqlens"].diff().long() if "cu_seqlens" in batch else batch["attention_mask"].sum(dim=1)


def first_tokens(batch: Batch) -> Tensor:
    """(S,) int64: where each sequence begins in a stream, or in the flattened rows of a padded batch."""
    if "cu_seqlens" in batch:
        return batch["cu_seqlens"][:-1].long()
    sequences, length = batch["input_ids"].shape
    return torch.arange(0, sequences * length, length, device=batch["input_ids"].device)


def encodings(
    tokenizer: Tokenizer, texts: Sequence, max_length: int, is_pretokenized: bool = False
) -> Iterator[Encoding]:
    """Tokenise texts or pairs of them with [CLS] and [SEP]; of a pair that is too long, the longer text is cut first.

    A special token's name in a text, such as [MASK], is plain text. Of what is `is_pretokenized` a text is a list of words.
    """
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    for start in range(0, len(texts), CHUNK):
        yield from tokenizer.encode_batch(list(texts[start : start + CHUNK]), is_pretokenized=is_pretokenized)


def joined(found: Iterable[Encoding], labels: np.ndarray, label_offsets: np.ndarray | None = None) -> EncodedExamples:
    """Encodings with their labels (R,)."""
    ids, types, cut = [], [], []
    for number, encoding in enumerate(found):
        ids.append(np.array(encoding.ids, dtype=np.int32))
        types.append(np.array(encoding.type_ids, dtype=np.int8))
        if encoding.overflowing:
            cut.append(number)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])])
    first = cut[0] if cut else None
    return EncodedExamples(
        np.concatenate(ids), np.concatenate(types), offsets, labels, len(cut), label_offsets, first_truncated=first
    )


@dataclass(frozen=True)
class ExampleCollator:
    """How a model takes its batches: as streams, or, with `pad_id`, as padded rows; at most `max_tokens` at a time."""

    max_tokens: int  # padding included, where there is any
    pad_id: int | None = None

    def batch(self, examples: EncodedExamples, indices: Sequence[int]) -> Batch:
        return examples.stream(indices) if self.pad_id is None else examples.padded(indices, self.pad_id)

    def parts(self, examples: EncodedExamples, indices: Sequence[int]) -> list[list[int]]:
        """`indices` in parts of at most `max_tokens`, by falling length; in their own order where one part holds them all.

        A single text that is longer is a part of its own.
        """
        lengths = examples.lengths if self.pad_id is None else examples.widths
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


def outputs_of(
    forward: Callable[[Batch], Tensor], examples: EncodedExamples, collator: ExampleCollator, device: str | torch.device
) -> np.ndarray:
    """(R, C) float32, in the order of the examples' labels; `forward` is a model that is in evaluation.

    Batches of so few tokens do not keep a CPU's threads busy together, so there each thread runs batches of its own.
    """
    parts, outputs = collator.parts(examples, range(len(examples))), None

    def found_of(part: list[int]) -> np.ndarray:
        batch = collator.batch(examples, part)
        batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        with torch.no_grad():  # a thread's own
            return forward(batch).float().cpu().numpy()

    threads = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
    with side_by_side(min(threads, len(parts))) as each:
        for part, found in zip(parts, each(found_of, parts), strict=True):
            if outputs is None:
                outputs = np.empty((len(examples.labels), found.shape[1]), np.float32)
            outputs[examples.rows(part)] = found
    return outputs


@contextmanager
def side_by_side(workers: int) -> Iterator[Callable[..., Iterable]]:
    """A `map` whose calls run in so many threads, among which torch's own are divided; of one, the built-in."""
    if workers <= 1:
        yield map
        return
    threads = torch.get_num_threads()
    own = threads // workers
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(own,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)  # what threads begin with that are made from now on
