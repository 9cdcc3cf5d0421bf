"""Whole training runs, interrupted: what the model then sees is what it would have seen, on as many ranks or on fewer."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from recipe.records import read_record
from tests.seen_batches import interrupted, seen_by
from tests.tiny.configs import train_yaml


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    return train_yaml(
        tmp_path, tiny_dataset, "data.eval_documents=32", "data.mask_rate_end=0.15", "data.masking=span",
        "model.hidden_size=16", "model.num_hidden_layers=1", "model.intermediate_size=32", "batch_size=32",
        "duration=900sp", "checkpoint_every=5ba", "log_every=10",
    )  # fmt: skip


@pytest.mark.parametrize("batching", ["sequences", "tokens"])
def test_two_ranks_that_are_killed_become_one(yaml, tmp_path, batching):
    words = (f"data.batching={batching}", "data.workers=1")
    if batching == "tokens":
        words = (*words, "data.mask_rate_falls=with_lr", "schedule.shape=wsd", "schedule.decay=0.7")
    unbroken = seen_by(yaml, *words, f"out={tmp_path / 'unbroken'}")
    out = f"out={tmp_path / 'broken'}"
    before = interrupted(tmp_path / "seen", str(yaml), *words, out, ranks=2, sent=signal.SIGKILL, at=13)
    assert before == unbroken[:13]
    assert seen_by(yaml, *words, out, "autoresume=true") == unbroken[10:]
    a, b = (read_record(tmp_path / name) for name in ("broken", "unbroken"))
    assert (a["tokens"], a["sequences"], a["batches"]) == (b["tokens"], b["sequences"], b["batches"])
    assert a["status"] == "finished"


def test_a_machine_vanishes_and_the_run_continues(yaml, tmp_path):
    """Two that share nothing: each has a folder of its own, checkpoints are in the first one's alone, and its newest is torn."""
    order = "data.order=canonical"  # each machine reads its own parts
    unbroken = seen_by(yaml, order, f"out={tmp_path / 'unbroken'}")
    nodes = [f"out={tmp_path / name / 'run'}" for name in ("one", "two")]
    before = interrupted(tmp_path / "seen", str(yaml), order, ranks=2, sent=signal.SIGKILL, at=13, nodes=nodes, dies=1)
    assert before == unbroken[:13]
    first, second = (tmp_path / name / "run/checkpoints" for name in ("one", "two"))
    newest = first / "ba10-rank0.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert not list(second.glob("*.pt"))
    again = interrupted(tmp_path / "again", str(yaml), order, "autoresume=true", ranks=2, sent=0, at=0, nodes=nodes)
    assert again == unbroken[5:]
    assert not list(second.glob("*.pt")), "what was brought to it went when it was loaded"
    assert (first / "ba10-rank0.pt.torn").is_file(), "set aside, so that it could be written anew"
    a, b = (read_record(tmp_path / name) for name in ("one/run", "unbroken"))
    assert (a["tokens"], a["sequences"], a["batches"]) == (b["tokens"], b["sequences"], b["batches"])
    assert a["status"] == "finished" and not (tmp_path / "two/run/run.json").exists()


def test_a_machine_that_hangs_is_named_within_the_limit(yaml, tmp_path):
    """Its process is stopped, its connections stay; `interrupted` compares the line that the other ends with."""
    nodes = [f"out={tmp_path / name / 'run'}" for name in ("one", "two")]
    limit = 15
    words = (str(yaml), f"rank_timeout={limit}")
    seen = interrupted(tmp_path / "seen", *words, ranks=2, sent=signal.SIGSTOP, at=7, nodes=nodes, dies=1)
    assert len(seen) == 7
    waited = time.time() - (tmp_path / "seen/0").stat().st_mtime
    assert limit - 1 < waited < limit + 60, "not Composer's 300 seconds"


@pytest.mark.parametrize("fail_at", [7, 8])
def test_a_checkpoint_between_epochs_goes_on_with_the_next(yaml, tmp_path, fail_at):
    words = ("duration=3ep", "checkpoint_every=1ep", "batch_size=256", "microbatch_size=256", "data.batching=padded")
    words = (*words, "model.name=hf_bert")
    unbroken = seen_by(yaml, *words, f"out={tmp_path / 'unbroken'}")
    an_epoch = len(unbroken) // 3
    assert an_epoch == 7
    out = f"out={tmp_path / 'broken'}"
    with pytest.raises(RuntimeError, match="asked to fail"):
        seen_by(yaml, *words, out, fail_at=fail_at)
    assert seen_by(yaml, *words, out, "autoresume=true") == unbroken[an_epoch:]


def test_ctrl_c_leaves_nothing_behind_and_the_same_command_goes_on(yaml, tmp_path):
    shared = Path("/dev/shm")
    before = {file.name for file in shared.iterdir()}
    out, workers = f"out={tmp_path / 'run'}", "data.workers=2"
    interrupted(tmp_path / "seen", str(yaml), workers, out, ranks=1, sent=signal.SIGINT, at=8)
    left = {file.name for file in shared.iterdir()} - before
    assert not [name for name in left if name.endswith(("locals", "barrier")) or name.startswith("torch_")]
    assert len(seen_by(yaml, out, workers, "autoresume=true")) == 900 // 32 + 1 - 5
    assert read_record(tmp_path / "run")["status"] == "finished"
