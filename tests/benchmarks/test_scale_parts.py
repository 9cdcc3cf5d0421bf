"""The parts that are measured for recipe.plan --nodes, on a dataset of a second."""

from __future__ import annotations

import pytest

from benchmarks import scale
from recipe.data.shards import read_info
from tests.tiny.configs import train_yaml
from tests.tiny.runs import run


def test_parts_are_of_the_dataset_and_of_this_machine(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SECONDS", 0.05)
    monkeypatch.setattr(scale, "DOCUMENTS", 200_000)
    monkeypatch.setattr(scale, "CHECKPOINT_PARAMETERS", 100_000)
    size = sum(file.stat().st_size for file in (tiny_dataset / "train").rglob("*.mds.*"))
    size = size or sum(file.stat().st_size for file in (tiny_dataset / "train").rglob("*.mds"))
    assert scale.shard_bytes_per_token(str(tiny_dataset)) == pytest.approx(
        size / read_info(tiny_dataset).split("train").tokens
    )
    rates = (
        scale.planned_documents_per_s(),
        scale.read_tokens_per_s(str(tiny_dataset)),
        scale.checkpoint_bytes_per_s(tmp_path),
    )
    assert min(rates) > 0
    assert not list(tmp_path.glob("*.tmp"))


def test_a_step_is_the_median_of_a_run_s(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "FIRST", 1)
    record = run(
        train_yaml(tmp_path, tiny_dataset, "duration=4ba", "log_every=1", "data.sequence_length=16", "device=cpu")
    )
    ends = [row["seconds"] for row in record["loss_curve"]]
    steps = sorted(after - before for before, after in zip(ends[1:], ends[2:], strict=False))
    found = scale.step_of(tmp_path / "run")
    assert found["seconds"] == pytest.approx(sum(steps) / 2)
    assert found["tokens"] == record["tokens"] / 4 and found["parameters"] == record["parameters"]
