"""Batches: the stream and the padded form say the same, and microbatches are the whole, cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from recipe.data.batch import (
    IGNORED_LABEL,
    Collate,
    Collator,
    PaddedCollator,
    Samples,
    count_sequences,
    count_tokens,
    pad_batch,
    split_batch,
)
from recipe.data.masking import Masker

CLS, SEP, PAD, MASK, VOCABULARY = 2, 3, 0, 4, 1_000
LENGTHS = [5, 0, 1, 126, 127, 200, 0, 62, 63, 1]  # without [CLS] and [SEP]; 126 is the most that fits into 128


def documents(lengths: list[int], epoch: int = 0) -> Samples:
    draw = np.random.default_rng(11)
    numbers = draw.permutation(1_000)[: len(lengths)]
    return Samples([draw.integers(5, VOCABULARY, n).astype(np.uint16) for n in lengths], numbers, epoch, seen=0)


def collator(padded: bool, rate: float = 0.3, sequence_length: int = 128) -> Collate:
    masker = Masker(rate, MASK, np.arange(5, VOCABULARY), seed=17)
    streams = Collator(sequence_length, masker, CLS, SEP)
    return PaddedCollator(streams, PAD) if padded else streams


def unmasked(batch: dict) -> torch.Tensor:
    """A stream's tokens as they were before masking."""
    ids = batch["input_ids"].clone()
    ids[batch["masked_indices"]] = batch["labels"]
    return ids


def looked_up(batch: dict) -> list[list[int]]:
    """What `counts` of either form must say, from the tensors."""
    if "cu_seqlens" in batch:
        bounds, masked = batch["cu_seqlens"].tolist(), batch["masked_indices"]
        found = [(b - a, int(((a <= masked) & (masked < b)).sum())) for a, b in pairwise(bounds)]
    else:
        labelled = (batch["labels"] != IGNORED_LABEL).sum(1)
        found = list(zip(batch["attention_mask"].sum(1).tolist(), labelled.tolist(), strict=True))
    return [[1, tokens, tokens**2, masked] for tokens, masked in found]


def test_stream_holds_the_documents():
    items = documents(LENGTHS)
    batch = collator(padded=False)(items)
    pieces = np.split(unmasked(batch).numpy(), batch["cu_seqlens"][1:-1].numpy())
    assert len(pieces) == len(items.pieces)
    for piece, tokens in zip(pieces, items.pieces, strict=True):
        assert piece.tolist() == [CLS, *tokens[:126].tolist(), SEP]
    assert batch["cu_seqlens"].dtype == torch.int32
    assert batch["max_seqlen"] == 128 and type(batch["max_seqlen"]) is int
    assert batch["document_ids"].tolist() == items.numbers.tolist()
    assert batch["counts"][:, 1].tolist() == [min(n, 126) + 2 for n in LENGTHS]
    for name in ("input_ids", "masked_indices", "labels", "document_ids"):
        assert batch[name].dtype == torch.int64


def test_specials_keep_their_places_at_every_rate():
    batch = collator(padded=False, rate=0.999)(documents(LENGTHS))
    starts, ends = batch["cu_seqlens"][:-1].long(), batch["cu_seqlens"][1:].long() - 1
    assert (batch["input_ids"][starts] == CLS).all() and (batch["input_ids"][ends] == SEP).all()
    assert not np.isin(batch["masked_indices"], torch.cat([starts, ends])).any()
    assert not np.isin(batch["labels"], [CLS, SEP, PAD, MASK]).any()


def test_unknown_words_are_never_masked():
    unknown, items = 1, documents(LENGTHS)
    for tokens in items.pieces:
        tokens[::2] = unknown
    batch = collator(padded=False, rate=0.999)(items)
    assert len(batch["labels"]) > 100 and not (batch["labels"] == unknown).any()


@pytest.mark.parametrize("lengths", [LENGTHS, [0], [1], [300], [0, 0, 0], [3] * 7, [126, 0]])
def test_both_forms_agree(lengths):
    stream, padded = (collator(form)(documents(lengths)) for form in (False, True))
    real = padded["attention_mask"].bool()
    assert torch.equal(padded["input_ids"][real], stream["input_ids"])
    assert (padded["input_ids"][~real] == PAD).all()
    labels = padded["labels"][real]
    assert torch.equal((labels != IGNORED_LABEL).nonzero().flatten(), stream["masked_indices"])
    assert torch.equal(labels[labels != IGNORED_LABEL], stream["labels"])
    assert torch.equal(padded["labels"].flatten()[padded["masked_indices"]], stream["labels"])
    assert (padded["labels"][~real] == IGNORED_LABEL).all()
    assert padded["counts"].tolist() == stream["counts"].tolist() == looked_up(padded) == looked_up(stream)
    assert padded["input_ids"].shape == (len(lengths), stream["max_seqlen"])
    assert count_tokens(padded) == count_tokens(stream)
    assert count_tokens(stream) == {
        "total": sum(min(n, 126) + 2 for n in lengths),
        "loss_generating": len(stream["labels"]),
    }
    assert count_sequences(padded) == count_sequences(stream) == len(lengths)
    assert torch.equal(padded["document_ids"], stream["document_ids"])
    # the real tokens are at the front of each row
    assert torch.equal(real.long().cummin(dim=1).values, real.long())


