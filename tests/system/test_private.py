"""Credentials and the home folder stay out of logs, records and pages."""

from __future__ import annotations

import getpass
import json
import os
import socket
from pathlib import Path

import pytest

from recipe import records
from recipe.config import TrainConfig, load, to_dict
from recipe.corpus import ownership
from recipe.data import storage
from recipe.errors import UserError, one_line, say_error
from recipe.pareto import draw
from recipe.system.private import private, without_credentials
from recipe.training.checkpoint import find_checkpoint
from recipe.training.loggers import run_id
from tests.mistakes import refused
from tests.preparing import config_of
from tests.tiny.configs import train_yaml
from tests.tiny.records import record_run
from tests.tiny.runs import run, stop_at
from tests.tiny.texts import make_text, write_dataset, write_text, write_vocabulary

SECRET = "s3cr3t-wJalrXUtnFEMI"
SAID = {
    f"s3://AKIAX:{SECRET}@bucket/data: cannot be read": "s3://***@bucket/data: cannot be read",
    f"https://h/x?part=1&X-Amz-Signature={SECRET}&n=2": "https://h/x?part=1&X-Amz-Signature=***&n=2",
    f"https://h/x?sv=1&sig={SECRET}.": "https://h/x?sv=1&sig=***",
    f"https://h/x?access_token={SECRET}' was refused": "https://h/x?access_token=***' was refused",
    f"AWS_SECRET_ACCESS_KEY={SECRET} is set": "AWS_SECRET_ACCESS_KEY=*** is set",
    f"Authorization: Bearer {SECRET}": "Authorization: Bearer ***",
    "hf_AbCdEfGhIjKlMnOpQrSt was refused": "*** was refused",
    "AKIAIOSFODNN7EXAMPLE does not exist": "*** does not exist",
    "max_tokens=8192: tokenizer.name=a/b, https://h/x?page=2, a@b.c": "max_tokens=8192: tokenizer.name=a/b, "
    "https://h/x?page=2, a@b.c",
}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "home" / "nobodys"
    folder.mkdir(parents=True)
    monkeypatch.setenv(
        "XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    )  # compiled kernels
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.parametrize("said", SAID)
def test_a_credential_is_known_by_its_place_or_its_form(said):
    assert without_credentials(said).rstrip(".") == SAID[said].rstrip(".")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "WANDB_API_KEY",
                                  "MLFLOW_TRACKING_PASSWORD", "AZURE_ACCOUNT_ACCESS_KEY"])  # fmt: skip
def test_what_the_environment_holds_reaches_no_line(name, monkeypatch, capsys):
    monkeypatch.setenv(name, SECRET)
    error = ValueError(f"401 for key {SECRET}\nat /x")
    assert (
        str(UserError(f"out: {error}")) == "out: 401 for key *** at /x" and one_line(error) == "401 for key *** at /x"
    )
    say_error(f"the server says {SECRET}")
    assert capsys.readouterr().err == "error: the server says ***\n"
    monkeypatch.setenv(name, "short")
    assert without_credentials("short of memory") == "short of memory"


def test_a_url_with_credentials_is_refused_and_not_repeated(tmp_path):
    said = refused(storage.is_remote, f"s3://key:{SECRET}@bucket/data")
    assert said.startswith("s3://***@bucket/data: holds credentials") and SECRET not in said
    said = refused(storage.is_remote, f"s3://bucket/data?token={SECRET}")
    assert said.startswith("s3://bucket/data?token=***: give a local folder")


def test_a_path_below_home_and_no_other(home, monkeypatch):
    tree = {"a": [f"{home}/data", f"{home}2/data", f"/mnt{home}/x", f"file {home}: full", 3], f"{home}/b": None}
    assert private(tree) == {"a": ["~/data", f"{home}2/data", f"/mnt{home}/x", "file ~: full", 3], "~/b": None}
    monkeypatch.setenv("HOME", "/data")
    assert private(["s3://data/x", "/data/x", "gs://b/data/x"]) == ["s3://data/x", "~/x", "gs://b/data/x"]
    monkeypatch.setenv("HOME", "/")
    assert private("/data/x") == "/data/x"


def test_a_config_takes_the_home_folder_back(home, tmp_path):
    yaml = tmp_path / "a.yaml"
    yaml.write_text(f"out: {home}/run\ndata: {{path: ~/data}}\n")
    config = load(TrainConfig, str(yaml), ["init_from=~/other"])
    assert (config.out, config.data.path, config.init_from) == (f"{home}/run", f"{home}/data", f"{home}/other")
    assert to_dict(config)["out"] == "~/run" and to_dict(config)["init_from"] == "~/other"
    (home / "b.yaml").write_text("out: a\ndata: {path: b}\n")
    assert load(TrainConfig, "~/b.yaml").out == "a"


def test_a_run_in_the_home_folder_names_neither_host_nor_user_nor_home(home, monkeypatch):
    """Trained, resumed, drawn and read by its `~`; an older record with the whole paths is resumed too."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    write_text(home / "text.jsonl", make_text(150, 3))
    dataset = write_dataset(home, write_vocabulary(home))
    prices = f"cost.prices={home}/{SECRET}.yaml"
    words = ("duration=2ba", "log_every=1", "checkpoint_every=1ba", "autoresume=true", "cost.usd_per_hour=1", prices)
    yaml = train_yaml(home, dataset, *words)
    with pytest.raises(KeyboardInterrupt):
        run(yaml, callbacks=[stop_at(2)])
    file = home / "run" / "run.json"
    started = records.read_record("~/run")
    assert started["config"]["data"]["path"] == "~/dataset" and started["config"]["cost"]["prices"] == "~/***.yaml"
    whole = json.loads(file.read_text().replace("~/", f"{home}/"))
    file.write_text(json.dumps(whole))
    assert run_id(records.read_record(file)) == run_id(started) == run_id(whole)
    assert run(yaml)["status"] == "finished"
    named = {str(home), home.name, socket.gethostname(), SECRET} | ({getpass.getuser()} - {"root"})
    assert [name for name in named if name in file.read_text()] == []
    assert find_checkpoint("~/run").run == home / "run"


def test_a_preparation_in_the_home_folder_is_known_again(home, capsys):
    """Also one that an earlier version wrote with the whole paths."""
    write_text(home / "text.jsonl", make_text(150, 3))
    vocabulary = write_vocabulary(home)
    file = write_dataset(home, vocabulary) / "dataset.json"
    assert str(home) not in file.read_text() and '"~/text.jsonl"' in file.read_text()
    file.write_text(file.read_text().replace("~/", f"{home}/"))
    capsys.readouterr()
    write_dataset(home, vocabulary)
    assert "already prepared from this configuration and text" in capsys.readouterr().out
    origins = {"train": {"files": [{"path": f"{home}/text.jsonl", "bytes": 1}]}}
    assert str(home) not in json.dumps(ownership.plan(config_of(home), origins))


def test_an_old_record_with_a_credential_is_drawn_without_it(tmp_path):
    runs = tmp_path / "runs"
    record = record_run(runs, "one", "mosaic_bert", 2.0, {"CoLA": 45.0})
    file = runs / "one" / "run.json"
    record["config"] = {**record["config"], "data": {"path": f"s3://me:{SECRET}@bucket/text"}}
    file.write_text(json.dumps(record))
    assert SECRET in file.read_text()
    for made in draw([runs], tmp_path / "out"):
        assert SECRET.encode() not in made.read_bytes(), made
    assert "s3://***@bucket/text" in (tmp_path / "out" / "pareto.html").read_text()
