"""Packed batches: the same shapes each time, each document by itself, and one stream for any ranks, workers and resumes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from kernels import backends
from recipe.config import Data
from recipe.data import packing, sampler
from recipe.data.batch import (
    BIN_SEQUENCES,
    IGNORED_LABEL,
    Collator,
    Samples,
    count_sequences,
    count_tokens,
    split_batch,
)
from recipe.data.masking import Masker
from recipe.data.packing import PackedBatchSampler, PackedCollator, fill
from recipe.data.sampler import EpochSampler
from recipe.data.shards import read_info
from recipe.data.stream import Loader
from recipe.errors import UserError
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForMaskedLM
from tests.hashing import hashes
from tests.tiny.texts import open_batches

CLS, SEP, PAD, MASK, VOCABULARY, LENGTH = 2, 3, 0, 4, 192, 16


def packed(lengths: list[int], bins: int, rate: float = 0.3) -> tuple[dict, dict]:
    """The documents as a packed batch and as a stream."""
    draw = np.random.default_rng(5)
    pieces = [draw.integers(5, VOCABULARY, n).astype(np.uint16) for n in lengths]
    collator = Collator(LENGTH, Masker(rate, MASK, np.arange(5, VOCABULARY), 17), CLS, SEP)
    sizes = np.minimum(lengths, LENGTH - 2) + 2
    at = np.array(fill(sizes, bins, BIN_SEQUENCES * LENGTH))
    assert len(at) == len(lengths), "the test's documents should fit"
    order = np.argsort(at, kind="stable")
    samples = Samples([pieces[i] for i in order], order, 0, 0, at[order])
    return PackedCollator(collator, LENGTH, PAD, rate, bins)(samples), collator(samples)


def numbers(epoch: EpochSampler, position: int) -> Iterator[np.ndarray]:
    return (block.numbers for block in epoch.after(position))


def test_documents_go_where_least_room_is_left_and_stop_at_the_first_that_fits_nowhere():
    assert fill(np.array([5, 4, 4, 5, 6, 1, 9, 3]), bins=2, capacity=10) == [0, 0, 1, 1]
    assert fill(np.array([9, 3, 7, 1, 1]), bins=2, capacity=10) == [0, 1, 1, 0]
    draw = np.random.default_rng(1)
    sizes = draw.integers(3, 65, 3_000)
    bins = fill(sizes, 32, 512)
    used = np.bincount(bins, sizes[: len(bins)])
    assert used.max() <= 512 and sizes[len(bins)] > 512 - used.min()
    assert used.sum() > 0.97 * 32 * 512
    assert np.bincount(fill(np.full(500, 3), 2, 512)).tolist() == [32, 32], "so many documents have a place in a bin"


def test_a_plan_from_the_middle_is_the_rest_of_the_plan(monkeypatch):
    monkeypatch.setattr(sampler, "_BLOCK", 100)  # batches that span blocks
    lengths = np.random.default_rng(2).integers(1, 200, 2_000).astype(np.uint16)
    packer, epoch = PackedBatchSampler(lengths, 32, bins=3), EpochSampler([100] * 20, 5, 0)
    plan = list(packer.batches(numbers(epoch, 0), 0))
    assert (
        np.concatenate([p.numbers for p in plan]).tolist()
        == np.concatenate(list(numbers(epoch, 0)))[: plan[-1].seen + len(plan[-1].numbers)].tolist()
    )
    for start in (1, 7, len(plan) - 1):
        rest = list(packer.batches(numbers(epoch, plan[start].seen), plan[start].seen))
        assert [p.seen for p in rest] == [p.seen for p in plan[start:]]
        assert all(
            (a.numbers == b.numbers).all() and (a.bins == b.bins).all() for a, b in zip(rest, plan[start:], strict=True)
        )


@pytest.mark.parametrize("lengths", [[3, 14, 200, 1, 14, 9, 9, 2] * 3, [14] * 16, [1]])
def test_a_packed_batch_holds_the_stream(lengths):
    batch, stream = packed(lengths, bins=2)
    capacity = BIN_SEQUENCES * LENGTH
    shapes = {name: tuple(value.shape) for name, value in batch.items() if torch.is_tensor(value)}
    slots, room = 40, 48
    assert shapes == {
        "document_ids": (2 * slots,),
        "input_ids": (2 * capacity,),
        "cu_seqlens": (2 * slots + 1,),
        "masked_indices": (2 * room,),
        "labels": (2 * room,),
    }
    real = batch["document_ids"] >= 0
    ends = batch["cu_seqlens"].tolist()
    assert ends[slots] == capacity and ends[-1] == 2 * capacity
    assert max(np.diff(ends)) <= LENGTH == batch["max_seqlen"]
    pieces = [batch["input_ids"][ends[i] : ends[i + 1]] for i in range(2 * slots)]
    assert torch.equal(torch.cat([p for p, r in zip(pieces, real, strict=True) if r]), stream["input_ids"])
    filling = [p for p, r in zip(pieces, real, strict=True) if not r]
    assert not torch.cat(filling).any(), "filling is [PAD]"
    assert torch.equal(batch["document_ids"][real], stream["document_ids"])
    assert count_tokens(batch) == count_tokens(stream) and count_sequences(batch) == len(lengths)
    labelled = batch["labels"] != IGNORED_LABEL
    for b, counts in enumerate(batch["counts"].tolist()):
        lengths_of_bin = np.diff(ends)[b * slots : (b + 1) * slots][real[b * slots : (b + 1) * slots].numpy()]
        predicted = int(labelled[b * room : (b + 1) * room].sum())
        assert counts == [len(lengths_of_bin), lengths_of_bin.sum(), (lengths_of_bin**2).sum(), predicted]
    assert torch.equal(batch["labels"][labelled], stream["labels"])
    assert torch.equal(
        batch["input_ids"][batch["masked_indices"]][labelled], stream["input_ids"][stream["masked_indices"]]
    )


def test_microbatches_are_bins():
    batch, _ = packed([14, 9, 3] * 14, bins=4)
    pieces = split_batch(batch, 2 * BIN_SEQUENCES)
    assert [len(piece["counts"]) for piece in pieces] == [2, 2]
    assert sum(count_sequences(piece) for piece in pieces) == count_sequences(batch) == 42
    assert torch.equal(torch.cat([piece["input_ids"] for piece in pieces]), batch["input_ids"])
    for piece in pieces:
        assert piece["cu_seqlens"][0] == 0 and piece["cu_seqlens"][-1] == len(piece["input_ids"])
        at = piece["masked_indices"][piece["labels"] != IGNORED_LABEL]
        assert len(at) == count_tokens(piece)["loss_generating"] and at.max() < len(piece["input_ids"])


def test_predictions_that_have_no_room_are_not_made(monkeypatch):
    monkeypatch.setattr(packing, "_SPARE", 0.5)
    batch, stream = packed([14] * 8, bins=1)
    room = len(batch["labels"])
    assert count_tokens(batch)["loss_generating"] == room < len(stream["labels"])
    assert torch.equal(batch["labels"], stream["labels"][:room])
    before = stream["input_ids"].clone()
    before[stream["masked_indices"][room:]] = stream["labels"][room:]
    assert torch.equal(batch["input_ids"], before)


def test_the_model_sees_each_document_by_itself():
    """Loss and gradients of a packed batch are those of the same documents as a stream, to float32's precision."""
    sizes = EncoderConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                          hidden_dropout_prob=0.0)  # fmt: skip
    needs = backends.Requirements("cpu", torch.float32, sizes.head_dim, 0.0)
    chosen = Backends(*(backends.resolve(kind, "auto", needs) for kind in ("attention", "kernels")))
    torch.manual_seed(0)
    model = MosaicBertForMaskedLM(sizes, chosen)
    results = []
    for batch in packed([3, 14, 200, 1, 14, 9, 9, 2], bins=2):
        model.zero_grad()
        loss, accuracy = model(batch).values()
        loss.backward()
        results.append([loss.detach(), accuracy, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture
def open_packed(tiny_dataset) -> Callable[..., Loader]:
    data = Data(path=str(tiny_dataset), sequence_length=64, masking="word")
    return functools.partial(open_batches, data, batching="tokens")


def test_an_epoch_sees_each_document_at_most_once_and_nearly_all(open_packed, tiny_dataset):
    documents = read_info(tiny_dataset).split("train").documents
    loader = open_packed()
    epochs = [list(loader), list(loader)]
    for batches in epochs:
        numbers = torch.cat([batch["document_ids"] for batch in batches])
        numbers = numbers[numbers >= 0].tolist()
        assert len(numbers) == len(set(numbers)) > 0.95 * documents
        filled = sum(count_tokens(batch)["total"] for batch in batches) / (len(batches) * 32 * 64)
        assert filled > 0.95
        assert (
            len({tuple(b[n].shape for n in ("input_ids", "cu_seqlens", "labels", "document_ids")) for b in batches})
            == 1
        )
    assert hashes(epochs[0][0]) != hashes(epochs[1][0])


def test_a_dataset_that_cannot_be_packed_is_refused(open_packed):
    with pytest.raises(UserError, match="not one batch of 512,000 tokens in it; lower batch_size"):
        open_packed(8_000)
