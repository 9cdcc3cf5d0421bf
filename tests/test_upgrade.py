"""Datasets, runs and checkpoints that earlier commits wrote (`tests/fixtures`): they resume, score, plot and plan."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from recipe import pareto, plan, prepare
from recipe.config import PrepareConfig, run_main
from recipe.corpus import inspection
from recipe.records import read_record
from tests.fixtures.make import ARITHMETIC, CHECKPOINT_AT
from tests.tiny.records import rows_of
from tests.tiny.runs import losses

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
COMMITS = sorted(folder.name for folder in FIXTURES.iterdir() if (folder / "dataset").is_dir())
MODELS = ("mosaic_bert", "hf_bert")
# Commands in one process, because importing torch takes longer than any of them.
IN_TURN = """
import json, runpy, sys
for words in json.load(sys.stdin):
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""
# Of a loss. Other vectors' rounding moves it by 1e-7; a lost random state by 7e-4, lost moments of the optimizer by 1e-2.
TOLERANCE = 1e-5


def copy(commit: str, place: Path) -> Path:
    folder = Path(shutil.copytree(FIXTURES / commit, place / commit, symlinks=True))
    (folder / "yamls").symlink_to(ROOT / "yamls")  # where the records say that the price table is
    return folder


@pytest.fixture(params=COMMITS)
def written(request, tmp_path, monkeypatch) -> Path:
    """A copy of what a commit wrote, as the working folder."""
    folder = copy(request.param, tmp_path)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module", params=[(commit, model) for commit in COMMITS for model in MODELS], ids="-".join)
def continued(request, tmp_path_factory) -> tuple[Path, str, str]:
    """The same, a model, and what today's commands printed: the killed run resumed, the unbroken one made again, both scored."""
    commit, model = request.param
    folder = copy(commit, tmp_path_factory.mktemp("continued"))
    train, score = ("recipe.train", f"{model}.yaml"), ("recipe.glue", "glue.yaml")
    killed, unbroken = f"runs/{model}-killed", f"runs/{model}-s17"
    file = f"{killed}/checkpoints/ba{CHECKPOINT_AT}-rank0.pt"
    commands = [
        (*score, f"checkpoint={file}", f"out=scores/{model}-killed"),
        (*score, f"checkpoint={unbroken}"),
        (*score, f"checkpoint={unbroken}", f"out=scores/{model}-s17"),
        (*train, f"out={killed}", "autoresume=true"),
        (*train, f"out=now/{model}-s17"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN],
        input=json.dumps(commands), cwd=folder, env={**os.environ, **ARITHMETIC, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, model, done.stdout


def test_a_killed_run_goes_on_and_becomes_the_unbroken_one(continued):
    folder, model, _ = continued
    killed, unbroken, now = folder / f"runs/{model}-killed", folder / f"runs/{model}-s17", folder / f"now/{model}-s17"
    assert read_record(killed)["status"] == "finished" and len(read_record(killed)["resumed"]) == 1
    assert losses(killed) == pytest.approx(losses(unbroken), rel=TOLERANCE)
    assert losses(now) == pytest.approx(losses(unbroken), rel=TOLERANCE)
    for key in ("tokens", "sequences", "batches", "parameters"):
        assert read_record(killed)[key] == read_record(unbroken)[key]
    if rounds_alike(folder, model):
        assert weights(killed) == weights(now)
        assert losses(killed) == losses(now)
        assert read_record(killed)["eval"] == read_record(now)["eval"]


def rounds_alike(folder: Path, model: str) -> bool:
    """Whether this processor rounds as the one that wrote the files."""
    return weights(folder / f"now/{model}-s17") == weights(folder / f"runs/{model}-s17")


def weights(run: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(run / "encoder" / "model.safetensors").items()}


def test_a_finished_run_keeps_its_scores_and_gets_the_same_again(continued):
    folder, model, said = continued
    run = folder / f"runs/{model}-s17"
    assert f"runs/{model}-s17/glue holds these scores already; nothing to do" in said
    assert metrics(run) == pytest.approx(metrics(run / "glue"), abs=points(folder, model))
    assert metrics(folder / f"scores/{model}-s17") == pytest.approx(metrics(run), abs=points(folder, model))


def test_a_checkpoint_on_its_way_gets_the_scores_that_it_had(continued):
    folder, model, _ = continued
    run = folder / f"runs/{model}-killed"
    recorded = metrics(run / f"glue-ba{CHECKPOINT_AT}")
    assert metrics(folder / f"scores/{model}-killed") == pytest.approx(recorded, abs=points(folder, model))
    assert read_record(run)["glue"] is None


def points(folder: Path, model: str) -> float:
    """By how much a score may differ: of a few dozen examples one counts 4, and another rounding may tip one or two."""
    return 0.1 if rounds_alike(folder, model) else 10.0


def metrics(run: Path) -> dict[str, float]:
    tasks = read_record(run)["glue"]["tasks"]
    return {f"{name} {key}": value for name, task in tasks.items() for key, value in task["metrics"].items()}


def test_the_dataset_is_the_one_that_its_yaml_asks_for(written, capsys):
    assert run_main(PrepareConfig, prepare.prepare, ["prepare.yaml"]) == 0
    assert "already prepared from this configuration and text, nothing to do" in capsys.readouterr().out
    inspection.main(["dataset"])
    assert "260 documents" in capsys.readouterr().out


def test_seeds_become_one_point_of_a_plot(written, capsys):
    assert pareto.main(["plot", "runs", "--out", "drawn"]) == 0
    rows = rows_of(written / "drawn" / "pareto.csv")
    assert set(rows) == {"mosaic_bert (2 seeds)", "hf_bert-s17"}
    scores = [read_record(written / f"runs/mosaic_bert-s{seed}")["glue"]["score"] for seed in (17, 18)]
    assert float(rows["mosaic_bert (2 seeds)"]["score"]) == pytest.approx(statistics.fmean(scores))
    assert "left out: runs/mosaic_bert-killed" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--record", "runs/mosaic_bert-s17"), ()])
def test_a_run_gives_a_plan_its_speed_and_its_score(written, capsys, words):
    cost = read_record(written / "runs/mosaic_bert-s17")["cost"]["usd"]
    budget = ("--budget-usd", str(1.001 * cost), "--count", "2")  # so many batches as the run had, whatever is rounded
    assert plan.main(["--gpu", "cpu-core", *budget, "--model", "mosaic_bert.yaml", "--runs", "runs", *words]) == 0
    out = capsys.readouterr().out
    assert "measured on AMD EPYC by run `mosaic_bert-s1" in out
    assert "mean of 2 of 8 GLUE tasks, between 1 recorded points" in out
