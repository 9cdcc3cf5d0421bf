"""Where a training step's time goes, beside the least that each part could take on this machine.

    python -m benchmarks.profile yamls/pretrain/small.yaml batch_size=64
    python -m benchmarks.profile YAML [key=value ...] --steps 40 --trace trace.json --out benchmarks/results/profile-small

It is `recipe.train`'s own run, through Composer's trainer: first steps to warm up, then steps that are only timed, then steps
under torch's profiler. Writes OUT.json and OUT.png; --trace adds what chrome://tracing and Perfetto read. Of the run itself
nothing is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import measurement, profile_parts, roofline
from benchmarks.measurement import Ceilings
from benchmarks.profile_parts import PARTS, STEP
from benchmarks.roofline import Counts
from recipe import train
from recipe.config import TrainConfig, load
from recipe.errors import UserError, exit_status
from recipe.model.architectures import architecture
from recipe.system.quiet import quiet_libraries
from recipe.training.callbacks import AfterBatch

OUT = "benchmarks/results/profile"
WARM_UP = 4  # steps before anything is timed


class Watch:
    """Times a run's steps, then profiles as many, told of each batch's end."""

    def __init__(self, steps: int, on_gpu: bool, trace: str | None) -> None:
        self.steps, self.on_gpu, self.trace = steps, on_gpu, trace
        self.batches = 0
        self.seconds: list[float] = []  # of the steps that are only timed
        self.counted = [0.0, 0.0, 0.0, 0.0]  # in the profiled ones: sequences, tokens, squared lengths, predictions
        self.whole_us, self.parts_us = 0.0, dict.fromkeys(PARTS, 0.0)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        self._profiler = profile(activities=activities)
        self._range = torch.profiler.record_function(STEP)

    def __call__(self, state: Any) -> None:
        self.batches += 1
        timed = self.batches - WARM_UP
        if self.batches == 1:
            profile_parts.hook_modules(state.model)
        if timed == 0:
            self._clock = measurement.Stopwatch("cuda" if self.on_gpu else "cpu")
        elif 0 < timed <= self.steps:
            self._clock.lap()
        if timed == self.steps:
            self.seconds = self._clock.read()
            self._profiler.start()
            self._range.__enter__()
        elif timed > self.steps:
            self._count(state.batch)
        if timed == 2 * self.steps:
            self._finish()

    def _count(self, batch: dict[str, Any]) -> None:
        for i, value in enumerate(batch["counts"].sum(axis=0).tolist()):
            self.counted[i] += value / self.steps

    def _finish(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
        self._range.__exit__(None, None, None)
        self._profiler.stop()
        self.whole_us, self.parts_us = profile_parts.part_times(self._profiler.events(), self.on_gpu)
        if self.trace:
            self._profiler.export_chrome_trace(self.trace)


def measure(config: TrainConfig, steps: int, trace: str | None = None) -> dict[str, Any]:
    """One run of `config`, its duration and its outputs aside: the record of where its time went."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            config,
            out=str(Path(folder) / "run"),
            duration=f"{WARM_UP + 2 * steps}ba",
            log_every=steps,
            eval_every="0ba",
            checkpoint_every="0ba",
            autoresume=False,
            data=dataclasses.replace(config.data, eval_documents=1),
        )
        watch = Watch(steps, config.device != "cpu" and torch.cuda.is_available(), trace)
        with profile_parts.ranges():
            run = train.train(config, [AfterBatch(watch)])
    measured = measurement.measure_ceilings("cuda" if watch.on_gpu else "cpu", getattr(torch, run["precision"]))
    return _record(config, run, watch, measured)


