"""`python -m benchmarks.predict MODEL FILE [--rows N] [--rounds N] [--out FILE]`: recipe.predict beside transformers' pipeline.

MODEL is what recipe.finetune leaves. Of a Hugging Face encoder both load the same folder; of one of this project's the pipeline
loads what recipe.export makes of it. Two processes, one with each, predict the same texts of FILE in turns. The pipeline has
batches of 1, 8, 32 and 64, texts as they come and sorted by length, float32 and, where the machine has it, bfloat16; it keeps
freed memory, as recipe.predict does. What counts is its fastest setting. Reading the file is part of neither.
"""

from __future__ import annotations

import argparse
import atexit
import itertools
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.measurement import in_turns, peak_mem_gib, spread, write
from recipe.config import PredictConfig
from recipe.config.finetune import Files
from recipe.errors import UserError, end, exit_status
from recipe.finetune.files import read_rows
from recipe.finetune.folder import FineTunedFolder, open_fine_tuned
from recipe.predict import Tally, load_predictor
from recipe.system.hardware import find_hardware, keep_freed_memory

OURS = "recipe.predict"
BATCHES = (1, 8, 32, 64)
Texts = Sequence[str]


def ours(model: str) -> Callable[[str, Texts], list[str]]:
    predictors: dict[str, Any] = {}

    def run(precision: str, texts: Texts) -> list[str]:
        if precision not in predictors:
            predictors[precision] = load_predictor(
                PredictConfig(model=model, file="", device="cpu", precision=precision)
            )
        return [one["prediction"] for one in predictors[precision].answers([(text,) for text in texts], Tally())]

    return run


def theirs(model: str) -> Callable[[str, Texts], list[str]]:
    from transformers import pipeline

    found: FineTunedFolder = open_fine_tuned(model)
    folder = str(found.folder)
    if found.checkpoint.padding is None:
        folder = tempfile.mkdtemp(prefix="predict-")
        atexit.register(shutil.rmtree, folder)
        folder = f"{folder}/exported"
        subprocess.run([sys.executable, "-m", "recipe.export", model, f"out={folder}"], check=True)
    keep_freed_memory()
    pipes: dict[str, Any] = {}

    def run(setting: str, texts: Texts) -> list[str]:
        precision, order, batch = setting.split()
        if precision not in pipes:
            dtype = torch.bfloat16 if precision == "amp_bf16" else torch.float32
            pipes[precision] = pipeline(
                "text-classification", folder, device="cpu", dtype=dtype, trust_remote_code=folder != str(found.folder)
            )
        places = sorted(range(len(texts)), key=lambda i: len(texts[i])) if order == "sorted" else range(len(texts))
        limit = {"truncation": True, "max_length": found.task["max_length"]}
        said = pipes[precision]([texts[i] for i in places], batch_size=int(batch), **limit)
        return [label for _, label in sorted(zip(places, (one["label"] for one in said), strict=True))]

    return run


def serve(
    build: Callable[[str], Callable[[str, Texts], list[str]]], model: str, texts: Texts, pipe: Connection
) -> None:
    """In a process of its own: a setting comes in, seconds and predictions go out."""
    run = build(model)
    while setting := pipe.recv():
        started = time.perf_counter()
        said = run(setting, texts)
        pipe.send((time.perf_counter() - started, said, peak_mem_gib()))


def measure(model: str, texts: Texts, rounds: int) -> dict[str, Any]:
    context, pipes, workers = multiprocessing.get_context("spawn"), {}, []
    for name, build in ((OURS, ours), ("pipeline", theirs)):
        pipes[name], far = context.Pipe()
        workers.append(context.Process(target=serve, args=(build, model, texts, far), daemon=True))
        workers[-1].start()
    bf16 = find_hardware("cpu", "auto", 1).autocast is not None
    precisions = ["fp32", *(["amp_bf16"] if bf16 else [])]
    settings = [" ".join(map(str, one)) for one in itertools.product(precisions, ("as-it-comes", "sorted"), BATCHES)]

    def ask(name: str, setting: str) -> tuple[float, list[str], float]:
        pipes[name].send(setting)
        return pipes[name].recv()

    calls = {(OURS, precision): lambda p=precision: ask(OURS, p) for precision in precisions}
    calls |= {("pipeline", setting): lambda s=setting: ask("pipeline", s) for setting in settings}
    found = in_turns(calls, rounds)
    for pipe in pipes.values():
        pipe.send("")
    for worker in workers:
        worker.join()
    rows = [
        {"name": name, "setting": setting, "seconds": spread([one[0] for one in results]), "rows_per_s":
         len(texts) / spread([one[0] for one in results])["p50"], "peak_mem_gib": results[-1][2]}
        for (name, setting), results in found.items()
    ]  # fmt: skip
    agree = {
        setting: sum(a == b for a, b in zip(found[OURS, "fp32"][0][1], results[0][1], strict=True)) / len(texts)
        for (name, setting), results in found.items() if name != OURS
    }  # fmt: skip

    def fastest(name: str, word: str = "") -> float:
        return max(row["rows_per_s"] for row in rows if row["name"] == name and word in row["setting"])

    return {
        "rows": rows,
        "same_predictions": agree,
        "times_the_fastest_pipeline": fastest(OURS) / fastest("pipeline"),
        "times_the_fastest_pipeline_unsorted": fastest(OURS) / fastest("pipeline", "as-it-comes"),
    }


def texts_of(model: str, file: Path, most: int) -> list[str]:
    task = open_fine_tuned(model).task
    rows = read_rows(file, Files(**task["files"]), task["text"])
    texts = [row.cells[task["text"][0]] for row in itertools.islice(rows, most) if not row.problem]
    if not texts or len(task["text"]) != 1:
        raise UserError(f"{file}: no texts of one column for {model}")
    return texts


def report(result: dict[str, Any]) -> str:
    lines = [f"{'':<16}{'setting':<26}{'rows/s':>9}{'s, p20':>9}{'p50':>8}{'p80':>8}"]
    for row in sorted(result["rows"], key=lambda row: -row["rows_per_s"]):
        seconds = row["seconds"]
        lines.append(
            f"{row['name']:<16}{row['setting']:<26}{row['rows_per_s']:>9,.0f}{seconds['p20']:>9.2f}{seconds['p50']:>8.2f}"
            f"{seconds['p80']:>8.2f}"
        )
    return "\n".join([
        *lines,
        f"recipe.predict is {result['times_the_fastest_pipeline']:.2f} x the fastest pipeline, "
        f"{result['times_the_fastest_pipeline_unsorted']:.2f} x the fastest whose texts are not sorted",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=1000, help="texts, the first of the file")
    parser.add_argument("--rounds", type=int, default=3, help="turns that count, behind one that does not")
    parser.add_argument("--out", type=Path, help="the result as JSON")
    words = parser.parse_args()
    texts = texts_of(words.model, words.file, words.rows)
    hardware = find_hardware("cpu", "auto", 1)
    result = {"device": hardware.devices, "threads": torch.get_num_threads(), "texts": len(texts)}
    result |= measure(words.model, texts, words.rounds)
    print(report(result))
    if words.out:
        write(words.out, result)


if __name__ == "__main__":
    end(lambda: exit_status(main))
