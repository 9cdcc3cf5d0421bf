"""What stands around the step: nothing waits for the device, memory is planned and its end explained, the limit is named."""

from __future__ import annotations

import time

import pytest
import torch

from recipe import train
from recipe.config import TrainConfig, load, run_main
from recipe.data.batch import Collator
from recipe.errors import UserError
from recipe.records import read_record
from recipe.training import memory
from recipe.training.callbacks import AfterBatch
from recipe.training.composer_model import Pretraining
from recipe.training.preflight import make_plan
from tests.reads import Reads
from tests.tiny.configs import train_yaml
from tests.tiny.models import write_encoder
from tests.tiny.runs import run


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    words = ("model.hidden_dropout_prob=0", "duration=8ba", "log_every=8", "precision=fp32")
    return train_yaml(tmp_path, tiny_dataset, *words)


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_between_two_lines_nothing_is_read_from_the_device(yaml, model):
    """Each read is a wait on a GPU. The step's own operations, which have others there, are not looked at, nor is what counts
    the batch while it is on the host."""
    reads, batches = Reads(), []

    def watch(state):
        batches.append(state.timestamp.batch.value)
        if len(batches) == 2:
            reads.__enter__()
            torch.ones(()).item()  # what is looked for is found
        elif len(batches) == 7:
            reads.__exit__(None, None, None)

    run(yaml, "microbatch_size=8", f"model.name={model}", callbacks=[AfterBatch(watch)])
    assert batches == list(range(1, 9))
    assert reads.readers[0][0] == __file__
    assert reads.around() == []


def test_a_run_says_whether_its_loader_was_the_limit(yaml, tmp_path, monkeypatch, capsys):
    whole = run(yaml)["waiting_for_data"]
    assert 0 < whole["waiting"] < 1 and whole["limit"] == ("loader" if whole["waiting"] >= 0.1 else "model")
    collate = Collator.__call__
    monkeypatch.setattr(Collator, "__call__", lambda *args: (time.sleep(0.3), collate(*args))[1])
    slow = run(yaml, f"out={tmp_path / 'slow'}", "log_every=4")
    assert slow["waiting_for_data"]["limit"] == "loader" and slow["waiting_for_data"]["waiting"] > whole["waiting"]
    assert all(row["waiting"] > 0.2 for row in slow["loss_curve"])
    said = capsys.readouterr().out
    assert "the loader was the limit: " in said and "waiting for data" in said
    assert read_record(tmp_path / "slow")["waiting_for_data"] == slow["waiting_for_data"]


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_an_automatic_microbatch_is_what_fits_and_changes_nothing_else(yaml, tmp_path, monkeypatch, model, capsys):
    words = (f"model.name={model}", "log_every=1", "duration=4ba")
    whole = run(yaml, *words)
    assert whole["microbatch"]["size"] == 8 and "all of the batch" in whole["microbatch"]["why"]
    plan = make_plan(load(TrainConfig, str(yaml), [*words, f"out={tmp_path / 'x'}"]))
    need = memory.training_need(plan.objective, plan.architecture, 8, plan.encoder, 48, 0.3, None)
    monkeypatch.setattr(memory, "capacity_here", lambda *_: need.of(7.5) / (1 - memory.MARGIN["cpu"]))
    capsys.readouterr()
    pieces = run(yaml, *words, f"out={tmp_path / 'pieces'}")
    assert pieces["microbatch"]["size"] == 4, "8 in two even parts, and not 7 and 1"
    assert "microbatch: 4 of 8 sequences (automatic: " in capsys.readouterr().out
    assert pieces["eval"] == pytest.approx(whole["eval"], rel=1e-3)
    for a, b in zip(whole["loss_curve"], pieces["loss_curve"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-4)


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 2048 bytes."


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(CUDA), RuntimeError(CPU)], ids=["cuda", "cpu"])
def test_out_of_memory_ends_in_one_line_and_the_run_goes_on_with_less(yaml, tmp_path, monkeypatch, capsys, error):
    calls, forward = [], Pretraining.forward

    def fails(*args):
        calls.append(1)
        if len(calls) == 4:
            raise error
        return forward(*args)

    monkeypatch.setattr(Pretraining, "forward", fails)
    words = [str(yaml), "checkpoint_every=2ba", "autoresume=true"]
    assert run_main(TrainConfig, train.main, words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory on ") and said.count("\n") == 1 and "more were asked for" in said
    assert "set microbatch_size=4, and continue from the last checkpoint with autoresume=true" in said
    assert run_main(TrainConfig, train.main, [*words, "microbatch_size=4"]) == 0
    assert read_record(tmp_path / "run")["status"] == "finished"


def test_another_error_is_no_lack_of_memory(yaml, monkeypatch):
    def fails(*_):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Pretraining, "forward", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        run(yaml)


def test_a_run_starts_from_another_s_encoder_at_longer_sequences(yaml, tmp_path):
    first = run(yaml, "duration=60ba", "optimizer.lr=3.0e-3")
    words = ("data.sequence_length=96", "duration=2ba", "log_every=1", f"out={tmp_path / 'longer'}")
    longer = run(yaml, *words, f"init_from={tmp_path / 'run'}")
    cold = run(yaml, *words, f"out={tmp_path / 'cold'}")
    assert longer["loss_curve"][0]["loss"] < cold["loss_curve"][0]["loss"] - 0.3
    assert longer["config"]["init_from"] == str(tmp_path / "run") and first["status"] == "finished"
    vocabulary = tmp_path / "run" / "encoder" / "tokenizer.json"
    vocabulary.write_text(vocabulary.read_text().replace('"the"', '"teh"'))
    with pytest.raises(UserError, match="trained with another tokenizer"):
        run(yaml, f"out={tmp_path / 'other'}", f"init_from={tmp_path / 'run'}")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("model.vocab_size=1024", "trained with another tokenizer"),
        ("init_from=./nowhere", "no such file"),
    ],
)
def test_what_a_run_cannot_start_from_is_refused(yaml, tmp_path, word, says):
    write_encoder(tmp_path / "start")
    with pytest.raises(UserError, match=says):
        run(yaml, f"init_from={tmp_path / 'start'}", word)
    assert not (tmp_path / "run").exists()
