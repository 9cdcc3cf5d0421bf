"""Checkpoints in an object store: a machine that has nothing goes on from there, and what is torn there does not count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from composer import Callback

from recipe.data import storage
from recipe.records import read_record
from recipe.training.callbacks import AfterBatch
from tests.mistakes import refused
from tests.object_store import BUCKET, ObjectStore, status
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run, stop_at

SAVED = f"s3://{BUCKET}/runs/tiny"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_dataset) -> list[float]:
    """The loss curve of the run that nothing happens to."""
    return losses(run(yaml_of(tmp_path_factory.mktemp("whole"), tiny_dataset)))


def yaml_of(folder: Path, dataset: Path) -> Path:
    return train_yaml(
        folder, dataset, "duration=6ba", "checkpoint_every=2ba", "log_every=4", "model.hidden_size=16", "device=cpu",
        "model.num_hidden_layers=1", "model.intermediate_size=32", "keep_checkpoints=1", "autoresume=true",
    )  # fmt: skip


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    return yaml_of(tmp_path, tiny_dataset)


def vanished(yaml: Path, *callbacks: Callback) -> Path:
    """The folder of a run that stored its checkpoints at 2 and 4, and whose machine is gone."""
    with pytest.raises(KeyboardInterrupt):
        run(yaml, f"save_folder={SAVED}", callbacks=[*callbacks, stop_at(5)])
    out = yaml.parent / "run"
    shutil.rmtree(out)
    return out


def test_a_machine_that_has_nothing_goes_on_from_the_store(yaml, object_store: ObjectStore, whole):
    out = vanished(yaml)
    names = ["runs/tiny/ba2-rank0.pt", "runs/tiny/ba4-rank0.pt", "runs/tiny/checkpoints.json"]
    assert object_store.names() == names
    writes = [
        request.rpartition("/")[2] for request in object_store.requests if request.startswith(f"PUT /{BUCKET}/runs")
    ]
    assert writes == ["ba2-rank0.pt", "checkpoints.json", "ba4-rank0.pt", "checkpoints.json"], (
        "the record makes a checkpoint count"
    )
    assert losses(run(yaml, f"save_folder={SAVED}")) == whole
    assert len(read_record(out)["resumed"]) == 1 and "checkpoints" not in json.loads((out / "run.json").read_text())
    assert set(object_store.names()) - set(names) == {"runs/tiny/ba6-rank0.pt"}
    shutil.rmtree(out)
    assert losses(run(yaml, f"save_folder={SAVED}")) == whole, "its end is made anew, from the last checkpoint"
    assert read_record(out)["status"] == "finished" and (out / "encoder/model.safetensors").is_file()


def test_a_torn_one_is_passed_over_and_named(yaml, object_store: ObjectStore, whole, capsys):
    vanished(yaml)
    object_store.write("runs/tiny/ba4-rank0.pt", object_store.read("runs/tiny/ba4-rank0.pt")[:-100])
    assert losses(run(yaml, f"save_folder={SAVED}")) == whole
    said = capsys.readouterr().out
    assert f"{SAVED}/ba4-rank0.pt: cannot be fetched: its hash is not the one" in said and "passed over\n" in said
    assert f"ba2-rank0.pt comes from {SAVED}\n" in said
    shutil.rmtree(yaml.parent / "run")
    for name in object_store.names("runs/tiny/ba"):
        object_store.write(name, b"")
    assert refused(run, yaml, f"save_folder={SAVED}").startswith(
        f"save_folder={SAVED}: no checkpoint in it is complete"
    )


def test_a_store_that_fails_does_not_end_the_run_and_what_is_half_there_does_not_count(
    yaml, object_store: ObjectStore, whole, monkeypatch, capsys
):
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "_ATTEMPTS", 2)
    object_store.fail(100, f"PUT /{BUCKET}/runs/tiny/checkpoints.json", status(503))
    vanished(yaml, AfterBatch(lambda state: state.timestamp.batch == 3 and object_store.fail(0)))
    assert len(object_store.failures) > 1, "it was asked again"
    said = capsys.readouterr().out
    assert (
        "checkpoints.json: cannot be uploaded: " in said
        and "; the run goes on, and tries again with the next checkpoint\n" in said
    )
    stored = json.loads(object_store.read("runs/tiny/checkpoints.json"))["checkpoints"]
    assert [one["batch"] for one in stored] == [4] and "runs/tiny/ba2-rank0.pt" in object_store.names()
    assert losses(run(yaml, f"save_folder={SAVED}")) == whole


def test_what_cannot_be_a_store_or_holds_another_run_is_one_line(yaml, object_store: ObjectStore):
    assert refused(run, yaml, "save_folder=here").startswith("save_folder=here: give a folder in an object store")
    assert "save_folder" not in str(list(yaml.parent.iterdir())) and not (yaml.parent / "run").exists()
    out = vanished(yaml)
    remote = f"save_folder={SAVED}"
    assert refused(run, yaml, remote, "autoresume=false").startswith(f"{remote} holds a run already; choose another")
    assert refused(run, yaml, remote, "seed=3").startswith(f"{remote} holds a run with seed=17, and now seed=3; resume")
    with pytest.raises(KeyboardInterrupt):
        run(yaml, f"out={out}-b", callbacks=[stop_at(1)])
    said = refused(run, yaml, f"out={out}-b", remote)
    assert (
        said.startswith(f"out={out}-b: different runs could go on: machine 0 has run-b of")
        and f"{remote} has run of" in said
    )
    object_store.write("runs/tiny/checkpoints.json", b"{}")
    assert "checkpoints.json: not the record of a run" in refused(run, yaml, remote)
