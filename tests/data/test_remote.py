"""Datasets streamed from a server that speaks S3: the batches are a local dataset's, and what fails is one line."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from recipe.config import Data, Tokenizer
from recipe.data import sampler, storage
from recipe.data.cache import local_folder, open_dataset
from recipe.data.stream import Loader
from tests.hashing import hashes
from tests.mistakes import refused
from tests.object_store import BUCKET, ObjectStore
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run
from tests.tiny.texts import open_batches, write_dataset

REMOTE = f"s3://{BUCKET}/corpus"
SPLITS = ("train", "validation")
PARTS = 6


@pytest.fixture(scope="module")
def parts(tiny_dataset, tmp_path_factory) -> Path:
    """The tiny dataset's text in six files, so in six shards a split."""
    folder = tmp_path_factory.mktemp("parts")
    lines = (tiny_dataset.parent / "topics.jsonl").read_text().splitlines(keepends=True)
    for i in range(PARTS):
        (folder / f"{i}.jsonl").write_text("".join(lines[i::PARTS]))
    return write_dataset(folder, Tokenizer(name=str(tiny_dataset / "tokenizer")))


@pytest.fixture
def store(object_store: ObjectStore, parts: Path) -> ObjectStore:
    object_store.put(parts)
    return object_store


def remote(cache: Path, **settings) -> Data:
    return Data(path=REMOTE, cache=str(cache), sequence_length=64, **settings)


def all_hashes(loader: Loader) -> list[list[str]]:
    return [hashes(batch) for batch in loader]


def expected(parts: Path) -> list[list[str]]:
    return all_hashes(open_batches(Data(path=str(parts), sequence_length=64)))


def fetched(store: ObjectStore) -> Counter[str]:
    """How often each shard was asked for and given."""
    counts = Counter(request.split("/corpus/")[1] for request in store.requests if request.startswith("GET"))
    counts.subtract(failure.split("/corpus/")[1] for failure in store.failures)
    return Counter({name: count for name, count in counts.items() if ".mds" in name})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_remote_dataset_gives_a_local_one_s_batches(store, parts, tmp_path, workers):
    data = remote(tmp_path / "cache")
    assert all_hashes(open_batches(data, workers=workers)) == expected(parts)
    assert len(fetched(store)) == PARTS and set(fetched(store).values()) == {1}
    assert not list((tmp_path / "cache").rglob("*.zstd")), "what is unpacked is not kept twice"
    assert all_hashes(open_batches(data)) == expected(parts)
    assert set(fetched(store).values()) == {1}, "a second start reads the cache"


@pytest.mark.parametrize("what", ["dataset.json", "lengths.npy", "shard.00000.mds.zstd"])
def test_a_store_that_fails_twice_and_then_works(store, parts, tmp_path, what, monkeypatch):
    monkeypatch.setattr(storage, "_PAUSE_S", 0.01)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # so that the repetition is ours
    storage.forget_clients()
    store.fail(2, matching=f"GET /{BUCKET}/corpus/{'train/part-00000/' if 'shard' in what else ''}{what}")
    if what == "lengths.npy":
        store.fail(2, matching=f"GET /{BUCKET}/corpus/train/{what}")
    assert all_hashes(open_batches(remote(tmp_path / "cache"))) == expected(parts)
    assert len(store.failures) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_store_that_stays_broken_is_one_line(store, tmp_path, workers, monkeypatch, capfd):
    monkeypatch.setattr(storage, "_PAUSE_S", 0.01)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    storage.forget_clients()
    loader = open_batches(remote(tmp_path / "cache"), workers=workers)
    store.fail(1_000, matching="part-00003")
    said = refused(lambda: list(loader))
    assert said.startswith(f"{REMOTE}/train/part-00003/shard.00000.mds.zstd: cannot be fetched: 500")
    assert "Traceback" not in capfd.readouterr().err


def test_a_shard_that_the_store_lacks_is_one_line(store, tmp_path):
    store.client.delete_object(Bucket=BUCKET, Key="corpus/train/part-00002/shard.00000.mds.zstd")
    said = refused(lambda: list(open_batches(remote(tmp_path / "cache"))))
    assert f"{REMOTE}/train/part-00002/shard.00000.mds.zstd: no such file in the store" in said