@pytest.mark.parametrize("sequence_length", [3, 4, 64, 128, 512])
def test_cut_to_length(sequence_length):
    items = documents([1, 2, 3, 500, 510, 511])
    batch = collator(False, sequence_length=sequence_length)(items)
    assert batch["max_seqlen"] == batch["counts"][:, 1].max() == sequence_length
    pieces = np.split(unmasked(batch).numpy(), batch["cu_seqlens"][1:-1].numpy())
    for piece, tokens in zip(pieces, items.pieces, strict=True):
        assert piece[1:-1].tolist() == tokens[: sequence_length - 2].tolist()


def test_a_mask_does_not_depend_on_the_batch():
    items = documents(LENGTHS)
    whole = collator(False)(items)
    bounds = whole["cu_seqlens"].tolist()
    for i in reversed(range(len(LENGTHS))):
        alone = collator(False)(Samples(items.pieces[i : i + 1], items.numbers[i : i + 1], 0, 0))
        assert torch.equal(alone["input_ids"], whole["input_ids"][bounds[i] : bounds[i + 1]])


def test_the_epoch_reaches_the_mask():
    first, again, later = (collator(False)(documents(LENGTHS, epoch)) for epoch in (0, 0, 1))
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["masked_indices"], later["masked_indices"])
    assert torch.equal(unmasked(first), unmasked(later))


def test_documents_are_not_written_to():
    items = documents(LENGTHS)
    before = [tokens.copy() for tokens in items.pieces]
    for tokens in items.pieces:
        tokens.flags.writeable = False  # as a shard's bytes are
    collator(True)(items)
    assert all(np.array_equal(tokens, old) for tokens, old in zip(items.pieces, before, strict=True))


@pytest.mark.parametrize("padded", [False, True])
def test_nothing_is_predicted_in_filling(padded):
    """What a rank gets of an evaluation's last batch where there are fewer documents than ranks."""
    filling = documents([50])
    batch = collator(padded, rate=0.9)(Samples(filling.pieces, np.array([-1]), 0, 0))
    assert count_tokens(batch) == {"total": 52, "loss_generating": 0}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sequences", [1, 2, 3, 9, 10, 11, 1_000])
def test_pieces_make_the_whole(padded, sequences):
    batch = collator(padded)(documents(LENGTHS))
    pieces = split_batch(batch, sequences)
    counts = [count_sequences(piece) for piece in pieces]
    assert sum(counts) == len(LENGTHS) and max(counts) <= sequences
    assert all(count == sequences for count in counts[:-1])
    assert all(piece.keys() == batch.keys() for piece in pieces)
    assert all(piece["counts"].tolist() == looked_up(piece) for piece in pieces)
    assert np.array_equal(np.concatenate([piece["counts"] for piece in pieces]), batch["counts"])
    for name in batch.keys() & {"document_ids", "input_ids", "labels", "attention_mask"}:
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), batch[name])
    offsets = np.cumsum([0] + [piece["input_ids"].numel() for piece in pieces])[:-1]
    masked = [piece["masked_indices"] + int(at) for piece, at in zip(pieces, offsets, strict=True)]
    assert torch.equal(torch.cat(masked), batch["masked_indices"])
    for piece in pieces if not padded else ():
        assert piece["cu_seqlens"][0] == 0 and piece["cu_seqlens"][-1] == len(piece["input_ids"])
        assert piece["cu_seqlens"].dtype == torch.int32
        assert piece["max_seqlen"] == piece["counts"][:, 1].max()
        assert torch.equal(unmasked(piece)[piece["masked_indices"]], piece["labels"])
    totals = [count_tokens(piece) for piece in pieces]
    assert {name: sum(total[name] for total in totals) for name in totals[0]} == count_tokens(batch)


def test_splitting_and_padding_commute():
    """A microbatch of the padded form is the padded microbatch of the stream, but for columns of padding."""
    stream, padded = (collator(form)(documents(LENGTHS)) for form in (False, True))
    for of_stream, of_padded in zip(split_batch(stream, 3), split_batch(padded, 3), strict=True):
        own = pad_batch(of_stream, PAD)
        width = own["input_ids"].shape[1]
        for name in ("input_ids", "attention_mask", "labels"):
            assert torch.equal(of_padded[name][:, :width], own[name])
        assert not of_padded["attention_mask"][:, width:].any()
        assert torch.equal(of_padded["labels"].flatten()[of_padded["masked_indices"]], of_stream["labels"])
