"""`make demo`: the whole main job on a laptop, from text to a curve of loss against dollars, and scores beside their floor.

The text is the documentation of the installed packages, so nothing is downloaded. Two models, each at several budgets, every
budget a run of its own with its schedule decayed for it. Each encoder is scored on two small tasks made from held-out entries.
A second call continues where the first one stopped.

    python -m benchmarks.demo --seeds 3 --record benchmarks/results/demo     the committed record, made again

With several seeds each model is also fine-tuned at its random initialisation: the floor, which a run of one seed, with fewer
budgets, takes from the record.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import pareto, sweep
from recipe import prepare, shipped
from recipe.config import PrepareConfig, SweepConfig, exit_status, load
from recipe.cost import records, seeds
from recipe.data import doc_tasks
from recipe.training.callbacks import clock

OUT = Path("demo")
TRAIN = "yamls/demo/train.yaml"
BASELINE = f"{TRAIN} model.name=hf_bert data.mask_rate=0.15"  # as the paper's baseline has it
# A batch costs the baseline more, so it gets fewer of them: the curves are drawn over about the same dollars.
BUDGETS = {TRAIN: ["40ba", "120ba", "360ba"], BASELINE: ["40ba", "160ba"]}
RECORDED_FLOOR = "benchmarks/results/demo/floor.json"
SCORING = f"yamls/glue/demo.yaml data={OUT / 'tasks'}"
# A warm-up begins at the rate 0, so a run whose only batch is its warm-up leaves the initialisation as it was.
UNTRAINED = "schedule.warmup=1"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="runs of each budget, for intervals (%(default)s)")
    parser.add_argument("--record", type=Path, help="copy the records, without weights, into this folder")
    words = parser.parse_args(argv)
    return exit_status(lambda: demo([17 + i for i in range(words.seeds)], words.record))


def demo(of_seeds: list[int], record: Path | None = None) -> None:
    """All five steps, for each of `of_seeds`; one seed has each model's cheapest and dearest budget, to end in five minutes."""
    start, several = time.perf_counter(), len(of_seeds) > 1
    budgets = BUDGETS if several else {model: [of_model[0], of_model[-1]] for model, of_model in BUDGETS.items()}

    def step(what: str) -> None:
        print(f"\n[{clock(time.perf_counter() - start)}] {what}", flush=True)

    step("1/5  text -> tokenizer and shards")
    words = [f"out={OUT / 'data'}", f"tasks={OUT / 'tasks'}"]
    prepare.prepare(load(PrepareConfig, "yamls/data/docstrings.yaml", words))
    if several:
        step("     encoders at their random initialisation, fine-tuned: the floor")
        untrained = runs_of(OUT / "floor", {f"{model} {UNTRAINED}": ["1ba"] for model in BUDGETS}, of_seeds)
    step("2/5, 3/5  pretraining, and fine-tuning of what was pretrained")
    runs = runs_of(OUT, budgets, of_seeds)
    step("4/5  the bills are in each run's run.json")
    step("5/5  evaluation loss against dollars")
    written = pareto.draw(runs, OUT, measure="loss")
    floor = floor_of(untrained) if several else json.loads(shipped.find(RECORDED_FLOOR).read_text("utf-8"))
    (OUT / "floor.json").write_text(json.dumps(floor, indent=2) + "\n", "utf-8")
    # Within these budgets no score is told from the floor, so none is drawn: the loss shows what a dollar bought.
    print("\n".join(["", *score_lines(runs), *floor_lines(floor)]))
    if not several:
        print(f"(the floor is the record's, of three seeds: {RECORDED_FLOOR})")
    step("done")
    for path in written:
        print(f"  {path}")
    if record is not None:
        keep(runs, record)


def runs_of(out: Path, budgets: dict[str, list[str]], of_seeds: list[int]) -> list[Path]:
    """The folders of finished and scored runs: each model's own budgets, with every seed."""
    configs = [SweepConfig(str(out), [model], of_model, SCORING, of_seeds) for model, of_model in budgets.items()]
    return [folder for config in configs for folder in sweep.sweep(config)]


def floor_of(untrained: Sequence[Path]) -> dict[str, Any]:
    """What is scored without pretraining, by model and task, and by giving the most frequent answer to everything."""
    floor: dict[str, Any] = {}
    for model, of_model in by_model(untrained).items():
        scores = {task: [one["glue"]["tasks"][task]["score"] for one in of_model] for task in doc_tasks.WORDS}
        scores["score"] = [one["glue"]["score"] for one in of_model]
        floor[model] = {
            name: {"mean": fmean(values), "ci95": seeds.interval(values), "seeds": values}
            for name, values in scores.items()
        }
    constant = {}
    for task in doc_tasks.WORDS:
        with (OUT / "tasks" / task / "dev.tsv").open(encoding="utf-8", newline="") as file:
            labels = Counter(row["label"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        constant[task] = {"mean": 100 * max(labels.values()) / labels.total()}
    constant["score"] = {"mean": fmean(one["mean"] for one in constant.values())}
    return floor | {"constant": constant}


def by_model(runs: Sequence[Path]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        record = records.read_record(run)
        found.setdefault(record["model"], []).append(record)
    return found


def score_lines(runs: Sequence[Path]) -> list[str]:
    found = [records.read_record(run) for run in runs]
    tasks = {
        one["name"]: [f"{task} {one['glue']['tasks'][task]['score']:.1f}" for task in doc_tasks.WORDS] for one in found
    }
    return [f"score: {one['name']}: {one['glue']['score']:.1f} ({', '.join(tasks[one['name']])})" for one in found]


def floor_lines(floor: dict[str, Any]) -> list[str]:
    lines = []
    for name, scores in floor.items():
        what = "one answer for everything" if name == "constant" else f"{name} without pretraining, fine-tuned alike"
        half = scores["score"].get("ci95")
        tasks = ", ".join(f"{task} {scores[task]['mean']:.1f}" for task in doc_tasks.WORDS)
        lines.append(f"floor: {what}: {scores['score']['mean']:.1f}{f' ± {half:.1f}' if half else ''} ({tasks})")
    return lines


def keep(runs: Sequence[Path], folder: Path) -> None:
    """The records without weights, the floor and the figure, in place of what `folder` held."""
    shutil.rmtree(folder, ignore_errors=True)
    for run in runs:
        (folder / run.name).mkdir(parents=True)
        shutil.copyfile(run / records.FILE_NAME, folder / run.name / records.FILE_NAME)
    for name in ("floor.json", "loss.csv", "loss.png"):
        shutil.copyfile(OUT / name, folder / name)


if __name__ == "__main__":
    sys.exit(main())
