"""Nothing that is read executes anything: a planted command in every file that could hold one, through every command."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from recipe import glue, pareto, plan, train
from recipe.config import GlueConfig, TrainConfig, run_main
from recipe.errors import UserError
from recipe.records import read_record, write_record
from recipe.training import checkpoint_files
from tests.mistakes import refused
from tests.processes import ROOT, call
from tests.tiny.configs import glue_yaml, train_yaml
from tests.tiny.models import write_encoder
from tests.tiny.runs import run
from tests.tiny.tasks import write_sst2


class Planted:
    """Unpickled, it writes a file; so would anything else."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    return train_yaml(tmp_path, tiny_dataset, "device=cpu")


def plant(file: Path, marker: Path) -> None:
    """The same checkpoint with one entry more, whatever a link names."""
    state = torch.load(file, weights_only=False)
    state["state"]["extra"] = Planted(marker)
    torch.save(state, file.resolve())


def test_the_payload_works(tmp_path, marker):
    """What the other tests show to be refused does execute where it is not."""
    torch.save({"state": Planted(marker)}, tmp_path / "bad.pt")
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert marker.is_file()


def test_what_a_checkpoint_holds_is_read_as_composer_wrote_it(yaml, tmp_path):
    out = tmp_path / "run"
    run(yaml, "duration=3ba", "log_every=1", f"out={out}")
    (file,) = (out / "checkpoints").glob("ba3-rank0.pt")
    checkpoint_files.check(file)
    safe, whole = checkpoint_files.read_checkpoint(file), torch.load(file, weights_only=False)
    assert pickle.dumps(safe["rng"][0]["python"]) == pickle.dumps(whole["rng"][0]["python"])
    assert (safe["rng"][0]["numpy"][1] == whole["rng"][0]["numpy"][1]).all()
    assert torch.equal(safe["rng"][0]["torch"], whole["rng"][0]["torch"])
    assert safe["state"]["timestamp"] == whole["state"]["timestamp"]
    assert safe["state"]["callbacks"] == whole["state"]["callbacks"]
    assert all(torch.equal(tensor, whole["state"]["model"][name]) for name, tensor in safe["state"]["model"].items())


def test_resume_refuses_a_planted_command(yaml, tmp_path, marker, capsys):
    out = tmp_path / "run"
    words = (f"out={out}", "duration=4ba", "checkpoint_every=2ba", "device=cpu")
    run(yaml, *words)
    record = read_record(out)
    record["status"] = "running"
    plant(out / "checkpoints" / "latest-rank0.pt", marker)
    write_record(out, record)
    before = (out / "run.json").read_bytes()
    assert run_main(TrainConfig, train.train, [str(yaml), *words, "autoresume=true"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "could execute code" in error and "system" in error
    assert not marker.exists() and (out / "run.json").read_bytes() == before


def test_composer_itself_reads_safely(yaml, tmp_path, marker, monkeypatch):
    """Behind the check before the run: Composer's own reading of a checkpoint goes through the same function."""
    out = tmp_path / "run"
    words = (f"out={out}", "duration=4ba", "checkpoint_every=2ba", "log_every=1")
    run(yaml, *words)
    record = read_record(out) | {"status": "running"}
    write_record(out, record)
    plant(out / "checkpoints" / "latest-rank0.pt", marker)
    monkeypatch.setattr(checkpoint_files, "check", lambda file: None)
    with pytest.raises(UserError, match="could execute code"):
        run(yaml, *words, "autoresume=true")
    assert not marker.exists()


def test_glue_refuses_a_planted_command(yaml, tmp_path, marker, capsys):
    out = tmp_path / "run"
    run(yaml, f"out={out}", "duration=2ba", "checkpoint_every=1ba")
    file = out / "checkpoints" / "ba2-rank0.pt"
    plant(file, marker)
    write_sst2(tmp_path / "data", train=4, dev=4)
    assert run_main(GlueConfig, glue.main, [str(glue_yaml(tmp_path)), f"checkpoint={file}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "could execute code" in error and str(file) in error
    assert not marker.exists() and not (out / "glue-ba2").exists()


def test_a_trunk_s_branch_refuses_a_planted_command(yaml, tmp_path, marker, capsys):
    """As a command: the trunk is finished, its checkpoint was exchanged, and the branches are still to come."""
    scoring = glue_yaml(tmp_path, data=str(tmp_path))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"out: {tmp_path / 'sweep'}\nmodels: ['{yaml}']\nbudgets: [4ba]\nseeds: [17]\nglue: '{scoring}'\n")
    command = ["trunk", str(sweep), "decay=0.5"]
    assert pareto.main(command) == 2  # there are no tasks to score on, so the point fails behind its pretraining
    shutil.rmtree(tmp_path / "sweep" / "runs")
    for file in (tmp_path / "sweep" / "trunks").glob("*/checkpoints/ba2-rank0.pt"):
        plant(file, marker)
    capsys.readouterr()
    assert pareto.main(command) == 2
    assert "could execute code" in capsys.readouterr().err and not marker.exists()


def test_the_plan_reads_no_checkpoint(yaml, tmp_path, marker):
    out = tmp_path / "run"
    run(yaml, f"out={out}", "duration=2ba", "log_every=1")
    plant(out / "checkpoints" / "ba2-rank0.pt", marker)
    words = ["--gpu", "cpu-core", "--count", "1", "--budget-usd", "0.001", "--record", str(out), "--model", str(yaml)]
    assert plan.main(words) == 0 and not marker.exists()


def test_a_published_pickle_is_refused(tmp_path, marker):
    """`pytorch_model.bin` in Hugging Face's form, as a command."""
    folder = tmp_path / "published"
    write_encoder(folder, "hf_bert")
    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Planted(marker)}, folder / "pytorch_model.bin")
    write_sst2(tmp_path / "data", train=4, dev=4)
    scoring = glue_yaml(tmp_path, checkpoint=str(folder), out=str(tmp_path / "scores"))
    done = call("recipe.glue", str(scoring))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "could execute code" in done.stderr
    assert not marker.exists() and not (tmp_path / "scores").exists()


@pytest.mark.parametrize("how", ["truncated", "text", "zip"])
def test_a_damaged_checkpoint_is_one_line(yaml, tmp_path, how):
    file = tmp_path / "bad.pt"
    torch.save({"state": {"a": torch.ones(1000)}}, file)
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif how == "text":
        file.write_text("no checkpoint")
    else:
        shutil.make_archive(str(tmp_path / "bad"), "zip", ROOT / "recipe" / "model")
        (tmp_path / "bad.zip").rename(file)
    for read in (checkpoint_files.check, checkpoint_files.read_checkpoint):
        assert str(file) in refused(read, file)
