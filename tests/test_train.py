"""Whole training runs: what they write, what they refuse, and that an interruption or a second rank changes nothing."""

from __future__ import annotations

import json
import math
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from kernels.cpu import build
from recipe.errors import UserError
from recipe.finetune.kinds import CLASSIFICATION
from recipe.records import read_record, write_record
from recipe.system import files
from recipe.system.hardware import find_hardware
from recipe.training.callbacks import AfterBatch
from recipe.training.checkpoint import find_checkpoint
from tests.mistakes import refused
from tests.processes import call, start, wait_for
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    """A run of half a minute at most, in a folder of its own."""
    words = ("data.eval_documents=64", "optimizer.lr=3.0e-3", "duration=40ba", "log_every=10")
    return train_yaml(tmp_path, tiny_dataset, *words)


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_a_run_learns_and_its_record_is_whole(yaml, tmp_path, model, capsys):
    record = run(yaml, f"model.name={model}", "duration=120ba")
    written = read_record(tmp_path / "run")
    assert written == json.loads(json.dumps(record))
    assert written["status"] == "finished" and written["model"] == model
    made = written["provenance"]
    assert all(len(made[key]) == 64 for key in ("requirements_sha256", "dataset_sha256"))
    curve = written["loss_curve"]
    assert [row["batch"] for row in curve] == list(range(10, 121, 10))
    assert curve[-1]["loss"] < curve[0]["loss"] - 0.5, "the loss did not fall"
    assert written["batches"] == 120 and written["sequences"] == 960
    assert 0 < written["tokens"] <= 960 * 48 and curve[-1]["tokens"] == written["tokens"]
    device, cost = written["device"], written["cost"]
    assert cost["usd"] == pytest.approx(cost["seconds"] * device["count"] / 3600 * device["usd_per_hour"])
    assert cost["gpu_hours"] == 0.0 and 0 < curve[-1]["seconds"] <= cost["seconds"]
    assert all(0 < row["mfu"] < 1.5 and row["tokens_per_s"] > 0 for row in curve)
    assert written["eval"]["loss"] < math.log(1100) and 0 < written["eval"]["masked_accuracy"] < 1
    assert written["config"]["duration"] == "120ba" and written["provenance"]["packages"]["torch"]
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt"):
        assert (tmp_path / "run" / "encoder" / name).is_file()
    said = capsys.readouterr().out
    for word in ("attention ", "loss", "accuracy", "lr", "tokens/s", "MFU", "$", "ETA", "evaluation"):
        assert word in said


