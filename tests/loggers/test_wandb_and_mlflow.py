"""Weights & Biases, offline, and MLflow, in its local database: real runs, killed and resumed, and read back."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from wandb.proto.wandb_internal_pb2 import Record

from recipe.records import read_record
from recipe.training.loggers import PROJECT, run_id
from tests.processes import call
from tests.seen_batches import interrupted
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run

BATCHES = list(range(1, 13))
ALL = "loggers=[tensorboard,wandb,mlflow]"


@pytest.fixture
def yaml(tmp_path, tiny_dataset, monkeypatch) -> Path:
    for name in [name for name in os.environ if name.startswith(("WANDB", "MLFLOW"))]:
        monkeypatch.delenv(name)
    return train_yaml(tmp_path, tiny_dataset, "duration=12ba", "log_every=1", "eval_every=4ba", "checkpoint_every=5ba")


def command(yaml: Path, *words: str, **variables: str) -> subprocess.CompletedProcess:
    return call("recipe.train", str(yaml), *words, **variables)


def logged(file: Path) -> Iterator[bytes]:
    """The complete records of a .wandb file: LevelDB's log format behind seven bytes. The client has no reader of its own."""
    data, place, parts = file.read_bytes(), 7, b""
    assert data.startswith(b":W&B")
    while place + 7 <= len(data):
        left = 32768 - place % 32768  # of a block; what is too short for a header is filling
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4) and place <= len(data):  # a whole record, or the last part of one
            yield parts
            parts = b""


def wandb_starts(out: Path) -> list[list[Record]]:
    """The records of each start of a run, from its file."""
    files = sorted((out / "wandb").glob("offline-run-*/run-*.wandb"))
    return [[Record.FromString(data) for data in logged(file)] for file in files]


def wandb_rows(records: list[Record]) -> dict[int, dict[str, float]]:
    """Metrics by their step."""
    rows: dict[int, dict[str, float]] = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            rows[items.pop("_step")] = {name: value for name, value in items.items() if not name.startswith("_")}
    return rows


def wandb_config(records: list[Record]) -> dict[str, object]:
    of_run = [record.run.config.update for record in records if record.WhichOneof("record_type") == "run"]
    updates = [record.config.update for record in records if record.WhichOneof("record_type") == "config"]
    return {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for items in (*of_run, *updates)
        for item in items
    }


def client(out: Path) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{out}/mlflow/mlflow.db")


def mlflow_runs(out: Path) -> list[mlflow.entities.Run]:
    store = client(out)
    return store.search_runs([experiment.experiment_id for experiment in store.search_experiments()])


def check_mlflow(out: Path) -> None:
    """One run, finished, whose curves are the record's, each point once."""
    record, (found,) = read_record(out), mlflow_runs(out)
    assert found.info.status == "FINISHED" and found.info.run_name == out.name
    assert found.info.artifact_uri.startswith(f"file://{out}/mlflow/artifacts/")
    curves = {f"train/{name}": (name, record["loss_curve"]) for name in record["loss_curve"][0]}
    curves |= {f"metrics/eval/{name}": (name, record["eval_curve"]) for name in ("loss", "masked_accuracy")}
    assert set(found.data.metrics) == {*curves, "train/usd"}
    for tag, (name, rows) in curves.items():
        history = client(out).get_metric_history(found.info.run_id, tag)
        assert [point.step for point in history] == [row["batch"] for row in rows], tag
        if name in ("loss", "tokens", "lr"):  # the others are the clock's, or step
            assert [point.value for point in history] == pytest.approx([row[name] for row in rows], abs=2e-4), tag
    assert found.data.params["optimizer.lr"] == "0.0005" and found.data.params["data.sequence_length"] == "48"


