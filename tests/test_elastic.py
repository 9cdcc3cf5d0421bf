"""A run whose machines come and go: it moves with its newest checkpoint, and sees the batches of one that nothing happens to."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe.records import read_record
from tests.elastic import PATIENCE_S, node, rendezvous, seen
from tests.processes import wait_for
from tests.seen_batches import seen_by
from tests.tiny.configs import train_yaml


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    return train_yaml(
        tmp_path, tiny_dataset, "data.eval_documents=32", "model.hidden_size=16", "model.num_hidden_layers=1",
        "model.intermediate_size=32", "batch_size=32", "duration=900sp", "checkpoint_every=5ba", "autoresume=true",
    )  # fmt: skip


def test_one_machine_becomes_two_and_one_again(yaml, tmp_path):
    """The second comes first in the order of ranks, so the run must move there; then the first vanishes."""
    unbroken = seen_by(yaml, f"out={tmp_path / 'unbroken'}")
    first, second = tmp_path / "first", tmp_path / "second"

    def words(folder: Path) -> tuple[str, str]:
        return str(yaml), f"out={folder / 'run'}"

    with rendezvous() as port, node(first, "127.0.0.2", port, *words(first), holds=7, dies=6) as one:
        wait_for(lambda: len(seen(first, 1)) == 7 or one.poll() is not None, PATIENCE_S)
        with node(second, "127.0.0.1", port, *words(second)) as two:
            assert two.wait(PATIENCE_S) == 0, (second / "log").read_text()
        assert one.wait(1) == -9, (first / "log").read_text()
    log = (second / "log").read_text()
    assert seen(first, 1) == unbroken[:7]
    both = [there + here for there, here in zip(seen(second, 2), seen(first, 2), strict=False)]
    assert len(both) >= 5 and both == unbroken[7 : 7 + len(both)]
    assert "continues from ba7-rank0.pt on machine 1" in log
    assert "rank 1 on machine 1 is gone or hangs" in log
    assert seen(second, 1) == unbroken[10:]
    left, moved, whole = (read_record(folder) for folder in (first / "run", second / "run", tmp_path / "unbroken"))
    for key in ("tokens", "sequences", "batches", "status"):
        assert moved[key] == whole[key]
    assert len(moved["resumed"]) == 2 and moved["provenance"]["started"] == left["provenance"]["started"]
    assert left["status"] == "running", "what has moved stays where it was, as it was"