def test_microbatches_change_nothing_but_memory(yaml, tmp_path):
    words = ("duration=10ba", "model.hidden_dropout_prob=0", "log_every=1")
    whole = run(yaml, *words)
    pieces = run(yaml, *words, "microbatch_size=3", f"out={tmp_path / 'pieces'}")
    for a, b in zip(whole["loss_curve"], pieces["loss_curve"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-4)
        assert a["masked_accuracy"] == pytest.approx(b["masked_accuracy"], abs=0.02)


@pytest.mark.parametrize("duration, batches", [("80sp", 10), ("2000tok", None), ("1ep", None)])
def test_duration_in_every_unit_decays_the_schedule_to_its_end(yaml, duration, batches, capsys):
    record = run(yaml, f"duration={duration}", "log_every=1", "batch_size=16" if "ep" in duration else "batch_size=8")
    curve = record["loss_curve"]
    assert batches is None or len(curve) == batches
    assert curve[-1]["lr"] < 0.3 * max(row["lr"] for row in curve)
    if "tok" in duration:
        assert curve[-2]["tokens"] < 2000 <= curve[-1]["tokens"]
    said = capsys.readouterr().out
    assert ("ends with the batch that reaches it" in said) is ("tok" in duration)
    lines = [line for line in said.splitlines() if "ETA" in line]
    assert len(lines) == len(curve) and "(100%)" in lines[-1] and lines[-1].endswith("ETA 0:00")


@pytest.mark.parametrize("batching", ["sequences", "tokens"])
def test_killed_at_any_batch_and_resumed_the_run_is_the_unbroken_one(yaml, tmp_path, batching):
    words = (str(yaml), "duration=160ba", "checkpoint_every=7ba", "log_every=5", "optimizer.lr=1.0e-3")
    words = (*words, f"data.batching={batching}")
    run(yaml, *words[1:], f"out={tmp_path / 'unbroken'}")
    out = tmp_path / "broken"
    broken = start("recipe.train", *words, f"out={out}")
    wait_for((out / "checkpoints" / "latest-rank0.pt").exists)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    assert read_record(out)["status"] == "running"
    again = start("recipe.train", *words, f"out={out}", "autoresume=true")
    assert again.wait(300) == 0, again.stderr.read()
    assert losses(out) == losses(tmp_path / "unbroken")
    a, b = read_record(out), read_record(tmp_path / "unbroken")
    assert (a["tokens"], a["batches"], a["eval"]) == (b["tokens"], b["batches"], b["eval"])
    assert len(a["resumed"]) == 1


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_a_run_whose_only_batch_is_its_warm_up_leaves_the_initialisation_as_it_was(yaml, tmp_path, model):
    """The demo's floor: the rate of the first batch is 0, so no rate can make a difference."""
    words = (f"model.name={model}", "duration=1ba", "schedule.warmup=1")
    for out, lr in (("slow", 1e-5), ("fast", 10.0)):
        run(yaml, *words, f"optimizer.lr={lr}", f"out={tmp_path / out}")
    run(yaml, *words[:2], "schedule.warmup=0", "optimizer.lr=10", f"out={tmp_path / 'moved'}")
    slow, fast, moved = (
        (tmp_path / out / "encoder/model.safetensors").read_bytes() for out in ("slow", "fast", "moved")
    )
    assert slow == fast != moved


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_a_checkpoint_is_an_encoder_before_the_run_is_over(yaml, tmp_path, model):
    words = (f"model.name={model}", "duration=4ba", "checkpoint_every=2ba")
    run(yaml, *words)
    whole = find_checkpoint(str(tmp_path / "run"))
    chosen = whole.resolve_backends(find_hardware("cpu", "fp32", ranks=1))
    (tmp_path / "run" / "encoder" / "model.safetensors").unlink()  # which is written at the end
    with pytest.raises(UserError, match="no finished encoder"):
        find_checkpoint(str(tmp_path / "run"))
    encoders = []
    for batch in (2, 4):
        found = find_checkpoint(str(tmp_path / "run" / "checkpoints" / f"ba{batch}-rank0.pt"))
        assert (found.model, found.batch) == (model, batch)
        parameters = found.fine_tuned(CLASSIFICATION, 2, chosen).named_parameters()
        encoders.append({name: p for name, p in parameters if "embeddings" in name})
    assert encoders[0] and any(not torch.equal(p, encoders[1][name]) for name, p in encoders[0].items())


def test_a_second_command_on_the_same_folder_is_one_line(yaml, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    words = ("duration=4ba", "log_every=1", "checkpoint_every=1ba", "autoresume=true")
    said = []

    def second(state) -> None:
        if state.timestamp.batch == 2:
            said.append(refused(run, yaml, *words))

    whole = run(yaml, *words, callbacks=[AfterBatch(second)])
    expected = f"out={tmp_path / 'run'}: another command trains there; wait for its end, or choose another folder"
    assert said == [expected] and whole["status"] == "finished"
    (tmp_path / "begun").mkdir()
    with files.held(tmp_path / "begun"):
        assert "another command trains there" in refused(run, yaml, *words, f"out={tmp_path / 'begun'}")
    assert not list((tmp_path / "begun").iterdir())


@pytest.mark.parametrize("launcher", ["composer", "torchrun"])
def test_two_ranks_train_what_one_trains(yaml, tmp_path, launcher):
    words = (str(yaml), "duration=12ba", "model.hidden_dropout_prob=0", "log_every=4")
    program = Path(sys.executable).parent / launcher
    count = ("-n", "2") if launcher == "composer" else ("--nproc-per-node", "2")
    if launcher == "torchrun":
        count = ("--standalone", *count)
    both = start("recipe.train", *words, f"out={tmp_path / 'two'}", launcher=(str(program), *count))
    single = run(yaml, *words[1:])
    said, problems = both.communicate(timeout=300)
    assert both.returncode == 0, problems
    assert "Gloo" not in said
    two = read_record(tmp_path / "two")
    assert (two["batches"], two["sequences"]) == (single["batches"], single["sequences"])
    assert two["tokens"] == single["tokens"], "the ranks together see what one sees"
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "run"), abs=5e-3)
    assert two["eval"]["loss"] == pytest.approx(single["eval"]["loss"], abs=5e-3)


