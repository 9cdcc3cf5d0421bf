"""A run whose machines come and go: it moves with its newest checkpoint, and sees the batches of one that nothing happens to."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe.records import read_record
from tests.elastic import PATIENCE_S, node, rendezvous, seen
from tests.object_store import BUCKET
from tests.processes import wait_for
from tests.seen_batches import seen_by
from tests.tiny.configs import train_yaml


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    return train_yaml(
        tmp_path, tiny_dataset, "data.eval_documents=32", "model.hidden_size=16", "model.num_hidden_layers=1",
        "model.intermediate_size=32", "batch_size=32", "duration=900sp", "checkpoint_every=5ba", "autoresume=true",
    )  # fmt: skip


def test_one_machine_becomes_two_and_one_again(yaml, tmp_path, object_store):
    """The second comes first in the order of ranks, so the run must move there; then it vanishes with what it has, and the store
    has the newest."""
    unbroken = seen_by(yaml, f"out={tmp_path / 'unbroken'}")
    first, second = tmp_path / "first", tmp_path / "second"

    def words(folder: Path) -> tuple[str, ...]:
        return str(yaml), f"out={folder / 'run'}", f"save_folder=s3://{BUCKET}/run"

    with rendezvous() as port, node(first, "127.0.0.2", port, *words(first), holds=7) as one:
        wait_for(lambda: len(seen(first, 0)) == 7 or one.poll() is not None, PATIENCE_S)
        with node(second, "127.0.0.1", port, *words(second), dies=6) as two:
            assert two.wait(PATIENCE_S) == -9, (second / "log").read_text()
        assert one.wait(PATIENCE_S) == 0, (first / "log").read_text()
    assert seen(first, 0) == unbroken[:7]
    both = [here + there for here, there in zip(seen(second, 0), seen(first, 1), strict=False)]
    assert len(both) >= 5 and both == unbroken[7 : 7 + len(both)]
    assert "continues from ba7-rank0.pt on machine 1" in (second / "log").read_text()
    log = (first / "log").read_text()
    assert "error: rank 1: rank 0" in log and f"ba10-rank0.pt comes from s3://{BUCKET}/run\n" in log
    assert seen(first, 2) == unbroken[10:]
    ends, moved, whole = (read_record(folder) for folder in (first / "run", second / "run", tmp_path / "unbroken"))
    for key in ("tokens", "sequences", "batches", "status"):
        assert ends[key] == whole[key]
    assert len(ends["resumed"]) == 2 and ends["provenance"]["started"] == moved["provenance"]["started"]
    assert moved["status"] == "running", "what was there stays as it was"