def _record(config: TrainConfig, run: dict[str, Any], watch: Watch, ceilings: Ceilings) -> dict[str, Any]:
    sequences, tokens, squared, masked = watch.counted
    kind = architecture(config.model.name)
    counts = Counts(tokens, squared, masked)
    width = 2 if run["precision"] == "bfloat16" else 4
    work = roofline.floors(run["encoder"], kind.gated, run["parameters"], counts, width)
    step_ms = 1e3 * sum(watch.seconds) / watch.steps
    fifths = list(measurement.spread(watch.seconds, 1e3).values())
    whole_ms = watch.whole_us / watch.steps / 1e3
    parts = []
    for part in PARTS:
        ms = watch.parts_us[part] / watch.steps / 1e3
        floor, bound = roofline.floor_ms(work[part], ceilings) if part in work else (0.0, "")
        parts.append({"part": part, "ms": ms, "share": ms / whole_ms, "floor_ms": floor, "bound": bound})
    return {
        "config": {**run["config"], "out": None},  # a folder that is gone
        "device": run["device"],
        "backends": run["backends"],
        "microbatch": run["microbatch"],
        "precision": run["precision"],
        "threads": torch.get_num_threads(),
        "ceilings": {"tflops": ceilings.flops_per_s / 1e12, "gb_per_s": ceilings.bytes_per_s / 1e9},
        "step": {"ms": step_ms, "p20_p50_p80_ms": fifths, "profiled_ms": whole_ms, "steps": watch.steps,
                 "sequences": sequences, "tokens": tokens, "predictions": masked,
                 "tokens_per_s": 1e3 * tokens / step_ms},
        "parts": parts,
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    step, ceilings, device = record["step"], record["ceilings"], record["device"]
    summed, floor = (sum(part[key] for part in record["parts"]) for key in ("ms", "floor_ms"))
    lines = [
        f"{record['config']['model']['name']} on {device['count']} x {device['name']}, {record['precision']}: "
        f"{ceilings['tflops']:.3g} TFLOP/s in a matrix product, {ceilings['gb_per_s']:.3g} GB/s in a copy, both measured here",
        f"step {step['ms']:.1f} ms, {step['tokens']:,.0f} real tokens, {step['tokens_per_s']:,.0f} tokens/s; under the profiler "
        f"{step['profiled_ms']:.1f} ms, of which the parts are {summed:.1f} ms",
        "",
        f"| {'part':<20} | {'ms':>8} | {'share':>6} | {'floor ms':>8} | bound  | of floor |",
        "|---|---|---|---|---|---|",
    ]
    for part in record["parts"]:
        times = f"{part['ms'] / part['floor_ms']:.1f} x" if part["floor_ms"] else ""
        lines.append(
            f"| {part['part']:<20} | {part['ms']:8.2f} | {part['share']:6.1%} | {part['floor_ms']:8.2f} | {part['bound']:<6} "
            f"| {times:>8} |"
        )
    lines.append(f"| {'sum':<20} | {summed:8.2f} | {1:6.1%} | {floor:8.2f} |        | {summed / floor:6.1f} x |")
    return "\n".join(lines)


def draw(record: dict[str, Any], file: Path) -> None:
    """Measured beside floor, a pair of bars for each part; nothing where matplotlib is not installed."""
    parts = [part for part in record["parts"] if part["ms"] or part["floor_ms"]]
    figure = measurement.figure(8, 0.5 * len(parts) + 1.6)
    if figure is None:
        return
    axes, places = figure.add_subplot(), range(len(parts))
    axes.barh([p - 0.2 for p in places], [part["ms"] for part in parts], 0.38, label="measured", color="#4878a8")
    axes.barh([p + 0.2 for p in places], [part["floor_ms"] for part in parts], 0.38, label="floor", color="#d8a048")
    for place, part in enumerate(parts):
        axes.annotate(f" {part['share']:.1%}", (part["ms"], place - 0.2), va="center", fontsize=8)
    axes.set_yticks(list(places), [part["part"] for part in parts])
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("ms a step")
    config, step = record["config"], record["step"]
    axes.set_title(
        f"{config['model']['name']}, {config['model']['num_hidden_layers']} x {config['model']['hidden_size']}, sequence "
        f"{config['data']['sequence_length']}, batch {config['batch_size']}: {step['tokens_per_s']:,.0f} tokens/s\n"
        f"{record['device']['name']}, {record['precision']}",
        fontsize=10,
    )
    axes.legend()
    figure.savefig(file)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.splitlines()[0])
    parser.add_argument("yaml", help="a training YAML")
    parser.add_argument("words", nargs="*", metavar="key=value")
    parser.add_argument("--steps", type=int, default=12, help="timed, and as many profiled (%(default)s)")
    parser.add_argument("--trace", metavar="FILE", help="write a Chrome trace of the profiled steps")
    parser.add_argument("--out", default=OUT, help="names of the results without .json and .png (%(default)s)")
    return exit_status(lambda: _run(parser.parse_intermixed_args(argv)))


def _run(words: argparse.Namespace) -> None:
    if words.steps < 2:
        raise UserError(f"--steps {words.steps}: give 2 or more")
    quiet_libraries()
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # where there is no GPU, the profiler says so as an error
    torch.set_float32_matmul_precision("high")
    out = Path(words.out)
    record = measure(load(TrainConfig, words.yaml, ["out=unused", *words.words]), words.steps, words.trace)
    measurement.write(out.with_name(f"{out.name}.json"), record)
    draw(record, out.with_name(f"{out.name}.png"))
    print(f"\n{table(record)}\n\n{out}.json, {out}.png{f', {words.trace}' if words.trace else ''}")


if __name__ == "__main__":
    sys.exit(main())
