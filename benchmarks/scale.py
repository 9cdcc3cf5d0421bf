"""`python -m benchmarks.scale DATASET [--out FILE]`: the parts that recipe.plan --nodes calculates with, and two ranks beside it.

DATASET is what recipe.prepare wrote. Measured are planning, reading, a checkpoint's writing, and the step of a small encoder: on
one rank while the other core does the same, on two ranks, and the exchange of its gradients alone between them. Of two ranks
the calculation is then held against what they took. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import timed, write
from recipe.config import Data
from recipe.cost.scale import WEIGHT_BYTES, Job, Links, Parts, scale
from recipe.data.batch import count_tokens
from recipe.data.sampler import BatchSampler, EpochSampler
from recipe.data.shards import read_info
from recipe.data.stream import open_loader
from recipe.errors import UserError, end, exit_status
from recipe.records import read_record
from recipe.system.files import write_whole

OUT = Path("benchmarks/results/scale.json")
BATCH = 16  # sequences of the step, over all ranks
STEPS, FIRST = 14, 4  # of a run, and those that do not count
DOCUMENTS = 10_000_000  # that are planned
SECONDS = 5.0  # of reading
EXCHANGES = 20
CHECKPOINT_PARAMETERS = 40_000_000
TURNS = 2
YAML = "yamls/pretrain/small.yaml"


def planned_documents_per_s() -> float:
    """Of batches of 4,096, in an order that was shuffled."""
    sizes = [50_000] * (DOCUMENTS // 50_000)

    def plan() -> int:
        numbers = (block.numbers for block in EpochSampler(sizes, 1, 0).after(0))
        return sum(len(batch.numbers) for batch in BatchSampler(4096, whole=True).batches(numbers, 0))

    seconds, planned = timed(plan)
    return planned / seconds


def read_tokens_per_s(dataset: str) -> float:
    """Of one process, in batches of 1,024 sequences; planning them, which is in it, takes some hundredths."""
    info = read_info(dataset)
    data = Data(path=dataset)
    size = min(1024, info.split("train").documents)
    loader = open_loader(data, info, train=True, batch_size=size, seed=17, batching="sequences", workers=0)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    next(batches)  # shards are opened
    tokens, spent = 0, 0.0
    while spent < SECONDS:
        seconds, batch = timed(lambda: next(batches))
        tokens, spent = tokens + count_tokens(batch)["total"], spent + seconds
    return tokens / spent


def checkpoint_bytes_per_s(folder: Path) -> float:
    state = {str(i): torch.rand(CHECKPOINT_PARAMETERS // 10) for i in range(10)}
    size = sum(tensor.nbytes for tensor in state.values())

    def save(draft: Path) -> None:
        torch.save(state, draft)
        with draft.open("rb+") as written:
            os.fsync(written.fileno())

    return size / statistics.median(timed(lambda i=i: write_whole(folder / f"{i}.pt", save))[0] for i in range(TURNS))


def shard_bytes_per_token(dataset: str) -> float:
    """As they travel: packed where they are packed."""
    shards = json.loads((Path(dataset) / "train/index.json").read_text("utf-8"))["shards"]
    size = sum((shard["zip_data"] or shard["raw_data"])["bytes"] for shard in shards)
    return size / read_info(dataset).split("train").tokens


def start(dataset: str, out: Path, ranks: int, batch_size: int) -> subprocess.Popen:
    """A short run, one thread a rank."""
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m") if ranks > 1 else ()
    words = (f"data.path={dataset}", f"out={out}", f"batch_size={batch_size}", f"duration={STEPS}ba", "log_every=1",
             f"microbatch_size={batch_size // ranks}", "device=cpu", "data.eval_documents=8")  # fmt: skip
    command = [sys.executable, "-m", *launcher, "recipe.train", YAML, *words]
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)


def step_of(out: Path) -> dict[str, float]:
    """The median of a finished run's steps, and what the calculation needs of it."""
    record = read_record(out)
    ends = [row["seconds"] for row in record["loss_curve"]][FIRST:]
    seconds = statistics.median(after - before for before, after in itertools.pairwise(ends))
    return {"seconds": seconds, "tokens": record["tokens"] / record["batches"], "parameters": record["parameters"]}


def runs(dataset: str, folder: Path, turn: int) -> dict[str, Any]:
    """A step of half a batch on each of two ranks that know nothing of each other, then of the batch on two that do."""
    alone = [folder / f"alone-{turn}-{i}" for i in range(2)]
    together = folder / f"together-{turn}"
    for started in ([start(dataset, out, 1, BATCH // 2) for out in alone], [start(dataset, together, 2, BATCH)]):
        for process in started:
            if process.wait():
                raise UserError(f"{' '.join(process.args)} failed")
    halves = [step_of(out) for out in alone]
    return {"half": max(one["seconds"] for one in halves), "two": step_of(together)}


def exchange(parameters: int, file: Path) -> None:
    """On each of two ranks: rank 0 writes the seconds of an all-reduce of so many float32, in DDP's buckets of 25 MiB."""
    torch.distributed.init_process_group("gloo")
    buckets = torch.ones(parameters).split((25 << 20) // WEIGHT_BYTES)
    spent = []
    for _ in range(EXCHANGES):
        torch.distributed.barrier()
        began = time.perf_counter()
        for bucket in buckets:
            torch.distributed.all_reduce(bucket)
        spent.append(time.perf_counter() - began)
    if torch.distributed.get_rank() == 0:
        write_whole(file, lambda draft: draft.write_text(json.dumps(statistics.median(spent)), "utf-8"))
    torch.distributed.destroy_process_group()


def exchange_seconds(parameters: int, folder: Path) -> float:
    file = folder / "exchange.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", __spec__.name,
               "--exchange", str(parameters), str(file)]  # fmt: skip
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)
    return json.loads(file.read_text("utf-8"))


def two_ranks(dataset: str, folder: Path, parts: Parts) -> dict[str, Any]:
    """The calculation of a step beside the step."""
    turns = [runs(dataset, folder, turn) for turn in range(TURNS)]
    half = statistics.median(turn["half"] for turn in turns)
    took = statistics.median(turn["two"]["seconds"] for turn in turns)
    of_run = turns[0]["two"]
    spent = exchange_seconds(of_run["parameters"], folder)
    links = Links(between=1.0, within=WEIGHT_BYTES * of_run["parameters"] / spent)  # a ring of two sends it once
    job = Job(BATCH, of_run["tokens"], 2 * half, of_run["parameters"], checkpoint_every=0)
    found = scale(job, machines=1, devices=2, parts=parts, links=links, workers=1)
    return {
        "batch": BATCH, "parameters": of_run["parameters"], "half_batch_alone_s": half, "exchange_s": spent,
        "calculated_s": found.step, "measured_s": took, "calculated_of_measured": found.step / took,
        "turns": [{"half_batch_alone_s": turn["half"], "measured_s": turn["two"]["seconds"]} for turn in turns],
    }  # fmt: skip


def main() -> None:
    if sys.argv[1:2] == ["--exchange"]:
        exchange(int(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.set_num_threads(1)
        parts = Parts(
            planned_documents_per_s(), read_tokens_per_s(words.dataset), checkpoint_bytes_per_s(folder),
            shard_bytes_per_token(words.dataset),
        )  # fmt: skip
        held = two_ranks(words.dataset, folder, parts)
    write(words.out, {"parts": dataclasses.asdict(parts), "two_ranks": held})
    print(json.dumps({**dataclasses.asdict(parts), **held}, indent=2))


if __name__ == "__main__":
    end(lambda: exit_status(main))