def test_triton_kernels_give_the_reference_s_curve(yaml, tmp_path):
    """The whole command with every kernel in Triton's interpreter, beside plain torch."""
    words = ("duration=5ba", "log_every=1", "batch_size=4", "data.sequence_length=24", "data.eval_documents=4",
             "precision=fp32", "device=cpu", "model.hidden_dropout_prob=0")  # fmt: skip
    triton = ("model.attention=triton", "model.kernels=triton", f"out={tmp_path / 'triton'}")
    interpreted = start("recipe.train", str(yaml), *words, *triton, TRITON_INTERPRET="1")
    plain = run(yaml, *words, "model.attention=reference", "model.kernels=reference")
    assert interpreted.wait(300) == 0, interpreted.stderr.read()
    record = read_record(tmp_path / "triton")
    assert [choice["name"] for choice in record["backends"].values()] == ["triton", "triton"]
    assert losses(tmp_path / "triton") == pytest.approx(losses(tmp_path / "run"), rel=1e-4)
    assert record["eval"]["loss"] == pytest.approx(plain["eval"]["loss"], rel=1e-4)


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_without_a_masked_token_there_is_no_loss_and_that_is_said(yaml, tmp_path, capsys, model):
    """At a rate at which nothing is masked, as may happen to a small split: null in the record, and a run that ends well."""
    words = ("duration=2ba", "log_every=1", "data.eval_mask_rate=1e-9", "data.mask_rate=1e-9", f"model.name={model}")
    run(yaml, *words)
    record, said = read_record(tmp_path / "run"), capsys.readouterr().out
    assert record["status"] == "finished"
    assert record["eval"]["loss"] is None and record["eval"]["masked_accuracy"] is None
    assert losses(record) == [None, None]
    assert said.count("no loss (no token was masked)") == 4 and "nan" not in said


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_split_of_unknown_tokens_is_refused(yaml, tmp_path, tiny_dataset, split):
    shutil.copytree(tiny_dataset, tmp_path / "unknown")
    file = tmp_path / "unknown" / "dataset.json"
    info = json.loads(file.read_text())
    info["splits"][split]["unknown"] = 1.0
    file.write_text(json.dumps(info))
    with pytest.raises(UserError, match=f"_split={split}: holds only .UNK., so there is nothing to mask; choose"):
        run(yaml, f"data.path={tmp_path / 'unknown'}")
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "optimzer.lr=1": "did you mean `optimizer`",
    "optimizer.lr=fast": "could not be converted to Float",
    "out=": "`out`",
    "batch_size=100000": "lower it",
    "data.eval_split=test": "has train, validation",
    "data.path=nowhere": "recipe.prepare",
    "data.mask_rate=1.5": "above 0 and below 1",
    "data.mask_rate_end=0": "above 0 and below 1",
    "data.mask_rate_end=0.15 duration=900tok": "give `duration` in sp, ba or ep",
    "data.mask_rate_end=0.15 data.batching=tokens": "give `duration` in sp",
    "data.mask_rate_falls=with_lr": "set data.mask_rate_end too",
    "data.mask_rate_end=0.1 data.mask_rate_falls=with_lr schedule.final_lr=1": "the learning rate never falls",
    "data.masking=letter": "one of token, word, span",
    "data.batching=rows": "must be one of auto, sequences, tokens, padded",
    "data.batching=padded": "mosaic_bert takes sequences or tokens",
    "data.batching=tokens model.name=hf_bert": "hf_bert takes padded",
    "data.batching=tokens batch_size=12": "a multiple of 8",
    "data.batching=tokens microbatch_size=4": "a multiple of 8",
    "data.batching=tokens duration=1ep": "give sp",
    "data.sequence_length=2": "must be at least 3",
    "duration=5": "1000ba",
    "duration=0ba": "at least 1ba",
    "model.name=roberta": "mosaic_bert, modern, hf_bert",
    "model.vocab_size=30522": "prepare the shards again",
    "model.hidden_size=33": "not a multiple",
    "model.narrow_layers=0": "must be at least 1",
    "model.narrow_layers=3": "give 1 to 2, the layers",
    "model.narrow_layers=2 model.name=hf_bert": "the block of hf_bert is as it is; leave the key out",
    "model.narrow_layers=2 objective=swapped_tokens": "judges every token, so no layer can leave any out",
    "model.narrow_layers=2 objective=replaced_tokens": "judges every token, so no layer can leave any out",
    "model.attention=flash": "known are auto",
    "precision=int8": "must be one of auto, amp_bf16, fp32",
    "device=tpu": "must be one of auto, gpu, cpu",
    "microbatch_size=-1": "0 for as many as fit",
    "cost.prices=nowhere.yaml": "nowhere.yaml",
    "model.num_attention_heads=0": "at least 1",
    "model.hidden_dropout_prob=1.0": "below 1",
    "optimizer.lr=0": "above 0",
    "optimizer.betas=[0.9]": "two numbers",
    "optimizer.weight_decay=-1": "must be at least 0",
    "average.steps=41": "the run has 40 batches; set average.steps=40 or less",
    "average.steps=4 duration=900tok": "give `duration` in ba, or set average.shape=ema",
    "average.shape=median": "one of window, ema",
    "stages.sequence_length=[24,48]": "give stages.share too",
    "stages.share=[0.5,0.3]": "sums to 0.8",
    "stages.share=[1.5,-0.5]": "must be above 0 and at most 1",
    "stages.share=[0.5,0.5] stages.batch_size=[8]": "1 for the 2 stages",
    "stages.share=[0.5,0.5] stages.sequence_length=[48,64]": "set data.sequence_length=64",
    "stages.share=[0.5,0.5] stages.sequence_length=[64,48]": "longer than the last stage",
    "stages.share=[0.5,0.5] stages.batch_size=[12,8] data.batching=tokens duration=900sp": "stage 1: batch_size: 12 a rank",
    "stages.share=[0.5,0.5] stages.batch_size=[100000,8]": "stage 1: batch_size=100000, but",
    "stages.share=[0.5,0.5] duration=900tok": "stages: needs to know how many documents the run sees",
    "stages.share=[0.5,0.5] duration=2ep": "give `duration` in sp or ba",
    "stages.share=[0.5,0.5] data.batching=tokens": "give `duration` in sp",
    "stages.share=[0.99,0.01]": "stage 2 has 0ba of duration=40ba, less than a batch",
    "stages.share=[0.99,0.01] duration=400sp": "stage 2 has 4sp of duration=400sp, less than 8 documents",
    "stages.share=[0.5,0.5] duration=400sp average.steps=4": "give `duration` in ba, or set average.shape=ema",
    "schedule.warmup=2": "at least 0 and at most 1",
    "schedule.final_lr=-0.1": "at least 0 and at most 1",
    "data.eval_documents=-1": "0 for the whole split",
    "data.workers=-2": "-1 for the default",
    "log_every=0": "must be at least 1",
    "keep_checkpoints=0": "must be at least 1",
    "eval_every=-3ba": "number with a unit",
    "seed=-1": "must be at least 0 and at most 4294967295",
}


