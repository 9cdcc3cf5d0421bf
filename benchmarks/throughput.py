"""Real tokens a second of the whole training step, side by side with what users would take instead.

    python -m benchmarks.throughput                                     this machine's sizes, drawn batches
    python -m benchmarks.throughput yamls/pretrain/small.yaml --data data/books
    ... --peer examples=PATH --python examples=ENV/bin/python           a checkout, and who can import it

Each model has a process of its own, and they take turns in one run: a few steps each, on the same batches, the order turned
round each time. Bare rows are forward, loss, backward and optimizer on batches in memory; the trainer's row is `recipe.train`
with its loader, meter and schedule, on the dataset of --data. Padding is not counted. "kept" rows: the process keeps the memory
it frees, as `recipe.train` lets it (on a CPU); the rivals' do not, as their users run them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import measurement, peers, throughput_batches, throughput_memory
from benchmarks import throughput_report as report
from benchmarks.peers import Absent
from recipe import shipped
from recipe.errors import end
from recipe.training import ceilings

SIZES = {
    "tiny": (32, 1, 1, 64, 1536),  # to rehearse with, and the size of its vocabulary
    "small": (256, 4, 4, 1024),
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
}
SMALL_STEPS = 2  # too few for a loss to fall
LAST_LINES = 40  # of the log of a process that failed, which are shown
WARM_UP, STEPS_A_TURN = 3, {"cpu": 3, "cuda": 8}
TOKENS = {"cpu": 4_096, "cuda": 32_768}  # token slots a step; on a GPU half of it, and so on, until all processes fit


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 1 where a loss did not fall."""
    words = arguments(argv)
    if words.small:
        measurement.small_ceilings()
    on_gpu, start = torch.cuda.is_available(), time.perf_counter()
    device = "cuda" if on_gpu else "cpu"
    ceiling = ceilings.matmul_flops(device, torch.bfloat16, 1.0)
    print(f"{report.device_name(on_gpu)}: {ceiling / 1e12:.3g} TFLOP/s bf16 matrix product, measured", flush=True)
    cases = []
    for name, sizes, settings in models(words, on_gpu):
        for length in words.lengths or ([128, 512, 1024] if on_gpu else [128, 512]):
            if words.seconds and time.perf_counter() - start > words.seconds:
                print(f"{name} at {length}: left out, {words.seconds:.0f} s are over", flush=True)
                continue
            case = measure(words, name, sizes, settings, length, on_gpu)
            ceiling = ceilings.keep(device, torch.bfloat16, report.finish(case, ceiling))
            cases.append(case)
            print(report.table(case), flush=True)
            report.write(cases, words.out, ceiling, on_gpu)  # after each, so that a run cut short leaves what it has
    print(words.out)
    return int(not words.small and any(row["fell"] is False for case in cases for row in case["rows"]))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument(
        "yamls", nargs="*", help="training YAMLs that give sizes; none: small, or on a GPU base and large"
    )
    parser.add_argument("--data", help="a prepared dataset to take batches from; needed for the trainer's row")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PATH", help="a rival's checkout")
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH", help="the interpreter for a peer")
    parser.add_argument("--lengths", nargs="+", type=int, help="sequence lengths (128 512, on a GPU also 1024)")
    parser.add_argument("--models", nargs="+", choices=SIZES, help="sizes, where no YAML gives them")
    parser.add_argument(
        "--tokens", type=int, help="token slots a step (4096; on a GPU 32768), halved until a GPU has room"
    )
    parser.add_argument("--small", action="store_true", help="few steps, and ceilings of small products: a rehearsal")
    parser.add_argument("--seconds", type=float, help="start no model or length after so many")
    parser.add_argument(
        "--patience", type=float, default=600, help="seconds in which a process must be warm, or answer (%(default)s)"
    )
    parser.add_argument("--turns", type=int, default=6, help="of each model (%(default)s)")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="these rows alone")
    parser.add_argument("--out", type=Path, help="the JSON file; the plot lies beside it")
    words = parser.parse_args(argv)
    for name in ("peer", "python"):
        pairs = getattr(words, name)
        if any("=" not in pair for pair in pairs):
            parser.error(f"--{name} {pairs[0]}: say NAME=PATH")
        setattr(words, name, dict(pair.split("=", 1) for pair in pairs))
    on_gpu = torch.cuda.is_available()
    words.data = words.data and str(Path(words.data).resolve())
    words.out = words.out or Path(f"benchmarks/results/throughput-{'gpu' if on_gpu else 'cpu'}.json")
    words.yamls = [str(shipped.find(path)) for path in words.yamls]
    if missing := [path for path in words.yamls if not Path(path).is_file()]:
        parser.error(f"{missing[0]}: no such file; see yamls/pretrain/")
    return words


