"""A store that is late, fails, breaks off, sends an old object or refuses: asked again where that may help, and counted."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.config import Data
from recipe.data import network, sampler, storage
from recipe.data.network import Network
from tests.hashing import hashes
from tests.mistakes import refused
from tests.object_store import BUCKET, Answer, ObjectStore, half, late, other, status
from tests.tiny.configs import train_yaml
from tests.tiny.runs import run
from tests.tiny.texts import open_batches, write_shards

FOLDER, REMOTE = f"s3://{BUCKET}/some/folder", f"s3://{BUCKET}/corpus"
CONTENT = bytes(range(256)) * 40
SHARDS = 5
SHARD = f"GET /{BUCKET}/corpus/train/part-0000"


@pytest.fixture(autouse=True)
def nothing_counted() -> Iterator[None]:
    network.take()
    yield
    network.take()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), SHARDS, documents=80)


@pytest.fixture
def store(object_store: ObjectStore, dataset: Path) -> ObjectStore:
    object_store.put(dataset)
    return object_store


def contents(file: Path) -> str:
    return file.read_bytes().hex()


def fetch(folder: Path) -> bytes:
    return storage.fetch(FOLDER, "a", folder, contents, CONTENT.hex()).read_bytes()


def asked(store: ObjectStore, what: str) -> int:
    return sum(what in request for request in store.requests)


LATE, OLD = late(1.5), other(b"old")
FAULTS = {
    "late": ("GET", LATE),
    "500": ("GET", status(500)),
    "503": ("HEAD", status(503)),
    "half of it": ("GET", half),
    "an old one": ("GET", OLD),
}


@pytest.mark.parametrize(("method", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_fails_and_then_works_is_whole_and_counted(object_store, tmp_path, monkeypatch, method, fault: Answer):
    monkeypatch.setattr(storage, "_SILENCE_S", 0.4)
    object_store.write("some/folder/a", CONTENT)
    times = 1 if fault is LATE else 2
    object_store.fail(times, f"{method} /{BUCKET}/some", fault)
    assert fetch(tmp_path) == CONTENT
    spent = network.take()
    assert len(object_store.failures) == times and asked(object_store, f"{method} /{BUCKET}/some") > times
    assert spent.retries >= times and spent.bytes == len(CONTENT) and 0 < spent.seconds < 60
    assert network.take() == Network()
    fetch(tmp_path)
    assert network.take() == Network(), "what is there costs nothing"


@pytest.mark.parametrize("fault", [status(503), half, OLD], ids=["503", "half of it", "an old one"])
def test_what_goes_on_failing_ends_in_one_line_after_a_number_of_times(object_store, tmp_path, fault):
    object_store.write("some/folder/a", CONTENT)
    object_store.fail(10_000, f"GET /{BUCKET}/some", fault)
    with pytest.raises(storage.Failing, match=f"^{FOLDER}/a: cannot be fetched: [^\n]*$"):
        fetch(tmp_path)
    requests = len(object_store.failures)
    assert 4 <= requests <= 20 and network.take().retries >= requests - 1
    assert [*tmp_path.iterdir()] == []


def test_the_store_says_how_long_to_wait(object_store, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # of botocore, which does not look at it
    object_store.write("some/folder/a", CONTENT)
    object_store.fail(1, "HEAD", status(503, Retry_After="1"))
    began = time.monotonic()
    assert fetch(tmp_path) == CONTENT
    assert time.monotonic() - began >= 1 and network.take().retries == 1


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7), ("0", 2), ("86400", 60), ("Sat, 01 Jan 2000 00:00:00 GMT", 2), ("", 2)]
)
def test_no_store_makes_a_run_wait_for_ever(said, seconds):
    error = RuntimeError("busy")
    error.response = {"ResponseMetadata": {"HTTPHeaders": {"retry-after": said}}}  # botocore's
    assert storage._patience(error, 2) == seconds
    error.response = type("Response", (), {"headers": {"Retry-After": said}})  # of Google's and Azure's clients
    assert storage._patience(error, 2) == seconds
    assert storage._patience(RuntimeError(), 2) == 2


def test_a_refusal_is_one_line_and_asked_once(store, tmp_path):
    loader = open_batches(Data(path=REMOTE, cache=str(tmp_path / "cache"), sequence_length=32))
    network.take()
    store.fail(10_000, "part-00003", status(403))
    said = refused(lambda: list(loader))
    assert said.startswith(f"{REMOTE}/train/part-00003/shard.00000.mds.zstd: cannot be fetched: 403")
    assert asked(store, "part-00003") == 1 and network.take().retries == 0


def finish_opening(loader) -> None:
    """Wait for what is fetched ahead, whatever comes of it."""
    for shard in loader.dataset.documents._opened.values():
        shard.exception(60)


@pytest.mark.parametrize("recovers", [True, False])
def test_steps_go_on_while_the_cache_lasts(store, dataset, tmp_path, monkeypatch, recovers):
    """Blocks of one shard, and the store breaks down as soon as two are there."""
    monkeypatch.setattr(sampler, "_BLOCK", 1)
    local = open_batches(Data(path=str(dataset), sequence_length=32))
    whole, sizes = [hashes(batch) for batch in local], local.dataset.documents.sizes
    loader = open_batches(Data(path=REMOTE, cache=str(tmp_path / "cache"), sequence_length=32))
    batches, found = iter(loader), []
    found.append(hashes(next(batches)))
    finish_opening(loader)
    store.fail(10_000, SHARD, status(503))
    least = 2 * int(sizes.min()) // 32
    assert least > 3
    while len(found) < least:
        found.append(hashes(next(batches)))
    finish_opening(loader)
    assert store.failures, "the third shard was to be fetched ahead"
    if recovers:
        store.fail(0)
        assert found + [hashes(batch) for batch in batches] == whole
    else:
        assert "cannot be fetched: 503" in refused(lambda: found.extend(hashes(batch) for batch in batches))
        assert least <= len(found) < len(whole) and found == whole[: len(found)]


def test_what_workers_spend_reaches_the_process_that_trains(store, dataset, tmp_path):
    loader = open_batches(Data(path=REMOTE, cache=str(tmp_path / "cache"), sequence_length=32), workers=2)
    assert network.take().bytes > 0, "the description of the dataset"
    store.fail(2, SHARD, status(503))
    assert len(list(loader)) > 2
    spent = network.take()
    assert spent.bytes == sum(file.stat().st_size for file in dataset.glob("train/*/*.zstd"))
    assert spent.retries == 2 == len(store.failures)


def test_a_run_says_and_records_what_the_network_cost(store, dataset, tmp_path, capfd):
    yaml = train_yaml(
        tmp_path, REMOTE, f"data.cache={tmp_path / 'cache'}", "data.sequence_length=32", "data.workers=1", "model.hidden_size=16",
        "model.num_hidden_layers=1", "model.intermediate_size=32", "duration=6ba", "log_every=2", "data.eval_documents=0",
    )  # fmt: skip
    store.fail(2, SHARD, status(503))
    spent = run(yaml)["network"]
    out = capfd.readouterr().out
    assert spent["retries"] == 2 and spent["seconds"] > 0
    described = ("*/index.json", "*/lengths.npy", "tokenizer/*", "dataset.json")
    sizes = {
        split: sum(file.stat().st_size for pattern in patterns for file in dataset.glob(pattern))
        for split, patterns in {"train": ["train/*/*.zstd"], "held out": ["validation/*/*.zstd"], "": described}.items()
    }
    assert sizes["train"] + sizes[""] < spent["bytes"] <= sum(sizes.values())
    assert len(re.findall(r"the object store was asked again \(requests so far: [12]\)", out)) == 1
    assert re.search(r"  network: 0\.0 MB in \d+:\d\d", out) and "2 requests sent again\n" in out
