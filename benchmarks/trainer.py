"""What stands around a training step: the trainer against a bare loop over the same step, microbatches, and growth.

    python -m benchmarks.trainer yamls/pretrain/small.yaml batch_size=32
    python -m benchmarks.trainer YAML [key=value ...] --rounds 9 --out benchmarks/results/trainer.json

One model, one optimizer and the same batches in both loops, in turns; a ratio is that of two neighbouring turns, and the median
of the rounds is given. On a CPU also whether smaller microbatches are faster, with the C library keeping freed memory or not;
and how time grows with layers and memory with tokens. With model.compile=true both loops
take the compiled step, and the rest the plain one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import measurement
from benchmarks.measurement import spread
from recipe import records, train
from recipe.config import TrainConfig, load
from recipe.data.batch import count_tokens, split_batch
from recipe.errors import end, exit_status
from recipe.model.architecture import STREAM
from recipe.system.hardware import Hardware, keep_freed_memory
from recipe.system.quiet import quiet_libraries
from recipe.training import memory
from recipe.training.callbacks import AfterBatch, Meter
from recipe.training.composer_model import Pretraining
from recipe.training.optimizers import build_optimizer
from recipe.training.preflight import Plan, make_plan

OUT = "benchmarks/results/trainer.json"
STEPS = 4  # of a turn, behind one that is not timed
LAYERS = (1, 2, 4)  # times the model's
GPU_TOKENS = 32_768  # of the step whose growth is measured


def compare(plan: Plan, rounds: int) -> dict[str, Any]:
    """Seconds a step of the trainer and of a bare loop, in turns, and their ratio."""
    batches = first_batches(plan, STEPS + 1)
    watch = measurement.Stopwatch(plan.hardware.device)
    meter = Meter(
        train.with_measured_peak(plan.hardware),
        plan.price,
        lambda sums: train.step_flops(plan, sums),
        STEPS,
        lambda _: None,
    )
    trainer = train.build_trainer(plan, train.build_model(plan), None, [meter, AfterBatch(lambda _: watch.lap())])
    spec = train.data_spec(plan, train=True, batch_size=plan.config.batch_size // plan.ranks)
    spec.dataloader = batches
    model, optimizer = trainer.state.model, trainer.state.optimizers[0]

    def fit() -> None:
        trainer.fit(train_dataloader=spec, duration=f"{len(batches)}ba")

    def bare() -> None:
        model.train()
        for batch in batches:
            step(model, optimizer, batch, plan.microbatch.size, plan.hardware)
            watch.lap()

    def turn(loop: Callable[[], None]) -> float:
        """Seconds a step; the first one, which begins the loop, is left out."""
        watch.start()
        with contextlib.redirect_stdout(io.StringIO()):
            loop()
        return sum(watch.read()[1:]) / STEPS

    seconds = measurement.in_turns({"bare": partial(turn, bare), "trainer": partial(turn, fit)}, rounds)
    trainer.close()
    ratios = measurement.ratios(seconds["bare"], seconds["trainer"], rounds)
    return {"trainer_step_ms": spread(seconds["trainer"], 1e3), "bare_step_ms": spread(seconds["bare"], 1e3),
            "trainer_of_bare": spread(ratios), "ratios": ratios, "steps_of_a_turn": STEPS}  # fmt: skip


def first_batches(plan: Plan, count: int) -> list[dict[str, Any]]:
    spec = train.data_spec(plan, train=True, batch_size=plan.config.batch_size // plan.ranks)
    return list(itertools.islice(spec.dataloader, count))


def step(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: dict, microbatch: int, hardware: Hardware
) -> None:
    """What nobody can leave out."""
    optimizer.zero_grad(set_to_none=True)
    predicted = count_tokens(batch)["loss_generating"]
    for piece in split_batch(batch, microbatch):
        share = count_tokens(piece)["loss_generating"] / predicted
        moved = {
            name: value.to(hardware.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in piece.items()
        }
        (model(moved)["loss"] * share).backward()
    optimizer.step()


def microbatches(plan: Plan, rounds: int) -> list[dict[str, Any]]:
    """Tokens a second with the batch in 1, 2, 4 and 8 pieces, as the C library has it by default and keeping freed memory."""
    batches, model = first_batches(plan, 2), train.build_model(plan)
    wrapped = Pretraining(model, plan.hardware.device, plan.hardware.autocast).train()
    optimizer = build_optimizer(model, plan.config.optimizer, plan.hardware.activation_dtype)
    sizes = [plan.config.batch_size // pieces for pieces in (1, 2, 4, 8) if plan.config.batch_size >= pieces]

    def tokens_per_s(keep: bool, size: int, source: Iterator[dict[str, Any]]) -> float:
        keep_freed_memory(keep)
        batch = next(source)
        seconds, _ = measurement.timed(partial(step, wrapped, optimizer, batch, size, plan.hardware))
        return count_tokens(batch)["total"] / seconds

    calls = {
        (keep, size): partial(tokens_per_s, keep, size, itertools.cycle(batches))
        for keep in (False, True)
        for size in sizes
    }
    speeds = measurement.in_turns(calls, rounds)
    keep_freed_memory()
    return [
        {"microbatch": size, "keeps_freed_memory": keep, "tokens_per_s": spread(values)}
        for (keep, size), values in speeds.items()
    ]


def growth(plan: Plan, rounds: int) -> dict[str, Any]:
    """A step's time at once, twice and four times the layers, and its memory at once, twice and four times the tokens."""
    batch, hardware, size = first_batches(plan, 1)[0], plan.hardware, plan.microbatch.size
    length = plan.config.data.sequence_length
    if hardware.kind == "gpu":  # its microbatch may be what fills the memory, and four times that is wanted here
        size = min(size, GPU_TOKENS // length)
        batch = split_batch(batch, size)[0]
    sizes = [dataclasses.replace(plan.encoder, num_hidden_layers=n * plan.encoder.num_hidden_layers) for n in LAYERS]
    models = [plan.architecture.masked_lm(one, length, plan.backends).to(hardware.device) for one in sizes]
    wrapped = [Pretraining(model, hardware.device, hardware.autocast).train() for model in models]
    optimizers = [build_optimizer(model, plan.config.optimizer, plan.hardware.activation_dtype) for model in models]
    steps = [partial(step, *pair, batch, size, hardware) for pair in zip(wrapped, optimizers, strict=True)]
    calls = {number: lambda one=one: measurement.timed(one, hardware.device)[0] for number, one in enumerate(steps)}
    times = [spread(seconds, 1e3)["p50"] for seconds in measurement.in_turns(calls, rounds).values()]
    layers = [encoder.num_hidden_layers for encoder in sizes]
    slopes = [(b - a) / (m - n) for a, b, n, m in zip(times, times[1:], layers, layers[1:], strict=False)]
    counts = [size * n for n in LAYERS]
    peaks = [step_peak(wrapped[0], count, length, plan) for count in counts]
    each = [(b - a) / ((m - n) * length) for a, b, n, m in zip(peaks, peaks[1:], counts, counts[1:], strict=False)]
    return {
        "layers": layers, "step_ms": times, "ms_of_a_layer": slopes, "ms_ratio": slopes[1] / slopes[0],
        "tokens": [count * length for count in counts], "peak_mib": [peak / 2**20 for peak in peaks],
        "kib_of_a_token": [size / 1024 for size in each], "kib_ratio": each[1] / each[0],
    }  # fmt: skip


def step_peak(model: torch.nn.Module, sequences: int, length: int, plan: Plan) -> int:
    """Most bytes that a forward and a backward pass of so many full sequences had alive, in a step that really runs."""
    batch = plan.architecture.largest_batch(sequences, length, plan.config.data.mask_rate)
    batch = {
        name: value.to(plan.hardware.device) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    model.zero_grad(set_to_none=True)
    with memory.LiveBytes() as live:
        model(batch)["loss"].backward()
    return live.peak


def tell(record: dict[str, Any]) -> str:
    compared, grown = record["trainer"], record["growth"]
    ratio = compared["trainer_of_bare"]
    lines = [
        f"trainer {compared['trainer_step_ms']['p50']:.1f} ms a step, bare loop {compared['bare_step_ms']['p50']:.1f} ms: "
        f"{ratio['p50']:.1%} of its speed (p20 {ratio['p20']:.1%}, p80 {ratio['p80']:.1%})"
    ]
    for row in record["microbatches"]:
        kept = "freed memory kept" if row["keeps_freed_memory"] else "C library's default"
        lines.append(f"microbatches of {row['microbatch']:>4}, {kept}: {row['tokens_per_s']['p50']:,.0f} tokens/s")
    if grown:
        pairs = ", ".join(f"{n} layers {ms:.0f} ms" for n, ms in zip(grown["layers"], grown["step_ms"], strict=True))
        lines.append(f"{pairs}: the later ones cost {grown['ms_ratio']:.2f} x what the first did, each")
        pairs = ", ".join(f"{n:,} tokens {m:.0f} MiB" for n, m in zip(grown["tokens"], grown["peak_mib"], strict=True))
        lines.append(f"{pairs}: the later ones cost {grown['kib_ratio']:.2f} x what the first did, each")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description=__doc__.splitlines()[0])
    parser.add_argument("yaml", help="a training YAML")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path(OUT), help="JSON file (%(default)s)")
    words = parser.parse_intermixed_args(argv)
    words.rounds = max(words.rounds, 2)
    return exit_status(lambda: _run(words))


def _run(words: argparse.Namespace) -> None:
    quiet_libraries()
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    with tempfile.TemporaryDirectory() as folder:
        aside = [f"out={folder}/run", "duration=1000000ba", "data.eval_documents=1", "autoresume=false"]
        plan = make_plan(load(TrainConfig, words.yaml, [*words.words, *aside]))
        record = {
            "config": {**train.to_dict(plan.config), "out": None},  # a folder that is gone
            "device": records.device(plan.hardware.kind, plan.hardware.name, plan.hardware.count, plan.price),
            "threads": torch.get_num_threads(),
            "trainer": compare(plan, words.rounds),
            "microbatches": microbatches(plan, words.rounds) if plan.hardware.kind == "cpu" else [],
            "growth": growth(plan, words.rounds) if plan.architecture.form == STREAM else None,
        }
    measurement.write(words.out, record)
    print(f"{tell(record)}\n\n{words.out}")


if __name__ == "__main__":
    end(main)