def models(words: argparse.Namespace, on_gpu: bool) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(name, sizes, {lr, yaml}) of each model to measure."""
    if not words.yamls:
        keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
        names = words.models or (("base", "large") if on_gpu else ("small",))
        return [(name, dict(zip(keys, SIZES[name], strict=False)), {"lr": 5e-4, "yaml": None}) for name in names]
    from recipe.config import TrainConfig, load

    found = []
    for path in words.yamls:
        config = load(TrainConfig, path)
        names = set(peers.Sizes.__dataclass_fields__) - {"vocab_size"}
        sizes = {key: getattr(config.model, key) for key in names} | {"vocab_size": config.model.vocab_size or 30522}
        found.append((Path(path).stem, sizes, {"lr": config.optimizer.lr, "yaml": path}))
    return found


def rows(words: argparse.Namespace, settings: dict[str, Any], on_gpu: bool) -> list[dict[str, Any]]:
    """What is measured, in order: name and what its process is told."""
    kept = not on_gpu
    found = [{"name": "this", "model": "this", "kept_memory": kept}]
    found.append({"name": "this + compile", "model": "this", "compile": True, "kept_memory": kept})
    if words.data and settings["yaml"]:
        found.append({"name": "this, trainer", "model": "trainer", "kept_memory": kept})
    found.append({"name": "hf eager", "model": "hf"})
    found.append({"name": "hf sdpa + compile", "model": "hf", "compile": True})
    if not on_gpu:
        found.append({"name": "hf eager, kept", "model": "hf", "kept_memory": True})
    for name, path in words.peer.items():
        found.append({"name": name, "model": "peer", "path": str(Path(path).resolve())})
    defaults = {"kept_memory": False, "compile": False, "path": None, "memory_share": None}
    return [{**defaults, **row} for row in found if not words.only or row["name"] in words.only]


def measure(
    words: argparse.Namespace, name: str, sizes: dict[str, Any], settings: dict[str, Any], length: int, on_gpu: bool
) -> dict[str, Any]:
    """One model at one length: rows with the seconds and losses of each step, in turns."""
    device = "cuda" if on_gpu else "cpu"
    measured, tokens = rows(words, settings, on_gpu), words.tokens or TOKENS[device]
    if on_gpu:
        free, total = throughput_memory.free_bytes()
        tokens = throughput_memory.fitting_slots(measured, sizes, tokens, free)
        for row, share in zip(measured, throughput_memory.shares(measured, sizes, tokens, free, total), strict=True):
            row["memory_share"] = share
    sequences = max(1, tokens // length)
    steps = SMALL_STEPS if words.small else STEPS_A_TURN[device]
    count = WARM_UP + words.turns * steps
    with tempfile.TemporaryDirectory() as folder:
        if words.data:
            batches, source = throughput_batches.from_dataset(words.data, length, sequences, count, seed=17)
        else:
            batches, source = throughput_batches.drawn(length, sequences, count, sizes.get("vocab_size", 30522))
        tensors = [{name: value for name, value in batch.items() if name != "counts"} for batch in batches]
        torch.save(tensors, Path(folder) / "batches.pt")  # any torch reads it, whatever its numpy
        job = {
            "sizes": sizes, "length": length, "lr": settings["lr"], "device": device, "bf16": True,
            "static": not words.data, "batches": str(Path(folder) / "batches.pt"), "warm_up": WARM_UP, "yaml": settings["yaml"],
        }  # fmt: skip
        job["words"] = trainer_words(words, folder, length, sequences, count, on_gpu)
        workers = []
        for row in measured:
            print(f"  {name} at {length}: starting {row['name']}", file=sys.stderr, flush=True)
            python = words.python.get(row["name"], sys.executable)
            workers.append(Worker(row, {**job, **row}, python, Path(folder), words.patience))
            if not on_gpu:  # a GPU's machine has cores enough to compile for all at once
                workers[-1].wait()
        for worker in workers:
            worker.wait()
        take_turns([w for w in workers if not w.row["problem"]], words.turns, steps)
        for worker in workers:
            worker.close()
    found = [{key: value for key, value in worker.row.items() if key != "path"} for worker in workers]
    work = [report.counts(batch) for batch in batches[WARM_UP:]]
    return {
        "model": name, "sizes": sizes, "length": length, "sequences": sequences, "batches": source, "work": work,
        "turns": words.turns, "dtype": "bfloat16 autocast", "optimizer": "torch AdamW, fused, for all", "rows": found,
    }  # fmt: skip


def trainer_words(
    words: argparse.Namespace, folder: str, length: int, sequences: int, count: int, on_gpu: bool
) -> list[str]:
    """A GPU's memory is shared with the other rows, so what is free says nothing: there the batch is taken whole."""
    out = Path(folder) / "run"
    return [
        f"out={out}", f"data.path={words.data}", f"data.sequence_length={length}", f"batch_size={sequences}",
        f"microbatch_size={sequences if on_gpu else 0}", f"data.mask_rate={throughput_batches.MASK_RATE}",
        f"duration={count + 1}ba", "log_every=20",
        "seed=17", "data.workers=-1", "data.eval_documents=8",
    ]  # fmt: skip