def test_a_shard_that_arrives_changed_is_one_line(store, tmp_path):
    name = "corpus/train/part-00002/shard.00000.mds.zstd"
    content = bytearray(store.read(name))
    content[100] ^= 1
    store.write(name, bytes(content))
    said = refused(lambda: list(open_batches(remote(tmp_path / "cache"))))
    assert (
        f"{REMOTE}/train/part-00002/shard.00000.mds.zstd: cannot be fetched: its hash is not the one in the index"
        in said
    )
    assert not list((tmp_path / "cache/train/part-00002").glob("*.zstd")), "what is wrong is not kept"


def test_places_that_hold_no_dataset_or_another(store, tmp_path):
    data = remote(tmp_path / "cache")
    open_dataset(data, SPLITS)
    info = json.loads(store.read("corpus/dataset.json"))
    info["config"]["seed"] = 1
    store.write("corpus/dataset.json", json.dumps(info).encode())
    assert f"{data.cache}: holds files of another dataset than {REMOTE} is now; remove it" in refused(
        open_dataset, data, SPLITS
    )
    nowhere = Data(path=f"s3://{BUCKET}/nowhere", cache=str(tmp_path / "other"))
    assert "holds no dataset.json; python -m recipe.prepare" in refused(open_dataset, nowhere, SPLITS)
    assert "set data.cache to a local folder" in refused(local_folder, Data(path=REMOTE))
    assert "leave it out" in refused(local_folder, Data(path="data/books", cache="x"))
    assert "give a size, or 0" in refused(local_folder, remote(tmp_path, cache_gib=-1))
    assert "has train, validation" in refused(open_dataset, remote(tmp_path / "third"), ("test",))


def _tell_hashes(data: Data, queue) -> None:
    queue.put(all_hashes(open_batches(data, workers=1)))


def test_two_runs_in_one_cache_fetch_each_shard_once(store, parts, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    data = remote(tmp_path / "cache")
    readers = [context.Process(target=_tell_hashes, args=(data, queue)) for _ in range(2)]
    for reader in readers:
        reader.start()
    results = [queue.get(timeout=120) for _ in readers]
    for reader in readers:
        reader.join(60)
    assert results == [expected(parts)] * 2
    assert len(fetched(store)) == PARTS and set(fetched(store).values()) == {1}


def test_a_bounded_cache_holds_what_is_read_and_no_more(store, parts, tmp_path, monkeypatch):
    """Blocks of about one shard: beside the block, those before and after it may be there."""
    monkeypatch.setattr(sampler, "_BLOCK", 300)
    whole = expected(parts)
    data = remote(tmp_path / "cache", cache_gib=1e-9)
    loader, most, found = open_batches(data), 0, []
    for _ in range(2):
        for batch in loader:
            found.append(hashes(batch))
            most = max(most, len(list((tmp_path / "cache" / "train").rglob("*.mds"))))
    assert found[: len(whole)] == whole
    assert 2 <= most <= 4 < PARTS
    assert sum(fetched(store).values()) > PARTS, "the second epoch fetched some again"


def test_a_run_trains_and_resumes_from_a_store(store, parts, tmp_path):
    yaml = train_yaml(
        tmp_path, REMOTE, f"data.cache={tmp_path / 'cache'}", "data.sequence_length=32", "data.masking=word",
        "model.hidden_size=16", "model.num_hidden_layers=1", "model.intermediate_size=32", "duration=6ba", "log_every=2",
    )  # fmt: skip
    record = run(yaml)
    local = run(yaml, f"data.path={parts}", "data.cache=null", f"out={tmp_path / 'local'}")
    assert losses(record) == losses(local) and record["network"]["bytes"] > 0 and "network" not in local
    assert (tmp_path / "run" / "encoder" / "tokenizer.json").is_file()
    shutil.rmtree(tmp_path / "cache")
    again = (f"data.cache={tmp_path / 'elsewhere'}", "autoresume=true", "data.workers=1")
    assert run(yaml, *again)["status"] == "finished"
    assert len(list(islice(open_batches(remote(tmp_path / "cache"), train=False), 2))) == 2
