"""TensorBoard's files of real runs, read back; and what `loggers` refuses. The other two loggers: tests/loggers."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.metadata import PLUGIN_NAME

from recipe import train
from recipe.config import TrainConfig, run_main
from recipe.records import read_record
from recipe.training import loggers
from tests.seen_batches import interrupted
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run, stop_at

BATCHES = range(1, 13)
FAILURE = RuntimeError("asked to fail")


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    return train_yaml(tmp_path, tiny_dataset, "duration=12ba", "log_every=1", "eval_every=4ba", "checkpoint_every=5ba")


def shown(out: Path) -> EventAccumulator:
    """What TensorBoard shows of a run's folder, every point of it."""
    return EventAccumulator(str(out / "tensorboard"), {"scalars": 0}).Reload()


def files(out: Path) -> list[Path]:
    return sorted(file for file in (out / "tensorboard").rglob("*") if file.is_file())


def written_steps(file: Path, tag: str) -> list[int]:
    """In one file, whether TensorBoard shows them or not."""
    return [
        event.step for event in EventFileLoader(str(file)).Load() for value in event.summary.value if value.tag == tag
    ]


def check(out: Path) -> None:
    """Every line of the record's curves, once, at its batch, and nothing else."""
    record, found = read_record(out), shown(out)
    dollars_per_s = record["cost"]["usd"] / record["cost"]["seconds"]
    lines = [{**row, "usd": row["seconds"] * dollars_per_s} for row in record["loss_curve"]]
    assert [row["batch"] for row in lines] == list(BATCHES)
    evaluations = record["eval_curve"]
    assert [row["batch"] for row in evaluations] == [4, 8, 12]
    curves = {f"train/{name}": (name, lines) for name in lines[0]}
    curves |= {f"metrics/eval/{name}": (name, evaluations) for name in ("loss", "masked_accuracy")}
    assert set(found.Tags()["scalars"]) == set(curves)
    for tag, (name, rows) in curves.items():
        points = found.Scalars(tag)
        assert [point.step for point in points] == [row["batch"] for row in rows], tag
        assert [point.value for point in points] == pytest.approx([row[name] for row in rows], rel=1e-6), tag


def test_a_killed_run_goes_on_in_the_same_curves(yaml, tmp_path):
    words, out = ("loggers=[tensorboard]", f"out={tmp_path / 'broken'}"), tmp_path / "broken"
    interrupted(tmp_path / "seen", str(yaml), *words, ranks=1, sent=signal.SIGKILL, at=9)
    (first,) = files(out)
    assert written_steps(first, "train/loss") == list(range(1, 9)), "a line is on disk once it is printed"
    run(yaml, *words, "autoresume=true")
    _, second = files(out)
    assert written_steps(second, "train/loss") == list(range(6, 13)), "6 to 8 were logged twice, and are shown once"
    check(out)
    unbroken = run(yaml, f"out={tmp_path / 'unbroken'}")
    assert not (tmp_path / "unbroken" / "tensorboard").exists()
    assert losses(unbroken) == losses(out), "a logger changed the result"


def test_files_are_read_in_the_order_of_their_making(tmp_path, monkeypatch):
    """The name begins with the second; of two in the same one the host and the process would decide."""
    now = iter([1000.2, 1000.7, 1001.1])
    monkeypatch.setattr(loggers.time, "time", lambda: next(now))
    monkeypatch.setattr(loggers.time, "sleep", lambda _: None)
    (tmp_path / "events.out.tfevents.1000.host.7.0").touch()
    loggers.wait_for_a_later_name(tmp_path)
    assert next(now, None) is None, "it went on within the second"
    monkeypatch.setattr(loggers.time, "time", lambda: 999.0)
    loggers.wait_for_a_later_name(tmp_path)  # a clock that was set back waits for nothing


def test_a_run_that_failed_before_its_first_checkpoint_starts_its_curves_again(yaml, tmp_path):
    with pytest.raises(RuntimeError, match="asked to fail"):
        run(yaml, "loggers=[tensorboard]", callbacks=[stop_at(3, FAILURE)])
    run(yaml, "loggers=[tensorboard]", "autoresume=true")
    assert [len(written_steps(file, "train/loss")) for file in files(tmp_path / "run")] == [3, 12]
    check(tmp_path / "run")


def test_loggers_may_come_and_go_on_resume(yaml, tmp_path):
    with pytest.raises(RuntimeError, match="asked to fail"):
        run(yaml, callbacks=[stop_at(7, FAILURE)])
    with pytest.raises(RuntimeError, match="asked to fail"):
        run(yaml, "loggers=[tensorboard]", "autoresume=true", callbacks=[stop_at(11, FAILURE)])
    run(yaml, "autoresume=true")
    record = read_record(tmp_path / "run")
    assert record["status"] == "finished" and [row["batch"] for row in record["loss_curve"]] == list(BATCHES)
    assert [point.step for point in shown(tmp_path / "run").Scalars("train/loss")] == list(range(6, 12))


def test_the_settings_are_hyperparameters(yaml, tmp_path):
    run(yaml, "loggers=[tensorboard]", "duration=1ba")
    found = shown(tmp_path / "run").PluginTagToContent(PLUGIN_NAME)
    session = b"".join(found.values())
    for name in (b"optimizer.lr", b"data.sequence_length", b"batch_size", b"model.hidden_size"):
        assert name in session


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    record = {"name": "run", "provenance": {"started": "now"}, "config": {"out": "run", "seed": 17}}
    state = SimpleNamespace(timestamp=SimpleNamespace(batch=SimpleNamespace(value=0)))
    for rank, expected in ((1, 0), (0, 1)):
        monkeypatch.setattr(loggers.dist, "get_global_rank", lambda rank=rank: rank)
        log = loggers.Tensorboard(tmp_path, record)
        log.after_load(state, None)
        log.log_metrics({"train/loss": 1.0}, 1)
        log.close(state, None)
        assert len(files(tmp_path)) == expected


REFUSED = {
    "[tensorbord]": "loggers=[tensorbord]: must be one of tensorboard, wandb, mlflow",
    "[comet]": "loggers=[comet]: must be one of tensorboard, wandb, mlflow",
    "[tensorboard,tensorboard]": "tensorboard stands there twice",
}


@pytest.mark.parametrize("names", REFUSED)
def test_a_name_that_is_wrong_is_one_line(yaml, tmp_path, names, capsys):
    assert run_main(TrainConfig, train.main, [str(yaml), f"loggers={names}"]) == 2
    said = capsys.readouterr().err
    assert REFUSED[names] in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_package_that_is_absent_is_one_line(yaml, tmp_path, name, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)  # Python's own way to make an import fail
    with pytest.raises(ImportError):
        __import__(name)
    assert run_main(TrainConfig, train.main, [str(yaml), f"loggers=[{name}]"]) == 2
    said = capsys.readouterr().err
    assert "pip install --no-deps -r requirements-loggers.txt" in said and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
