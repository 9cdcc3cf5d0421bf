"""One row, one room: what is new is one file and its row, and everything else works with it."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
from pathlib import Path

import pytest

from recipe import glue, pairs, plan, records, train
from recipe.config import GlueConfig, PairsConfig, TrainConfig, load
from recipe.cost import prices
from recipe.data.batch import IGNORED_LABEL
from recipe.errors import UserError
from recipe.finetune.kinds import KINDS
from recipe.finetune.tasks import TASKS
from recipe.model.architectures import ARCHITECTURES
from recipe.objectives import OBJECTIVES
from recipe.pareto import draw
from recipe.training.optimizers import OPTIMIZERS
from recipe.training.parallel import PARALLEL
from recipe.training.preflight import Plan, make_plan
from recipe.training.schedules import SCHEDULES, Row
from tests.processes import on_two_ranks
from tests.tiny.configs import train_yaml
from tests.tiny.models import write_run
from tests.tiny.runs import stop_at
from tests.tiny.tasks import FILLERS, sentence, write_pairs, write_sst2, write_tsv
from tests.toys.bag_of_words import BAG_OF_WORDS
from tests.toys.by_hand import BY_HAND
from tests.toys.signs import SIGNS
from tests.toys.tags import TAGS, WORDS
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


def interrupt_job(*words) -> None:
    raise KeyboardInterrupt


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


def test_modernbert(yaml, tmp_path):
    """With a layer whose windows the texts cross."""
    record = used(yaml, tmp_path, "model={name: modern, window: 6, num_hidden_layers: 2}")
    assert record["model"] == "modern" and record["encoder"]["window"] == 6 and record["encoder"]["norm"] == "pre"


def test_an_objective(yaml, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "two_networks", lambda config: TWO_NETWORKS)
    record = used(yaml, tmp_path, "objective=two_networks")
    last = record["loss_curve"][-1]
    assert last["loss"] == pytest.approx(last["filler_loss"] + last["main_loss"], rel=1e-5)
    assert record["eval"]["main_loss"] > 0 and "masked_accuracy" not in record["eval"]
    plain = train.train(load(TrainConfig, str(yaml), [f"out={tmp_path / 'plain'}"]))
    assert record["parameters"] > 1.5 * plain["parameters"]
    whole = make_plan(load(TrainConfig, str(yaml), ["objective=two_networks", f"out={tmp_path / 'none'}"]))
    for batching in ("sequences", "tokens"):
        plan = dataclasses.replace(whole, batching=batching)
        usual = dataclasses.replace(plan, objective=OBJECTIVES["masked_lm"]({}))
        assert len(masked_as(plan)) == 1 < len(masked_as(usual)), "its batches are its own in every form"


def masked_as(plan: Plan) -> set[int]:
    """The tokens that stand at the masked places of the first batch."""
    batch = next(iter(train.data_spec(plan, train=True, batch_size=8).dataloader))
    return set(batch["input_ids"][batch["masked_indices"][batch["labels"] != IGNORED_LABEL]].tolist())


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


def words_and_tags(count: int, chance: random.Random) -> list[tuple[str, str]]:
    """Sentences, and of each word whether it has more than three letters."""
    texts = [sentence(chance.choice(FILLERS), chance) for _ in range(count)]
    return [(text, " ".join("long" if len(word) > 3 else "short" for word in text.split())) for text in texts]


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_a_kind_of_task(tmp_path, monkeypatch, model):
    """Outputs of variable size, on both forms of batches; the second of two jobs is resumed."""
    monkeypatch.setitem(KINDS, TAGS.name, TAGS)
    monkeypatch.setitem(TASKS, WORDS.name, WORDS)
    run, chance = write_run(tmp_path / "run", model), random.Random(3)
    for split, count in (("train", 96), ("dev", 24)):
        write_tsv(tmp_path / "tasks/Words" / f"{split}.tsv", [("text", "tags"), *words_and_tags(count, chance)])
    yaml, words = tmp_path / "score.yaml", [f"checkpoint={run}", f"data={tmp_path / 'tasks'}", "max_tokens=128"]
    yaml.write_text("device: cpu\nprecision: fp32\nmax_length: 64\nlr_scale: 2\ncost: {usd_per_hour: 3.6}\n")
    config = load(GlueConfig, str(yaml), words)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(glue, "say_job", interrupt_job)
        glue.glue(config)
    spent = {"cost": prices.bill(2.0, 1, prices.Price(3.6, "test"), "cpu"), "tokens": 100}
    records.write_record(run, {**records.read_record(run), **spent})
    first = records.read_record(run / "glue/jobs/Words-19")
    record = glue.glue(config)
    assert records.read_record(run / "glue/jobs/Words-19") == first and first["job"]["truncated_examples"] == 0
    found = record["glue"]["tasks"]["Words"]
    assert found["score"] > 95 and [one["seed"] for one in found["runs"]] == [19, 7]
    gold, predicted = (run / "glue/jobs/Words-7/dev.tsv").read_text().splitlines()[1].split("\t")
    assert len(gold.split()) == len(predicted.split()) >= 4 and {*predicted.split()} <= {"long", "short"}
    assert all(file.is_file() for file in draw([run], tmp_path / "out"))
    (tmp_path / "tasks/Words/dev.tsv").write_text("text\ttags\nthe old house\tshort short huge\n")
    with pytest.raises(UserError, match=r"dev.tsv:2: tag `huge`; known are short, long"):
        glue.glue(load(GlueConfig, str(yaml), [*words, f"out={tmp_path / 'other'}"]))


def test_a_way_of_parallelism(yaml, tmp_path):
    """Two processes train, stop, go on; train without a stop: the same to the last digit; and with DDP: the same to rounding."""
    on_two_ranks("tests.test_house", str(yaml))
    record, whole, ddp = (records.read_record(tmp_path / name) for name in ("run", "whole", "ddp"))
    curves = [[row["loss"] for row in one["loss_curve"]] for one in (record, whole, ddp)]
    assert curves[0] == curves[1] == pytest.approx(curves[2], rel=1e-5) and record["eval"] == whole["eval"]
    assert len(record["resumed"]) == 1 and record["config"]["parallel"] == "by_hand" != ddp["config"]["parallel"]
    needs = [one["microbatch"]["need"] for one in (whole, ddp)]
    assert needs[1] - needs[0] == pytest.approx(4 * record["parameters"]), "DDP's buckets"


def on_each_of_two_ranks(yaml: str) -> None:
    PARALLEL["by_hand"] = BY_HAND
    config = load(TrainConfig, yaml, ["parallel=by_hand"])
    with contextlib.suppress(KeyboardInterrupt):
        train.train(config, [stop_at(3)])
    train.train(config)
    for name, parallel in (("whole", "by_hand"), ("ddp", "ddp")):
        out = Path(config.out).with_name(name)
        train.train(load(TrainConfig, yaml, [f"parallel={parallel}", f"out={out}"]))


def test_what_is_in_no_table_is_refused_in_one_line(yaml):
    for key, known in (
        ("model.name", "mosaic_bert, modern, hf_bert"),
        ("objective", "masked_lm"),
        ("optimizer.name", "adamw"),
        ("schedule.shape", "linear, wsd"),
        ("average.shape", "window, ema"),
        ("parallel", "ddp"),
    ):
        with pytest.raises(UserError, match=rf"{key}.*unheard_of.*one of {known}"):
            load(TrainConfig, str(yaml), [f"{key}=unheard_of"])


if __name__ == "__main__":
    on_each_of_two_ranks(sys.argv[1])