def take_turns(workers: list[Worker], turns: int, steps: int) -> None:
    for turn in range(turns):
        for worker in measurement.turned(workers, turn):
            worker.turn(steps)
        print(f"    turn {turn + 1} of {turns}", file=sys.stderr, flush=True)


class Worker:
    """A model's process, ready to do steps; `row` says what it measured, or the problem for which it cannot."""

    def __init__(self, row: dict[str, Any], job: dict[str, Any], python: str, folder: Path, patience_s: float) -> None:
        self.row = {**row, "problem": None, "note": None, "seconds": [], "loss": []}
        self._patience_s, self._due = patience_s, time.perf_counter() + patience_s
        self._log = folder / f"{row['name'].replace(' ', '-')}.log"
        environment = dict(os.environ)
        try:
            if row["path"]:
                paths = [str(path) for path in peers.folders(Path(row["path"]))]
                environment["PYTHONPATH"] = os.pathsep.join(paths)
            with self._log.open("w") as log:
                self._process = subprocess.Popen(
                    [python, "-m", "benchmarks.throughput_worker", json.dumps(job)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=shipped.HOME, env=environment,
                )  # fmt: skip
        except (Absent, OSError) as problem:
            self._process = None
            self.row["problem"] = str(problem)
            return

    def wait(self) -> None:
        """Until it has warmed up, or has said why it cannot."""
        if not self.row["problem"] and "warm_up_s" not in self.row:
            self.row.update({k: v for k, v in self._answer().items() if k != "ready"})

    def turn(self, steps: int) -> None:
        if self.row["problem"]:
            return
        assert self._process and self._process.stdin
        self._due = time.perf_counter() + self._patience_s
        answer = self._answer({"steps": steps})
        for key in ("seconds", "loss"):
            self.row[key] += answer.get(key, [])
        self.row["peak_mem_gib"] = answer.get("peak_mem_gib")

    def _answer(self, question: dict[str, Any] | None = None) -> dict[str, Any]:
        """One line of its process, which is ended where it does not come in time."""
        try:
            if question:
                print(json.dumps(question), file=self._process.stdin, flush=True)
            if not select.select([self._process.stdout], [], [], max(0, self._due - time.perf_counter()))[0]:
                self._process.kill()
                self.row["problem"] = f"no answer within {self._patience_s:.0f} s"
                return {}
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"absent": f"its process ended: {self._last_line()}"}
        if "absent" in answer:
            self.row["problem"] = answer.pop("absent")
        return answer

    def _log_lines(self) -> list[str]:
        return self._log.read_text(errors="replace").strip().splitlines()

    def _last_line(self) -> str:
        lines = self._log_lines()
        return lines[-1][:200] if lines else f"status {self._process.wait()}"

    def close(self) -> None:
        if self._process:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process.stdout.close()
            if self.row["problem"]:  # whose log lies in a temporary folder
                print(
                    "\n    ".join([f"  {self.row['name']}:", *self._log_lines()[-LAST_LINES:]]),
                    file=sys.stderr,
                    flush=True,
                )


if __name__ == "__main__":
    end(main)
