"""SIGTERM: a checkpoint, one line, and a run that goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from recipe import train
from recipe.config import TrainConfig, load
from recipe.errors import Stopped, exit_status
from recipe.records import read_record
from recipe.training.callbacks import AfterBatch
from tests.processes import on_two_ranks
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    words = ("data.sequence_length=32", "model.num_hidden_layers=1", "duration=6ba", "log_every=1", "optimizer.lr=1e-2")
    return train_yaml(tmp_path, tiny_dataset, *words, "device=cpu", "precision=fp32", "autoresume=true")


def told_at(batch: int, rank: int | None = None) -> AfterBatch:
    """A callback that sends SIGTERM to its own process, of one rank or of all."""

    def tell(state) -> None:
        if state.timestamp.batch == batch and rank in (None, int(os.environ.get("RANK", 0))):
            os.kill(os.getpid(), signal.SIGTERM)

    return AfterBatch(tell)


@pytest.mark.parametrize("batching", ["sequences", "tokens"])
def test_a_run_that_is_told_to_end_leaves_a_checkpoint_and_goes_on(yaml, tmp_path, batching):
    words = (f"data.batching={batching}", "batch_size=64", "microbatch_size=64", "data.workers=1")
    whole = run(yaml, *words, f"out={tmp_path / 'whole'}")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="ended as asked for .SIGTERM. with a checkpoint at batch 3; the same command"):
        run(yaml, *words, callbacks=[told_at(2)])
    assert signal.getsignal(signal.SIGTERM) == before
    assert [file.name for file in (tmp_path / "run/checkpoints").glob("ba*")] == ["ba3-rank0.pt"]
    assert read_record(tmp_path / "run")["status"] == "running"
    resumed = run(yaml, *words)
    assert losses(resumed) == losses(whole) and resumed["eval"] == whole["eval"]


def test_told_at_its_end_a_run_ends_as_ever(yaml, tmp_path):
    assert run(yaml, "duration=2ba", callbacks=[told_at(2)])["status"] == "finished"


def test_the_exit_status_is_a_shell_s(capsys):
    def stopped() -> None:
        raise Stopped("ended as asked for")

    assert exit_status(stopped) == 143
    assert capsys.readouterr().err == "ended as asked for\n"


def test_all_ranks_end_at_the_same_batch_whichever_is_told(yaml, tmp_path):
    said = on_two_ranks("tests.training.test_stopping", str(yaml))
    assert "rank 0 ended" in said and "rank 1 ended" in said
    assert len(read_record(tmp_path / "run")["resumed"]) == 1
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


def on_each_of_two_ranks(yaml: str) -> None:
    config = load(TrainConfig, yaml, [])
    try:
        train.train(config, [told_at(2, rank=1)])
    except Stopped as stopped:
        assert "at batch 3;" in str(stopped), stopped
        print(f"rank {os.environ['RANK']} ended", flush=True)
    train.train(config)
    train.train(load(TrainConfig, yaml, [f"out={Path(config.out).with_name('whole')}"]))


if __name__ == "__main__":
    on_each_of_two_ranks(sys.argv[1])
