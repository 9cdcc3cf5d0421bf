"""A campaign of a minute's size: its order, its bills, and that a stopped one goes on."""

from __future__ import annotations

import json

import pytest

from benchmarks import campaign
from benchmarks.campaign import CampaignConfig, load
from recipe import glue, records, train
from recipe.config import GlueConfig, SweepConfig, TrainConfig
from recipe.errors import UserError
from recipe.report import sweep
from recipe.system import files
from recipe.system.files import held
from tests.tiny.configs import PRICES, train_yaml
from tests.tiny.tasks import write_sst2

ENTRY_POINTS = {"recipe.train": (TrainConfig, train.train), "recipe.glue": (GlueConfig, glue.glue)}


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What entry points are told, in this process: a process of its own takes seconds to start."""
    told: list[str] = []

    def command(module, *words):
        if module == "recipe.pareto":
            told.append(" ".join((module, *words)))
            sweep.trunk(load(SweepConfig, words[1]))
            return
        schema, action = ENTRY_POINTS[module]
        told.append(" ".join((module, *words)))
        action(load(schema, words[0], words[1:]))

    monkeypatch.setattr(campaign, "command", command)
    monkeypatch.setattr(campaign, "OTHERS", float("inf"))  # the tests' machine need not be idle
    return told


@pytest.fixture
def config(tmp_path, tiny_dataset) -> CampaignConfig:
    file = train_yaml(tmp_path, tiny_dataset, "device=cpu", "precision=fp32", "model.hidden_dropout_prob=0")
    write_sst2(tmp_path / "tasks", train=32, dev=16)
    scoring = f"data={tmp_path / 'tasks'} epochs=1 max_length=24 device=cpu precision=fp32 cost.prices={PRICES}"
    return CampaignConfig(
        out=str(tmp_path / "runs"),
        results=str(tmp_path / "results"),
        models=[f"{file} model.initial_words=frequencies", f"{file} model.name=hf_bert data.mask_rate=0.15"],
        minutes=[0.02, 0.01],
        seeds=[17, 18],
        longest=0.03,
        glue=f"yamls/glue/glue5.yaml {scoring}",
        floor_glue=["lr_scale=2"],
        turns=1,
        steps=1,
    )


def test_cheapest_first_and_one_seed_of_everything_before_the_second(config):
    names = [point.name for point in campaign.points_of(config)]
    first = [
        f"{model}-{budget}-s17" for budget in ("floor", "0.01min", "0.02min") for model in ("mosaic_bert", "hf_bert")
    ]
    assert names == [*first, *(name.replace("s17", "s18") for name in first), "mosaic_bert-0.03min-s17"]
    for models in ([], config.models[:1] * 2):
        config.models = models
        with pytest.raises(UserError, match="give at least one, and no architecture twice"):
            list(campaign.points_of(config))


def test_a_campaign_is_stopped_goes_on_and_bills_by_the_reference(config, said, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"reference\.json: not measured; on an idle machine run"):
        campaign.run(config)
    measured = json.loads(campaign.reference(config).read_text())
    steps = {name: model["step_s"] for name, model in measured["models"].items()}
    assert set(steps) == {"mosaic_bert", "hf_bert"} and all(0 < step < 10 for step in steps.values())
    assert measured["models"]["mosaic_bert"]["start_s"] > 0 == measured["models"]["hf_bert"]["start_s"]
    # A reference of round numbers, slower than this machine: 2 and 5 batches of one model, 2 and 4 of the other.
    measured["models"]["mosaic_bert"] |= {"step_s": 0.2, "start_s": 0.2}
    measured["models"]["hf_bert"]["step_s"] = 0.3
    measured["device"] |= {"name": "a reference", "count": 1, "usd_per_hour": 3600.0}
    (tmp_path / "results/reference.json").write_text(json.dumps(measured))
    config.seeds, config.longest = [17], 0.0
    real = campaign.command

    def stopped(module, *words):
        if f"out={tmp_path}/runs/hf_bert-0.01min-s17" in words:
            raise KeyboardInterrupt
        real(module, *words)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(campaign, "command", stopped)
        campaign.run(config)
    assert sorted(file.parent.name for file in (tmp_path / "results").rglob("run.json")) == [
        "hf_bert-floor-s17", "mosaic_bert-0.01min-s17", "mosaic_bert-floor-s17",
    ]  # fmt: skip
    said.clear()
    *_, last = campaign.points_of(config)
    with monkeypatch.context() as patched, held(campaign.claim(config, last)):  # as a command on another core does
        patched.setattr(files, "PATIENCE", 0.0)
        assert len(campaign.run(config)) == 5
    folders = campaign.run(config)
    trained = [line for line in said if line.startswith("recipe.train")]
    assert [line.split("out=")[1].split()[0].rsplit("/", 1)[1] for line in trained] == [
        "hf_bert-0.01min-s17", "mosaic_bert-0.02min-s17", "hf_bert-0.02min-s17",
    ]  # fmt: skip
    made = {folder.name: records.read_record(folder) for folder in folders}
    batches = {name: record["batches"] for name, record in made.items()}
    assert batches == {
        "mosaic_bert-floor-s17": 1, "hf_bert-floor-s17": 1, "mosaic_bert-0.01min-s17": 2, "hf_bert-0.01min-s17": 2,
        "mosaic_bert-0.02min-s17": 5, "hf_bert-0.02min-s17": 4,
    }  # fmt: skip
    for name, record in made.items():
        floor, baseline = "floor" in name, name.startswith("hf")
        seconds = record["batches"] * (0.3 if baseline else 0.2) + (0.0 if floor or baseline else 0.2)
        assert record["cost"]["usd"] == pytest.approx(seconds) and record["device"]["name"] == "a reference"
        assert record["own"]["device"]["name"] != "a reference" and record["own"]["cost"]["seconds"] > 0
        assert ("initial_words" in record) is not (floor or baseline)
        assert record["glue"]["protocol"]["lr_scale"] == (2 if floor else 5) and record["glue"]["score"] is not None
        assert (record["config"]["schedule"]["warmup"] == 1) is floor
    said.clear()
    assert campaign.run(config) == folders and not said
    config.models[0] += " optimizer.lr=1e-4"
    with pytest.raises(
        UserError, match="measured with other settings of mosaic_bert; remove it, and on an idle machine"
    ):
        campaign.run(config)


def test_a_time_taken_beside_other_processes_is_refused(config, said, monkeypatch, tmp_path):
    monkeypatch.setattr(campaign, "OTHERS", 0.05)
    monkeypatch.setattr(campaign.Busy, "others", lambda self: 0.9)
    with pytest.raises(
        UserError, match=r"other processes had 0\.90 of a core meanwhile; wait until the machine is idle"
    ):
        campaign.reference(config)
    assert not (tmp_path / "results").exists()


def test_the_campaigns_own_yaml_names_what_is_there():
    config = load(CampaignConfig, "benchmarks/frontier/campaign.yaml", ["glue=yamls/glue/glue5.yaml"])
    points = list(campaign.points_of(config))
    assert len(points) == 3 * 2 * 4 + 3 + 1 and points[-1].name == "mosaic_bert-600min-s17"
    assert {model.settings["data.mask_rate"] for model in campaign.models_of(config)} == {0.3, 0.15}
    assert sum(point.minutes or 0 for point in points[:-1] if point.way == "run") == 13 * 60


def test_a_trunk_beside_the_runs_is_billed_by_the_reference(config, said, tmp_path):
    config.trunk, config.models, config.seeds, config.longest = True, config.models[:1], [17], 0.0
    measured = json.loads(campaign.reference(config).read_text())
    measured["models"]["mosaic_bert"] |= {"step_s": 0.1, "start_s": 0.1}  # 5 and 11 batches
    measured["device"] |= {"count": 1, "usd_per_hour": 3600.0}
    (tmp_path / "results/reference.json").write_text(json.dumps(measured))
    assert [point.name for point in campaign.points_of(config)][-2:] == [
        "trunk-mosaic_bert-0.01min-s17", "trunk-mosaic_bert-0.02min-s17",
    ]  # fmt: skip
    made = {folder.name: records.read_record(folder) for folder in campaign.run(config)}
    branch = made["trunk-mosaic_bert-0.02min-s17"]
    assert branch["batches"] == 11 and branch["cost"]["usd"] == pytest.approx(1.2)
    assert branch["trunk"]["batch"] == 10 and branch["trunk"]["cost"]["usd"] == pytest.approx(1.1)
    assert branch["own"]["trunk_cost"]["usd"] != branch["trunk"]["cost"]["usd"] and branch["glue"]["score"] is not None


def test_a_commit_with_other_losses_does_not_go_on(config, said, tmp_path, monkeypatch):
    config.models, config.seeds, config.longest, config.minutes = config.models[:1], [17], 0.0, [0.001]
    campaign.reference(config)
    file = tmp_path / "results/reference.json"
    real = records.provenance
    monkeypatch.setattr(records, "provenance", lambda *a: {**real(*a), "commit": "another"})
    campaign.check_commit(config, json.loads(file.read_text()))
    assert json.loads(file.read_text())["commits"] == [real()["commit"], "another"]
    said.clear()
    campaign.check_commit(config, json.loads(file.read_text()))
    assert not said  # known now
    monkeypatch.setattr(records, "provenance", lambda *a: {**real(*a), "commit": "a third"})
    other = json.loads(file.read_text())
    other["models"]["mosaic_bert"]["losses"][-1] += 1e-7
    with pytest.raises(
        UserError, match="a third: its losses of mosaic_bert are .* no runs of one curve; go on at commit"
    ):
        campaign.check_commit(config, other)
