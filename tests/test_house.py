"""One row, one room: what is new is one file and its row, and everything else works with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipe import glue, pairs, plan, records, train
from recipe.config import GlueConfig, PairsConfig, TrainConfig, load
from recipe.cost import prices
from recipe.errors import UserError
from recipe.model.architectures import ARCHITECTURES
from recipe.objectives import OBJECTIVES
from recipe.pareto import draw
from recipe.training.optimizers import OPTIMIZERS
from recipe.training.schedules import SCHEDULES, Row
from tests.tiny.configs import train_yaml
from tests.tiny.runs import stop_at
from tests.tiny.tasks import write_pairs, write_sst2
from tests.toys.bag_of_words import BAG_OF_WORDS
from tests.toys.signs import SIGNS
from tests.toys.two_networks import TWO_NETWORKS

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 60


@pytest.mark.parametrize("file", sorted((ROOT / "tests/toys").glob("*.py")), ids=lambda file: file.stem)
def test_a_room_is_small(file):
    assert len(file.read_text().splitlines()) <= MOST_LINES


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    return train_yaml(
        tmp_path, tiny_dataset, "data.sequence_length=32", "model.num_hidden_layers=1", "duration=6ba", "log_every=1",
        "checkpoint_every=2ba", "device=cpu", "precision=fp32", "cost.usd_per_hour=3.6", "autoresume=true",
    )  # fmt: skip


def used(yaml: Path, tmp_path: Path, word: str) -> dict:
    """Trained, resumed to the last digit, scored in both ways, planned and drawn; returns the record."""
    config = load(TrainConfig, str(yaml), [word])
    with pytest.raises(KeyboardInterrupt):
        train.train(config, [stop_at(3)])
    record = train.train(config)
    whole = train.train(load(TrainConfig, str(yaml), [word, f"out={tmp_path / 'whole'}"]))
    assert [row["loss"] for row in record["loss_curve"]] == [row["loss"] for row in whole["loss_curve"]]
    assert record["batches"] == 6 and len(record["resumed"]) == 1 and record["eval"]["loss"] == whole["eval"]["loss"]
    write_sst2(tmp_path / "tasks", train=32, dev=16)
    write_pairs(tmp_path / "pairs.jsonl", {"one": 48})
    score, run = tmp_path / "score.yaml", tmp_path / "run"
    score.write_text(f"checkpoint: {run}\ndevice: cpu\ncost: {{usd_per_hour: 3.6}}\n")
    glue.glue(load(GlueConfig, str(score), [f"data={tmp_path / 'tasks'}", "seeds=1", "epochs=1", "precision=fp32"]))
    of_pairs = []
    for checkpoint in (run, run / "checkpoints/ba6-rank0.pt"):  # the last checkpoint is the encoder
        words = [
            f"data={tmp_path / 'pairs.jsonl'}",
            f"checkpoint={checkpoint}",
            f"out={tmp_path / checkpoint.stem}-pairs",
        ]
        of_pairs.append(pairs.pairs(load(PairsConfig, str(score), words))["pairs"]["paradigms"])
    assert of_pairs[0] == of_pairs[1] and of_pairs[0]["one"]["pairs"] == 8
    record = records.read_record(run)
    assert record["glue"]["tasks"]["SST-2"]["score"] is not None
    speed = plan.measured_speed(record, "run")
    row = prices.Row("here", ("cpu",), 3.6, "test")
    found = plan.forecast(config, row, record["device"]["count"], 2 * record["cost"]["usd"], speed, [])
    assert found.batches == pytest.approx(12, abs=2) and found.need.fixed > 0
    for measure in ("score", "pairs", "loss"):
        assert all(file.is_file() for file in draw([run], tmp_path / "out", measure=measure))
    return record


def test_an_architecture(yaml, tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "bag_of_words", lambda: BAG_OF_WORDS)
    assert used(yaml, tmp_path, "model.name=bag_of_words")["model"] == "bag_of_words"


def test_an_objective(yaml, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "two_networks", lambda: TWO_NETWORKS)
    record = used(yaml, tmp_path, "objective=two_networks")
    last = record["loss_curve"][-1]
    assert last["loss"] == pytest.approx(last["filler_loss"] + last["main_loss"], rel=1e-5)
    assert record["eval"]["main_loss"] > 0 and "masked_accuracy" not in record["eval"]
    plain = train.train(load(TrainConfig, str(yaml), [f"out={tmp_path / 'plain'}"]))
    assert record["parameters"] > 1.5 * plain["parameters"]


def test_an_optimizer(yaml, tmp_path, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "signs", SIGNS)
    record = used(yaml, tmp_path, "optimizer.name=signs")
    assert record["config"]["optimizer"]["name"] == "signs"
    # The first group's rate is the one that is shown; Adam's is ten times as high.
    assert record["loss_curve"][1]["lr"] <= 0.1 * record["config"]["optimizer"]["lr"]


def test_a_schedule(yaml, tmp_path, monkeypatch):
    monkeypatch.setitem(
        SCHEDULES, "steps", Row(lambda progress, settings: 1.0 if progress < 0.5 else settings.final_lr)
    )
    record = used(yaml, tmp_path, "schedule.shape=steps")
    peak = record["config"]["optimizer"]["lr"]
    assert sorted({row["lr"] for row in record["loss_curve"]}) == pytest.approx([0.02 * peak, peak])


def test_what_is_in_no_table_is_refused_in_one_line(yaml):
    for key, known in (
        ("model.name", "mosaic_bert, hf_bert"),
        ("objective", "masked_lm"),
        ("optimizer.name", "adamw"),
        ("schedule.shape", "linear, wsd"),
    ):
        with pytest.raises(UserError, match=rf"{key}.*unheard_of.*one of {known}"):
            load(TrainConfig, str(yaml), [f"{key}=unheard_of"])