@pytest.mark.parametrize("word", MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_written(yaml, tmp_path, word):
    assert MISTAKES[word] in refused(run, yaml, *word.split(" "))
    assert not (tmp_path / "run").exists()


def test_amp_bf16_is_refused_where_it_cannot_run(yaml, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    with pytest.raises(UserError, match="set precision=fp32 or auto"):
        run(yaml, "precision=amp_bf16", "device=cpu")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_the_ranks_cannot_share_is_refused(yaml, tmp_path, monkeypatch):
    monkeypatch.setattr("recipe.train.dist.get_world_size", lambda: 3)
    with pytest.raises(UserError, match="not divisible by the 3 ranks; set batch_size=6"):
        run(yaml)
    with pytest.raises(UserError, match="stage 1: batch_size=8 is not divisible by the 3 ranks; set batch_size=6"):
        run(yaml, "stages.share=[0.5,0.5]", "stages.batch_size=[8,6]", "batch_size=6")


def test_a_folder_that_holds_another_run_is_left_alone(yaml, tmp_path):
    run(yaml, "duration=2ba")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UserError, match="autoresume=true"):
        run(yaml, "duration=2ba")
    with pytest.raises(UserError, match="duration=2ba, and now duration=3ba"):
        run(yaml, "duration=3ba", "autoresume=true")
    assert run(yaml, "duration=2ba", "autoresume=true")["status"] == "finished"
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    other = tmp_path / "mine"
    other.mkdir()
    (other / "notes.txt").write_text("not a run")
    with pytest.raises(UserError, match="holds no run"):
        run(yaml, f"out={other}")


def test_a_run_from_before_a_key_existed_is_continued_with_its_default(yaml, tmp_path):
    run(yaml, "duration=2ba")
    record = read_record(tmp_path / "run")
    for group, key in ((None, "init_from"), ("data", "masking"), ("model", "compile"), ("schedule", "decay")):
        del (record["config"][group] if group else record["config"])[key]
    write_record(tmp_path / "run", record)
    again = ("duration=2ba", "autoresume=true", "microbatch_size=2", "data.workers=1", "checkpoint_at=[1]")
    assert run(yaml, *again)["status"] == "finished"
    with pytest.raises(UserError, match="holds a run with data.masking=token, and now data.masking=word; resume"):
        run(yaml, *again, "data.masking=word")


def test_the_first_lines_say_what_is_needed_and_no_more(yaml, tmp_path):
    """As a fresh process prints them, its C++ included: nothing about devices that are not here."""
    done = call("recipe.train", str(yaml), "duration=2ba", "data.eval_documents=8")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("mosaic_bert, 0.1 M parameters -> ")
    heads = ["on", "attention", "microbatch:", "data:", "price:"]
    assert [line.split()[0] for line in lines[1:6]] == heads and lines[6].startswith("batch")
    reason = build.refusal()
    without = f"  attention sdpa (not cpu: {reason}), kernels reference (not cpu: {reason})"
    assert lines[2] == (without if reason else "  attention cpu, kernels cpu")
    assert "per core-hour" in lines[5]


def test_the_command_prints_one_line_and_exits_with_2(yaml, tmp_path):
    done = call("recipe.train", str(yaml), "model.name=roberta")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: model.name=roberta")
