"""`data.order=canonical`: any number of machines makes the same batches, and each fetches its own part of the shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recipe.config import Data
from recipe.data import sampler
from recipe.data.batch import BIN_SEQUENCES, count_sequences
from recipe.data.packing import PackedBatchSampler
from recipe.data.sampler import BatchSampler, CanonicalSampler, parts_of
from recipe.data.stream import Loader
from recipe.training.start_lines import order_line
from tests.hashing import hashes
from tests.object_store import BUCKET, ObjectStore
from tests.tiny.configs import train_yaml
from tests.tiny.runs import run
from tests.tiny.texts import open_batches, write_shards

SIZES = [30, 70, 1, 200, 55, 0, 99, 36]  # documents of shards
PARTS = 4
SHARDS = 32
BATCH = 64  # sequences, on all machines


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(sampler, "_BLOCK", 100)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Thirty-two shards of some 36 documents."""
    return write_shards(tmp_path_factory.mktemp("shards"), SHARDS, documents=40)


@pytest.fixture
def store(object_store: ObjectStore, dataset: Path) -> ObjectStore:
    object_store.put(dataset)
    return object_store


def data_of(path: object, **settings) -> Data:
    return Data(path=str(path), sequence_length=32, order="canonical", canonical_parts=PARTS, **settings)


def of_machine(monkeypatch, machine: int, machines: int) -> None:
    """This process is the only rank of one of so many machines, as torchrun would say it."""
    world = {"WORLD_SIZE": machines, "RANK": machine, "LOCAL_WORLD_SIZE": 1, "LOCAL_RANK": 0}
    for name, value in world.items():
        monkeypatch.setenv(name, str(value))


def numbers(epoch: CanonicalSampler, position: int = 0) -> Iterator[np.ndarray]:
    return (block.numbers for block in epoch.after(position))


def whole(epoch: CanonicalSampler, position: int = 0) -> list[int]:
    return np.concatenate([np.empty(0, int), *numbers(epoch, position)]).tolist()


def test_an_epoch_takes_of_each_part_in_turn_and_each_document_once():
    parts = []
    for epoch in range(3):
        order = whole(CanonicalSampler(SIZES, 3, epoch, PARTS))
        assert len(order) == len(set(order)) == sum(SIZES) // PARTS * PARTS
        parts.append([set(order[part::PARTS]) for part in range(PARTS)])
        assert (np.diff(order[::PARTS]) == 1).mean() < 0.1, "hardly shuffled"
    for first, later in zip(parts[0] * 2, parts[1] + parts[2], strict=True):
        assert len(first - later) <= 1, "a part is the same in every epoch, but for one that is left over"
    assert whole(CanonicalSampler(SIZES, 3, 0, PARTS)) != whole(CanonicalSampler(SIZES, 3, 1, PARTS))
    assert whole(CanonicalSampler(SIZES, 3, 0, PARTS)) != whole(CanonicalSampler(SIZES, 4, 0, PARTS))


def test_an_order_is_found_from_any_place():
    epoch = CanonicalSampler(SIZES, 3, 1, PARTS)
    order = whole(epoch)
    for place in (0, 1, 2, 3, 4, 101, 255, len(order) - 1, len(order)):
        assert whole(epoch, place) == order[place:]