def check_wandb(out: Path, starts: int) -> None:
    """One run id; together the starts' files hold the record's curves, and where two hold a batch, the same loss."""
    record, found = read_record(out), wandb_starts(out)
    assert len(found) == starts
    loss = {row["batch"]: row["loss"] for row in record["loss_curve"]}
    seen: dict[int, dict[str, float]] = {}
    for records in found:
        (of_run,) = [item.run for item in records if item.WhichOneof("record_type") == "run"][:1]
        assert (of_run.run_id, of_run.display_name, of_run.project) == (run_id(record), out.name, PROJECT)
        config = wandb_config(records)
        assert config["optimizer.lr"] == 0.0005 and config["data.sequence_length"] == 48
        rows = wandb_rows(records)
        assert list(rows) == sorted(rows)
        assert all(row["train/loss"] == pytest.approx(loss[step], abs=2e-4) for step, row in rows.items())
        seen |= rows
    assert sorted(seen) == BATCHES
    assert [seen[step]["train/tokens"] for step in BATCHES] == [row["tokens"] for row in record["loss_curve"]]
    evaluated = {step: row["metrics/eval/loss"] for step, row in seen.items() if "metrics/eval/loss" in row}
    assert evaluated == pytest.approx({row["batch"]: row["loss"] for row in record["eval_curve"]}, abs=2e-4)


def test_a_killed_run_goes_on_in_the_same_run_of_each(yaml, tmp_path):
    """Two ranks, of which the first alone writes, then one: the number of ranks was a hyperparameter that may not change."""
    out = tmp_path / "run"
    words = (ALL, "model.hidden_dropout_prob=0")  # which draws on each rank by itself
    interrupted(tmp_path / "seen", str(yaml), *words, ranks=2, sent=signal.SIGKILL, at=9)
    assert len(list((out / "tensorboard").iterdir())) == len(wandb_starts(out)) == len(mlflow_runs(out)) == 1
    done = command(yaml, *words, "autoresume=true")
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr and "wandb: " not in done.stderr, done.stderr
    check_mlflow(out)
    check_wandb(out, starts=2)


def test_a_run_that_is_killed_before_its_first_checkpoint_starts_again(yaml, tmp_path):
    """Composer then asks the loggers for a checkpoint, and wandb's would ask its server."""
    out = tmp_path / "run"
    interrupted(tmp_path / "seen", str(yaml), ALL, ranks=1, sent=signal.SIGKILL, at=3)
    assert not list((out / "checkpoints").glob("*.pt"))
    done = command(yaml, ALL, "autoresume=true")
    assert done.returncode == 0, done.stderr
    check_mlflow(out)
    check_wandb(out, starts=2)
    plain = run(yaml, f"out={tmp_path / 'plain'}")
    assert not any((tmp_path / "plain" / name).exists() for name in ("wandb", "mlflow", "tensorboard"))
    assert losses(plain) == losses(out), "a logger changed the result"


@contextlib.contextmanager
def proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that lets nothing through, and what was asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def refuse(self) -> None:
            asked.append(self.requestline)
            self.send_error(403)

        do_CONNECT = do_GET = do_POST = refuse

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def through(address: str) -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "all_proxy")
    return {name: address for lower in names for name in (lower, lower.upper())} | {"no_proxy": "", "NO_PROXY": ""}


def test_nothing_is_sent_unless_the_environment_says_so(yaml, tmp_path):
    with proxy() as (address, asked):
        done = command(yaml, ALL, "duration=2ba", **through(address), DATABRICKS_TOKEN="x", WANDB_API_KEY="x" * 40)
        assert done.returncode == 0, done.stderr
        assert asked == []
        told = {"MLFLOW_TRACKING_URI": "http://mlflow.example:5000", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        done = command(yaml, "loggers=[mlflow]", f"out={tmp_path / 'sent'}", **through(address), **told)
        assert any("mlflow.example" in line for line in asked), "the proxy sees what is sent"
    assert done.returncode == 2 and done.stderr.startswith("error: loggers: mlflow at http://mlflow.example:5000: ")
    assert "unset MLFLOW_TRACKING_URI" in done.stderr and "Traceback" not in done.stderr


def test_online_without_a_key_is_one_line(yaml, tmp_path):
    home = tmp_path / "home"  # without a key
    home.mkdir()
    done = command(yaml, "loggers=[wandb,mlflow]", WANDB_MODE="online", HOME=str(home), NETRC=str(home / "netrc"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: loggers: wandb: No API key") and done.stderr.count("\n") == 1
    assert "unset WANDB_MODE" in done.stderr
