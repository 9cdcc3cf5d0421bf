"""Records as training, fine-tuning and minimal pairs leave them, of runs that never were."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from recipe import records
from recipe.cost.prices import Price, bill

PRICE = Price(2.5, "yamls/prices.yaml: a100-80gb", "a100-80gb")
DEVICES = {
    kind: records.device(kind, name, 8, PRICE) for kind, name in (("gpu", "NVIDIA A100-SXM4-80GB"), ("cpu", "AMD EPYC"))
}


def record_run(
    folder: Path,
    name: str,
    model: str = "mosaic_bert",
    hours: float = 1.0,
    scores: dict[str, float] | None = None,
    /,
    *,
    device: dict[str, Any] = DEVICES["gpu"],
    benchmark: str = "GLUE",
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """Write `folder`/`name`/run.json, of a finished pretraining run whose `scores` are those of its tasks; returns the record."""
    price = Price(device["usd_per_hour"], device["price_source"], device["price_row"])
    record = records.new_record(
        kind="pretrain", name=name, model=model, config={"out": name, "model": {"name": model}, **(config or {})},
        device=dict(device), backends={"attention": "sdpa"}, parameters=137_000_001,
    )  # fmt: skip
    record |= {
        "status": "finished",
        "cost": bill(hours * 3600, device["count"], price, device["kind"]),
        "tokens": int(hours * 1e9) + 7,
        "loss_curve": [{"tokens": 10, "loss": 9.0}, {"tokens": 20, "loss": None}, {"tokens": 30, "loss": 7.5}],
        "eval": {"loss": 2.125, "masked_accuracy": 0.5, "tokens": 100},
    }
    if scores is not None:
        record["glue"] = {
            "benchmark": benchmark,
            "protocol": {"max_length": 256},
            "tasks": {task: {"score": score, "std": 0.5, "init": "pretrained"} for task, score in scores.items()},
            "absent": ["QQP"],
            "of": 8 if benchmark == "GLUE" else len(scores),
            "cost": bill(600.0, device["count"], price, device["kind"]),
        }
    record |= changes
    records.write_record(folder / name, record)
    return record


def pair_scores(scores: dict[str, float], data: str = "abc", field: str = "syntax") -> dict[str, Any]:
    """The `pairs` of a record: scores by paradigm, on the pairs whose digest is `data`."""
    mean = sum(scores.values()) / len(scores)
    return {
        "method": "pseudo-log-likelihood", "part": "reported", "max_pairs": 0, "tuning_pairs": 40, "score": mean,
        "inputs": {"data": data}, "standard_error": 3.9, "fields": {field: mean}, "terms": {"t": mean},
        "paradigms": {name: {"score": score, "pairs": 400, "ties": 0, "term": "t", "field": field}
                      for name, score in scores.items()},
    }  # fmt: skip


def rows_of(table: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV file that `recipe.pareto` wrote, by their run."""
    with table.open(newline="", encoding="utf-8") as stream:
        return {row["run"]: row for row in csv.DictReader(stream)}