def test_blocks_name_each_part_s_shards_those_before_and_those_to_come():
    bounds = np.cumsum([0, *SIZES * 3])
    blocks = list(CanonicalSampler(SIZES * 3, 3, 0, PARTS).after(0))
    assert len(blocks) >= 8
    position = 0
    for block in blocks:
        shard_of = np.searchsorted(bounds, block.numbers, "right") - 1
        for part in range(PARTS):
            mine = shard_of[(np.arange(len(shard_of)) + position) % PARTS == part]
            assert set(mine) <= set(block.shards[part])
        position += len(block.numbers)
    for block, later in zip(blocks[:-1], blocks[1:], strict=True):
        for part in range(PARTS):
            same = block.shards[part].tolist() == later.shards[part].tolist()
            assert same or later.shards[part].tolist() == block.following[part].tolist()
            assert same or later.before[part].tolist() == block.shards[part].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_a_rank_s_share_is_of_its_parts(ranks):
    lengths = np.random.default_rng(0).integers(1, 30, sum(SIZES * 3)).astype(np.uint16)
    epoch = CanonicalSampler(SIZES * 3, 3, 0, PARTS)
    order = whole(epoch)
    part_of = {number: place % PARTS for place, number in enumerate(order)}
    for plan in (BatchSampler(24, whole=True, parts=PARTS), PackedBatchSampler(lengths, 32, 24, PARTS)):
        batches = list(plan.batches(numbers(epoch), 0))
        assert len(batches) > 1 and batches[-1].seen + len(batches[-1].numbers) <= len(order)
        for batch in batches:
            assert sorted(batch.numbers) == sorted(order[batch.seen :][: len(batch.numbers)])
            for rank in range(ranks):
                found = {part_of[number] for number in batch.of_rank(rank, ranks, 24 // ranks)[0].tolist()}
                assert found <= set(parts_of(rank, ranks, PARTS))
        for one in batches[1], batches[-1]:
            again = next(iter(plan.batches(numbers(epoch, one.seen), one.seen)))
            assert again.numbers.tolist() == one.numbers.tolist()


def test_bins_hold_what_fits_and_documents_of_their_own_part():
    lengths = np.random.default_rng(0).integers(1, 30, 4_000).astype(np.uint16)
    epoch = CanonicalSampler([500] * 8, 3, 0, PARTS)
    for batch in PackedBatchSampler(lengths, 32, 64, PARTS).batches(numbers(epoch), 0):
        part = (np.arange(len(batch.numbers)) + batch.seen) % PARTS
        assert (batch.bins // (64 // PARTS) == part).all()
        assert np.bincount(batch.bins, lengths[batch.numbers] + 2).max() <= BIN_SEQUENCES * 32


def everything(loader: Loader, epochs: int = 1) -> list[list[str]]:
    return [hashes(batch) for _ in range(epochs) for batch in loader]


@pytest.mark.parametrize("batching", ["sequences", "tokens"])
def test_each_of_two_machines_fetches_half_of_the_shards_and_all_make_the_same_batches(
    store, dataset, tmp_path, monkeypatch, batching
):
    first = open_batches(data_of(dataset), BATCH, batching)
    batches = list(first)
    unbroken = [hashes(batch) for batch in batches] + everything(first)
    sizes = first.dataset.documents.sizes
    assert len(list(CanonicalSampler(sizes, 9176, 0, PARTS).after(0))) >= 8 and len(sizes) == SHARDS
    for machines, most in ((2, 0.55), (4, 0.30)):
        shares = []
        for machine in range(machines):
            of_machine(monkeypatch, machine, machines)
            data = data_of(f"s3://{BUCKET}/corpus", cache=str(tmp_path / f"{machines}-{machine}"))
            loader = open_batches(data, BATCH // machines, batching)
            store.requests.clear()
            shares.append(everything(loader, epochs=2))
            fetched = [request for request in store.requests if request.startswith("GET") and ".mds" in request]
            assert 0 < len(fetched) == len(set(fetched)) <= most * SHARDS, "also of two epochs"
        assert [sum(share, []) for share in zip(*shares, strict=True)] == unbroken
    broken_off, seen = len(batches) // 2, sum(count_sequences(batch) for batch in batches[: len(batches) // 2])
    for machines in (1, 2, 4):
        shares = []
        for machine in range(machines):
            of_machine(monkeypatch, machine, machines)
            loader = open_batches(data_of(dataset), BATCH // machines, batching)
            loader.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": seen})
            shares.append(everything(loader))
        assert [sum(share, []) for share in zip(*shares, strict=True)] == unbroken[broken_off : len(batches)]


def test_workers_read_the_same_and_evaluation_knows_nothing_of_it(dataset):
    canonical, other = data_of(dataset), Data(path=str(dataset), sequence_length=32)
    alone = everything(open_batches(canonical, BATCH))
    assert everything(open_batches(canonical, BATCH, workers=2)) == alone != everything(open_batches(other, BATCH))
    held_out = [everything(open_batches(data, BATCH, train=False)) for data in (canonical, other)]
    assert held_out[0] == held_out[1]


def test_a_small_cache_keeps_what_the_machine_reads_next(store, tmp_path, monkeypatch):
    of_machine(monkeypatch, 1, 2)
    data = data_of(f"s3://{BUCKET}/corpus", cache=str(tmp_path / "cache"), cache_gib=1e-9)
    loader = open_batches(data, BATCH // 2)
    store.requests.clear()
    most = max(len(list((tmp_path / "cache/train").rglob("*.mds"))) for _ in loader)
    fetched = [request for request in store.requests if request.startswith("GET") and ".mds" in request]
    assert len(fetched) == len(set(fetched)) and most < len(fetched), "none was removed before it was read"


def test_the_record_has_the_order_and_the_start_says_it(dataset, tmp_path, capfd):
    yaml = train_yaml(
        tmp_path, dataset, "data.sequence_length=32", "data.order=canonical", "data.batching=tokens", "batch_size=64",
        "model.hidden_size=16", "model.num_hidden_layers=1", "model.intermediate_size=32", "duration=3ba",
    )  # fmt: skip
    data = run(yaml)["config"]["data"]
    assert (data["order"], data["canonical_parts"]) == ("canonical", PARTS)
    assert "  order: canonical, 4 parts; this machine reads them all\n" in capfd.readouterr().out
    assert order_line(PARTS, machines=2) == "order: canonical, 4 parts; each of 2 machines reads 2 of them"
    assert order_line(PARTS, machines=3).endswith("each of 3 machines reads 2 of them")
