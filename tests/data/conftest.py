"""What the tests of preparation and loader share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from recipe.data import storage
from tests.data.object_store import ObjectStore, object_store_for
from tests.data.preparing import make_text, write_text


@pytest.fixture
def object_store(monkeypatch) -> Iterator[ObjectStore]:
    """A server that speaks S3, with an empty bucket; the clients of this process and of its children find it."""
    monkeypatch.setattr(storage, "_PAUSE_S", 0.01)
    storage.forget_clients()
    with object_store_for(monkeypatch) as store:
        yield store
    storage.forget_clients()


@pytest.fixture
def corpus(tmp_path) -> dict[str, list[str]]:
    """Three files with 400 documents; returns the texts by file, in order."""
    counts = {"a": 150, "b": 50, "c": 200}
    texts = {f"{name}.jsonl.gz": make_text(count, seed) for seed, (name, count) in enumerate(counts.items())}
    for name, documents in texts.items():
        write_text(tmp_path / "text" / name, documents)
    return texts
