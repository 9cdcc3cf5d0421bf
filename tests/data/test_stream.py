"""The loader on real shards: every document once, masks by epoch, the same from any worker, and exact after a resume."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recipe.config import Data
from recipe.data.batch import IGNORED_LABEL, count_sequences
from recipe.data.shards import read_info
from recipe.data.stream import Loader, check_vocabulary
from recipe.errors import UserError
from tests.tiny.texts import open_batches

BATCH = 64
RUN = 5_000  # documents, for a masking rate that changes


@pytest.fixture
def open_tiny(tiny_dataset: Path) -> Callable[..., Loader]:
    """A function that opens a loader of the tiny dataset."""
    data = Data(path=str(tiny_dataset), sequence_length=64)
    return functools.partial(open_batches, data=data, batch_size=BATCH)


def equal(first: list[dict], second: list[dict]) -> bool:
    """Whether two lists of batches hold the same, to the last element."""
    return len(first) == len(second) and all(
        a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
        for a, b in zip(first, second, strict=True)
    )


def seen(batches: list[dict]) -> list[int]:
    return torch.cat([batch["document_ids"] for batch in batches]).tolist()


def by_document(batches: list[dict]) -> dict[int, list[int]]:
    """Masked token ids of each document."""
    pieces = {}
    for batch in batches:
        bounds = batch["cu_seqlens"].tolist()
        for i, number in enumerate(batch["document_ids"].tolist()):
            pieces[number] = batch["input_ids"][bounds[i] : bounds[i + 1]].tolist()
    return pieces


def test_training_sees_each_document_once_an_epoch(open_tiny, tiny_dataset):
    documents = read_info(tiny_dataset).split("train").documents
    whole = max(size for size in range(1, 100) if documents % size == 0)
    for batch_size in (whole, 57):
        loader = open_tiny(batch_size=batch_size)
        for _ in range(2):
            numbers = seen(list(loader))
            assert len(numbers) == len(set(numbers)) == documents - documents % batch_size
            assert set(numbers) <= set(range(documents))


def test_evaluation_sees_the_whole_split(open_tiny, tiny_dataset):
    documents = read_info(tiny_dataset).split("validation").documents
    batches = list(open_tiny(train=False))
    assert documents % BATCH, "the last batch should be a short one"
    assert sorted(seen(batches)) == list(range(documents))


def test_the_shards_text_arrives(open_tiny, tiny_dataset):
    """Decoded, an unmasked document is a lower-cased paragraph of the source."""
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(tiny_dataset / "tokenizer")
    source = (tiny_dataset.parent / "topics.jsonl").read_text().lower()
    squeezed = "".join(filter(str.isalnum, source.replace("\\n", "").replace('\\"', "")))
    batch = next(iter(open_tiny()))
    ids = batch["input_ids"].clone()
    ids[batch["masked_indices"]] = batch["labels"]
    bounds = batch["cu_seqlens"].tolist()
    found = 0
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        text = "".join(filter(str.isalnum, tokenizer.decode(ids[start + 1 : end - 1])))
        found += text in squeezed
    assert found > 0.9 * BATCH


def test_order_and_masks_change_with_the_epoch(open_tiny):
    loader = open_tiny()
    first, second = list(loader), list(loader)
    assert seen(first) != seen(second)
    masks, masks_2 = by_document(first), by_document(second)
    both = [number for number in masks.keys() & masks_2.keys() if len(masks[number]) > 20]
    assert len(both) > 500
    assert not any(masks[number] == masks_2[number] for number in both)


def test_evaluation_masks_never_change(open_tiny):
    loader = open_tiny(train=False)
    first, second = list(loader), list(loader)
    assert equal(first, second)
    del loader
    third = by_document(list(open_tiny(train=False, batch_size=7, seed=99)))
    assert by_document(first) == third
    rates = [sum(len(b["labels"]) for b in batches) / sum(len(b["input_ids"]) for b in batches) for batches in [first]]
    assert 0.12 < rates[0] < 0.16  # 15 % of the ordinary tokens


def test_another_seed_gives_another_mask(open_tiny):
    first = by_document(list(open_tiny(seed=17)))
    second = by_document(list(open_tiny(seed=18)))
    assert first.keys() == second.keys() and first != second


@pytest.mark.parametrize("train", [True, False])
def test_workers_change_nothing(open_tiny, train):
    loader = open_tiny(train=train)
    alone = [list(loader), list(loader)]
    del loader
    loader = open_tiny(train=train, workers=2)
    assert equal(list(loader), alone[0])
    assert equal(list(loader), alone[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_rate_falls_over_the_run_and_knows_its_place_after_a_resume(tiny_dataset, workers):
    """Each batch is masked at the rate of the documents that the run saw before it, in the second epoch too."""
    data = Data(path=str(tiny_dataset), sequence_length=64, mask_rate=0.6, mask_rate_end=0.1)
    loader = open_batches(data, BATCH, workers=workers, run_documents=RUN)
    batches = list(loader)
    state = loader.dataset.state_dict(20 * BATCH, True)
    batches += list(loader)
    documents, epoch = len(loader.dataset.documents), len(batches) // 2
    seen = [e * documents + i * BATCH for e in range(2) for i in range(epoch)]
    for before, batch in zip(seen, batches, strict=True):
        ordinary = len(batch["input_ids"]) - 2 * count_sequences(batch)
        rate = 0.6 - 0.5 * min(before / RUN, 1)
        assert len(batch["labels"]) / ordinary == pytest.approx(rate, abs=0.05)
    del loader
    loader = open_batches(data, BATCH, workers=workers, run_documents=RUN)
    loader.dataset.load_state_dict({**state, "epoch": 0})
    assert equal(list(loader), batches[20:epoch])


def test_padded_batches_are_the_same_documents(open_tiny):
    streams = list(open_tiny())
    padded = list(open_tiny(batching="padded"))
    assert seen(streams) == seen(padded)
    for stream, batch in zip(streams, padded, strict=True):
        assert torch.equal(batch["input_ids"][batch["attention_mask"].bool()], stream["input_ids"])
        assert torch.equal(batch["labels"][batch["labels"] != IGNORED_LABEL], stream["labels"])


def test_special_tokens_are_neither_masked_nor_drawn(open_tiny, tiny_dataset):
    vocabulary = read_info(tiny_dataset).vocabulary
    for batch in open_tiny():
        drawn = batch["input_ids"][batch["masked_indices"]]
        for special in (vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id):
            assert not (batch["labels"] == special).any()
            assert not (drawn == special).any()


def test_vocabulary_of_the_shards_is_checked(tiny_dataset, tmp_path):
    info = read_info(tiny_dataset)
    check_vocabulary(tiny_dataset, info)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_dataset / "tokenizer", copy / "tokenizer")
    file = copy / "tokenizer" / "vocab.txt"
    file.write_text(file.read_text().replace("the\n", "teh\n", 1))
    with pytest.raises(UserError, match=r"vocab\.txt is not the vocabulary .* sha256") as caught:
        check_vocabulary(copy, info)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match="no such file"):
        check_vocabulary(copy, info)
