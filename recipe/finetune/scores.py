"""From the jobs of a fine-tuning (a task with a seed each) to scores with their spread, as data, as text and as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from recipe.cost.measures import tasks_in_words
from recipe.system import inert

CONVENTION = "mean over tasks of the mean of each task's metrics"
COUNTS = ("train_examples", "dev_examples", "truncated_examples", "torn_rows")
PER_SEED = ("seed", "score", "metrics", "seconds", "tokens", "choosing")
Record = Mapping[str, Any]


def summarise(jobs: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """The `glue.tasks` of a record from the `job` entries of its jobs, tasks in the order in which they first appear.

    `score` is the mean over the seeds of the mean of a task's metrics, `std` its standard deviation over the seeds
    (n - 1), null for one seed.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(job["task"] for job in jobs):
        runs = [job for job in jobs if job["task"] == name]
        scores = [run["score"] for run in runs]
        metrics = runs[0]["metrics"]
        tasks[name] = {
            "score": statistics.fmean(scores),
            "metrics": {metric: statistics.fmean(run["metrics"][metric] for run in runs) for metric in metrics},
            "std": statistics.stdev(scores) if len(scores) > 1 else None,
            "init": runs[0]["init"],
            "runs": [{key: run[key] for key in PER_SEED if key in run} for run in runs],
            **{key: runs[0][key] for key in COUNTS},
            **({"entity_f1": _means([run["entity_f1"] for run in runs])} if "entity_f1" in runs[0] else {}),
        }
    return tasks


def _means(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each key, over those that have it."""
    return {
        key: statistics.fmean(one[key] for one in found if key in one)
        for key in sorted({k for one in found for k in one})
    }


def mean_score(tasks: Record) -> float | None:
    return statistics.fmean(task["score"] for task in tasks.values()) if tasks else None


def add_bills(costs: Sequence[Record]) -> dict[str, float]:
    """The `cost` of several jobs together; where they ran side by side, `seconds` is more than what a clock showed."""
    return {key: math.fsum(cost[key] for cost in costs) for key in ("seconds", "gpu_hours", "device_hours", "usd")}


def table(glue: Record) -> list[str]:
    """The scores as lines of text."""
    rows = _rows(glue)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return ["", *lines, *_totals(glue)]


def markdown(name: str, glue: Record) -> str:
    """The same as a Markdown document."""
    head, *body = [[inert.markdown(cell) for cell in row] for row in _rows(glue)]
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(
        [
            f"# {inert.markdown(name)}",
            "",
            *(f"| {' | '.join(line)} |" for line in lines),
            "",
            *(f"- {inert.markdown(line)}" for line in _totals(glue)),
            "",
        ]
    )


def _rows(glue: Record) -> list[tuple[str, ...]]:
    constant = glue.get("constant", {})
    rows = [("task", "score", "std", "n", *["constant"] * bool(constant), "init", "metrics")]
    for name, task in glue["tasks"].items():
        std = "-" if task["std"] is None else f"{task['std']:.2f}"
        metrics = ", ".join(f"{metric} {value:.2f}" for metric, value in task["metrics"].items())
        level = [f"{constant[name]:.2f}"] if constant else []
        rows.append((name, f"{task['score']:.2f}", std, str(len(task["runs"])), *level, task["init"], metrics))
    return rows


def _totals(glue: Record) -> list[str]:
    bill = glue["cost"]
    protocol = glue["protocol"]
    if "scored_on" in protocol:  # a task of the user's own
        present, split = glue["benchmark"], f"; on the {protocol['scored_on']} split"
    else:
        present = f"{tasks_in_words(glue, list(glue['tasks']))}{absence(glue['absent'])}"
        split = f"; on the {protocol['split']} split" if "split" in protocol else ""
    score = "none" if glue["score"] is None else f"{glue['score']:.2f}"
    failed = [f"failed: {reason}" for reason in glue.get("failed", {}).values()]
    return [
        f"score {score} ({protocol.get('convention', CONVENTION)}; {present}{split})",
        f"{bill['seconds']:,.0f} s, {bill['device_hours']:.3f} device-hours, ${bill['usd']:.4f}",
        *failed,
    ]


def absence(names: Sequence[str]) -> str:
    return f"; absent: {', '.join(names)}" if names else ""
