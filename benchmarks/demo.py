"""`make demo`: the whole main job on a laptop, from text to a cost-to-score frontier.

The text is the documentation of the installed packages, so nothing is downloaded. Two models, three budgets each, every budget
a run of its own with its schedule decayed for it; each encoder is then scored on two small tasks made from held-out entries.
A second call continues where the first one stopped.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks import pareto
from recipe import glue, prepare, train
from recipe.config import GlueConfig, PrepareConfig, TrainConfig, load
from recipe.errors import UserError
from recipe.training.callbacks import clock
from recipe.training.quiet import quiet_libraries

OUT = Path("demo")
# In batches. A batch costs the baseline more, so it gets fewer of them: the curves are drawn over about the same dollars.
BUDGETS = {"mosaic_bert": (30, 120, 300), "hf_bert": (20, 60, 160)}
BASELINE = ("data.mask_rate=0.15",)  # as the paper's baseline has it


def main() -> int:
    start = time.perf_counter()

    def step(what: str) -> None:
        print(f"\n[{clock(time.perf_counter() - start)}] {what}", flush=True)

    step("1/5  text -> tokenizer and shards")
    words = [f"out={OUT / 'data'}", f"tasks={OUT / 'tasks'}"]
    prepare.prepare(load(PrepareConfig, "yamls/data/docstrings.yaml", words))
    quiet_libraries()
    runs = []
    for model, budgets in BUDGETS.items():
        for batches in budgets:
            run = OUT / "runs" / f"{model}-{batches}ba"
            step(f"2/5  pretraining {run.name}")
            words = [f"out={run}", f"model.name={model}", f"duration={batches}ba", "autoresume=true"]
            train.train(load(TrainConfig, "yamls/demo/train.yaml", [*words, *(BASELINE * (model == "hf_bert"))]))
            step(f"3/5  fine-tuning {run.name}")
            glue.glue(load(GlueConfig, "yamls/glue/demo.yaml", [f"checkpoint={run}", f"data={OUT / 'tasks'}"]))
            runs.append(str(run))
    step("4/5  the bills are in each run's run.json")
    step("5/5  score against dollars")
    written = pareto.draw(runs, OUT)
    step("done")
    for path in written:
        print(f"  {path}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
