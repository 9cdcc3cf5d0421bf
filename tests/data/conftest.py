"""What the tests of preparation and loader share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from recipe.data import storage
from tests.data.object_store import ObjectStore, object_store_for


@pytest.fixture
def object_store(monkeypatch) -> Iterator[ObjectStore]:
    """A server that speaks S3, with an empty bucket; the clients of this process and of its children find it."""
    monkeypatch.setattr(storage, "_PAUSE_S", 0.01)
    storage.forget_clients()
    with object_store_for(monkeypatch) as store:
        yield store
    storage.forget_clients()
