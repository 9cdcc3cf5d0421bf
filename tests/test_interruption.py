"""Whole training runs, interrupted: what the model then sees is what it would have seen, on as many ranks or on fewer."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipe import train
from recipe.config import TrainConfig, load
from recipe.records import read_record
from tests.seen_batches import telling

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    file = tmp_path / "train.yaml"
    file.write_text(
        f"""
data: {{path: {tiny_dataset}, sequence_length: 48, eval_documents: 32, mask_rate_end: 0.15, masking: span}}
model: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}}
batch_size: 32
duration: 900sp
checkpoint_every: 5ba
log_every: 10
cost: {{prices: {ROOT / "yamls/prices.yaml"}}}
"""
    )
    return file


def run(yaml: Path, *words: str, fail_at: int = 0) -> list[list[str]]:
    """Train in this process, failing at a batch if asked to; the hashes of the batches that the model saw."""
    seen: list[list[str]] = []

    def see(found: list[str]) -> None:
        if fail_at and len(seen) == fail_at:
            raise RuntimeError("asked to fail")
        seen.append(found)

    with telling(see):
        train.train(load(TrainConfig, str(yaml), words))
    return seen


def interrupted(folder: Path, *words: str, ranks: int, sent: signal.Signals, at: int) -> list[list[str]]:
    """Train in processes of their own, until in the middle of batch `at` a signal reaches each; what the ranks saw together."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everywhere = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    everywhere |= {"NODE_RANK": 0, "OMP_NUM_THREADS": 1}
    processes = []
    for rank in range(ranks):
        variables = {name: str(value) for name, value in {**everywhere, "RANK": rank, "LOCAL_RANK": rank}.items()}
        command = [sys.executable, "-m", "tests.seen_batches", str(folder / str(rank)), str(int(sent)), str(at), *words]
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, start_new_session=True,
            )
        )  # fmt: skip
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == (130 if sent == signal.SIGINT else -sent), err
        assert "Traceback" not in err
        assert not living(process.pid)
    seen = [[json.loads(line) for line in (folder / str(rank)).read_text().splitlines()] for rank in range(ranks)]
    return [sum(shares, []) for shares in zip(*seen, strict=True)]


def living(group: int) -> list[str]:
    """What still runs of a process group after a second; what has ended and waits to be collected does not count."""
    deadline = time.monotonic() + 1
    while True:
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, of_group = status.read_text().rsplit(") ", 1)[1].split()[:3]
                found += [status.parent.name] if int(of_group) == group and state not in "ZX" else []
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


@pytest.mark.parametrize("batching", ["sequences", "tokens"])
def test_two_ranks_that_are_killed_become_one(yaml, tmp_path, batching):
    words = (f"data.batching={batching}", "data.workers=1")
    unbroken = run(yaml, *words, f"out={tmp_path / 'unbroken'}")
    out = f"out={tmp_path / 'broken'}"
    before = interrupted(tmp_path / "seen", str(yaml), *words, out, ranks=2, sent=signal.SIGKILL, at=13)
    assert before == unbroken[:13]
    assert run(yaml, *words, out, "autoresume=true") == unbroken[10:]
    a, b = (read_record(tmp_path / name) for name in ("broken", "unbroken"))
    assert (a["tokens"], a["sequences"], a["batches"]) == (b["tokens"], b["sequences"], b["batches"])
    assert a["status"] == "finished"


@pytest.mark.parametrize("fail_at", [7, 8])
def test_a_checkpoint_between_epochs_goes_on_with_the_next(yaml, tmp_path, fail_at):
    words = ("duration=3ep", "checkpoint_every=1ep", "batch_size=256", "microbatch_size=256", "data.batching=padded")
    words = (*words, "model.name=hf_bert")
    unbroken = run(yaml, *words, f"out={tmp_path / 'unbroken'}")
    an_epoch = len(unbroken) // 3
    assert an_epoch == 7
    out = f"out={tmp_path / 'broken'}"
    with pytest.raises(RuntimeError, match="asked to fail"):
        run(yaml, *words, out, fail_at=fail_at)
    assert run(yaml, *words, out, "autoresume=true") == unbroken[an_epoch:]


def test_ctrl_c_leaves_nothing_behind_and_the_same_command_goes_on(yaml, tmp_path):
    shared = Path("/dev/shm")
    before = {file.name for file in shared.iterdir()}
    out, workers = f"out={tmp_path / 'run'}", "data.workers=2"
    interrupted(tmp_path / "seen", str(yaml), workers, out, ranks=1, sent=signal.SIGINT, at=8)
    left = {file.name for file in shared.iterdir()} - before
    assert not [name for name in left if name.endswith(("locals", "barrier")) or name.startswith("torch_")]
    assert len(run(yaml, out, workers, "autoresume=true")) == 900 // 32 + 1 - 5
    assert read_record(tmp_path / "run")["status"] == "finished"
