"""`make demo`: the whole main job on a laptop, from text to curves of loss and of score against dollars, with the score's floor.

The text is the documentation of the installed packages, so nothing is downloaded. Two models, each at several budgets, every
budget a run of its own with its schedule decayed for it. Each encoder is scored on minimal pairs of held-out sentences by its
own head: after fine-tuning, encoders of seconds are not told from a random initialisation (docs/experiments.md). A second call
continues where the first one stopped.

    python -m benchmarks.demo --seeds 3 --record benchmarks/results/demo     the committed record, made again
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from recipe import pareto, prepare, records
from recipe.config import PrepareConfig, SweepConfig, load
from recipe.errors import end, exit_status
from recipe.report import sweep
from recipe.system.progress import clock

OUT = Path("demo")
TRAIN = "yamls/demo/train.yaml"
BASELINE = f"{TRAIN} model.name=hf_bert data.mask_rate=0.15"  # as the paper's baseline has it
# A batch costs the baseline more, so it gets fewer of them: the curves are drawn over about the same dollars.
BUDGETS = {TRAIN: ["40ba", "240ba", "720ba"], BASELINE: ["40ba", "320ba"]}
SCORING = f"yamls/pairs/demo.yaml data={OUT / 'tasks'}"
# A warm-up begins at the rate 0, so a run whose only batch is its warm-up leaves the initialisation as it was.
UNTRAINED = {f"{model} schedule.warmup=1": ["1ba"] for model in BUDGETS}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="runs of each budget, for intervals (%(default)s)")
    parser.add_argument("--record", type=Path, help="copy the records, without weights, into this folder")
    words = parser.parse_args(argv)
    return exit_status(lambda: demo([17 + i for i in range(words.seeds)], words.record))


def demo(of_seeds: list[int], record: Path | None = None) -> None:
    """All five steps, for each of `of_seeds`; one seed has each model's cheapest and dearest budget, to end in five minutes."""
    start = time.perf_counter()
    budgets = BUDGETS
    if len(of_seeds) == 1:
        budgets = {model: [of_model[0], of_model[-1]] for model, of_model in BUDGETS.items()}

    def step(what: str) -> None:
        print(f"\n[{clock(time.perf_counter() - start)}] {what}", flush=True)

    step("1/5  text -> tokenizer, shards and minimal pairs")
    words = [f"out={OUT / 'data'}", f"tasks={OUT / 'tasks'}"]
    prepare.prepare(load(PrepareConfig, "yamls/data/docstrings.yaml", words))
    step("     encoders at their random initialisation: the floor of the scores")
    untrained = runs_of(OUT / "floor", UNTRAINED, of_seeds)
    step("2/5, 3/5  pretraining, and scoring of what was pretrained")
    runs = runs_of(OUT, budgets, of_seeds)
    step("4/5  the bills are in each run's run.json")
    step("5/5  evaluation loss, and minimal pairs told apart, against dollars")
    written = pareto.draw(runs, OUT, measure="loss") + pareto.draw(runs, OUT, measure="pairs", floor=untrained)
    step("done")
    for path in written:
        print(f"  {path}")
    if record is not None:
        keep(runs, untrained, record)


def runs_of(out: Path, budgets: dict[str, list[str]], of_seeds: list[int]) -> list[Path]:
    """The folders of finished and scored runs: each model's own budgets, with every seed."""
    configs = [
        SweepConfig(str(out), [model], of_model, pairs=SCORING, seeds=of_seeds) for model, of_model in budgets.items()
    ]
    return [folder for config in configs for folder in sweep.sweep(config)]


def keep(runs: Sequence[Path], untrained: Sequence[Path], folder: Path) -> None:
    """The records without weights, and the figures, in place of what `folder` held."""
    shutil.rmtree(folder, ignore_errors=True)
    for below, made in (("runs", runs), ("floor", untrained)):
        for run in made:
            (folder / below / run.name).mkdir(parents=True)
            shutil.copyfile(run / records.FILE_NAME, folder / below / run.name / records.FILE_NAME)
    for name in (f"{measure}.{ending}" for measure in ("loss", "pairs") for ending in ("csv", "png")):
        shutil.copyfile(OUT / name, folder / name)


if __name__ == "__main__":
    end(main)
