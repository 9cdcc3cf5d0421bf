"""Whole training runs, killed: what the model then sees is what it would have seen, on as many ranks or on fewer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipe.cost.records import read_record

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = (str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def yaml(tmp_path, tiny_dataset) -> Path:
    file = tmp_path / "train.yaml"
    file.write_text(
        f"""
data: {{path: {tiny_dataset}, sequence_length: 48, eval_documents: 32, mask_rate_end: 0.15, masking: span}}
model: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32}}
batch_size: 32
duration: 3600sp
log_every: 10
cost: {{prices: {ROOT / "yamls/prices.yaml"}}}
"""
    )
    return file


def start(seen: Path, *words: str, ranks: int) -> subprocess.Popen:
    launcher = TORCHRUN if ranks == 2 else (sys.executable,)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launcher, "-m", "tests.seen_batches", str(seen), *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err


def interrupt(process: subprocess.Popen, once: Path, sent: signal.Signals) -> None:
    """Send a signal to the run's processes, every one, when that file is there."""
    deadline = time.monotonic() + 120
    while not once.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"no {once} in time"
        time.sleep(0.02)
    os.killpg(process.pid, sent)
    process.communicate(timeout=60)


def batches(seen: Path) -> list[list[str]]:
    """Of all ranks, as far as every rank came."""
    ranks = [[json.loads(line) for line in file.read_text().splitlines()] for file in sorted(seen.iterdir())]
    return [sum(shares, []) for shares in zip(*ranks, strict=False)]


@pytest.mark.parametrize("batching", ["sequences", "tokens"])
def test_two_ranks_that_were_killed_become_one(yaml, tmp_path, batching):
    words = (str(yaml), f"data.batching={batching}", "checkpoint_every=5ba")
    finished(start(tmp_path / "seen", *words, f"out={tmp_path / 'unbroken'}", ranks=1))
    unbroken = batches(tmp_path / "seen")
    out = tmp_path / "broken"
    latest = out / "checkpoints" / "latest-rank0.pt"
    process = start(tmp_path / "before", *words, f"out={out}", ranks=2)
    interrupt(process, once=latest, sent=signal.SIGKILL)
    at = int(latest.resolve().stem.split("-")[0].removeprefix("ba"))
    before = batches(tmp_path / "before")
    assert 0 < at <= len(before) < len(unbroken), "killed after its end"
    assert before == unbroken[: len(before)]
    finished(start(tmp_path / "after", *words, f"out={out}", "autoresume=true", ranks=1))
    assert batches(tmp_path / "after") == unbroken[at:]
    a, b = read_record(out), read_record(tmp_path / "unbroken")
    assert (a["tokens"], a["sequences"], a["batches"]) == (b["tokens"], b["sequences"], b["batches"])


def test_a_checkpoint_between_epochs_goes_on_with_the_next(yaml, tmp_path):
    words = (str(yaml), "duration=3ep", "checkpoint_every=1ep", "batch_size=256")
    finished(start(tmp_path / "seen", *words, f"out={tmp_path / 'unbroken'}", ranks=1))
    unbroken = batches(tmp_path / "seen")
    out = tmp_path / "broken"
    process = start(tmp_path / "before", *words, f"out={out}", ranks=1)
    interrupt(process, once=out / "checkpoints" / "latest-rank0.pt", sent=signal.SIGKILL)
    at = int((out / "checkpoints" / "latest-rank0.pt").resolve().stem.split("-")[0].removeprefix("ba"))
    assert at == len(unbroken) // 3, "killed too late"
    finished(start(tmp_path / "after", *words, f"out={out}", "autoresume=true", ranks=1))
    assert batches(tmp_path / "after") == unbroken[at:]


@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_leaves_nothing_behind(yaml, tmp_path, workers):
    """No shared memory, no process; and the same command goes on."""
    shared = Path("/dev/shm")
    before = {file.name for file in shared.iterdir()}
    out = tmp_path / "run"
    words = (str(yaml), "checkpoint_every=3ba", f"data.workers={workers}", f"out={out}")
    process = start(tmp_path / "seen", *words, ranks=1)
    interrupt(process, once=out / "checkpoints" / "latest-rank0.pt", sent=signal.SIGINT)
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    left = {file.name for file in shared.iterdir() if file.stat().st_uid == os.getuid()} - before
    assert not [name for name in left if f"_{process.pid}_" in name or name.endswith(("locals", "barrier"))], left
    finished(start(tmp_path / "after", *words, "autoresume=true", ranks=1))
    assert read_record(out)["status"] == "finished"
