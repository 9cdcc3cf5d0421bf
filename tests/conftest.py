"""What several test files share: a small real dataset, text, an object store, and threads that suit small tensors."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from recipe.data import storage
from recipe.system.quiet import quiet_libraries
from tests.object_store import ObjectStore, object_store_for
from tests.tiny.models import write_run
from tests.tiny.texts import make_text, write_text, write_tiny_dataset

torch.set_num_threads(1)  # the tensors of tests are small, and threads that wait for a busy core cost far more
quiet_libraries()

# `make test-loggers` runs this folder in an environment of its own, which has both packages.
collect_ignore = [] if find_spec("wandb") and find_spec("mlflow") else ["loggers"]


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory) -> Path:
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny"))


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


@pytest.fixture
def run(tmp_path) -> Path:
    """A pretraining run that is finished and not yet scored."""
    return write_run(tmp_path / "run")
