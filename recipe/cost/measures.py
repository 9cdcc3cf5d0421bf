"""What a run is judged by: how a record gives the value, and what must agree before two values may be compared.

MEASURES is the table: the score of fine-tuning and the share of minimal pairs, which rise with pretraining, and the evaluation
loss, which falls.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from recipe.errors import UserError

Record = Mapping[str, Any]


class Aspect(NamedTuple):
    """One thing that makes values comparable."""

    name: str
    values: list[str]  # of each record
    remedy: str  # where they differ


@dataclass(frozen=True)
class Measure:
    """A row of MEASURES; `tasks` is what a score is the mean of, and empty for a measure that has none."""

    name: str  # in sentences, and on the command line
    column: str  # in tables
    file: str  # what a figure of it is called, without its ending
    unit: str  # after a value, with its space; empty where there is none
    decimals: int  # that a reader is shown
    falls: bool  # whether less is better
    why_not: Callable[[Record], str | None]  # why a record has no value, in words
    value: Callable[[Record, Sequence[str]], float]
    aspects: Callable[[Sequence[Record], Sequence[str]], list[Aspect]]

    @property
    def best(self) -> str:
        return "lowest" if self.falls else "highest"

    def text(self, value: float) -> str:
        """A value as a sentence has it."""
        return f"{value:.{self.decimals}f}{self.unit}"


def benchmark_name(glue: Record, tasks: Sequence[str]) -> str:
    """What a score on `tasks` is called. Without the start from MNLI it is another benchmark than GLUE, and says so."""
    protocol = glue["protocol"]
    if glue["benchmark"] != "GLUE" or protocol.get("from_mnli", True):
        return glue["benchmark"]
    pairs = f"{protocol['pair_encoding']} pairs, " if "pair_encoding" in protocol else ""
    return f"GLUE-{len(tasks)}, no MNLI start, {pairs}{protocol.get('split', 'dev')}"


def tasks_in_words(glue: Record, tasks: Sequence[str]) -> str:
    """How many tasks, and whose."""
    name = benchmark_name(glue, tasks)
    own = name != glue["benchmark"]
    return f"{len(tasks)} tasks: {name}" if own else f"{len(tasks)} of {glue['of']} {name} tasks"


def why_no_score(record: Record) -> str | None:
    if record["glue"] is None or not record["glue"]["tasks"]:
        return "no scores; run recipe.glue on its checkpoint"
    for task, result in record["glue"]["tasks"].items():
        if result["score"] is None:
            return f"its score on {task} is not a number"
    return None


def score_of(record: Record, tasks: Sequence[str] = ()) -> float:
    """The mean of the scores of `tasks`, or of every task that is there."""
    glue = record["glue"]
    scores = [glue["tasks"][task]["score"] for task in tasks or glue["tasks"]]
    return math.fsum(scores) / len(scores)


def score_aspects(records: Sequence[Record], tasks: Sequence[str]) -> list[Aspect]:
    """Benchmark, tasks, protocol and every task's starting point.

    Raises:
        UserError: a record lacks one of `tasks`.
    """
    for record in records:
        absent = [task for task in tasks if task not in record["glue"]["tasks"]]
        if absent:
            there = ", ".join(record["glue"]["tasks"])
            raise UserError(f"--tasks: run `{record['name']}` has no {', '.join(absent)}; it has {there}")
    glues = [record["glue"] for record in records]
    found = [Aspect("benchmark", [glue["benchmark"] for glue in glues], "compare the runs of one benchmark")]
    if not tasks:
        common = [task for task in glues[0]["tasks"] if all(task in glue["tasks"] for glue in glues)]
        remedy = f"--tasks {','.join(common)} or leave runs out" if common else "they have no task in common"
        found.append(Aspect("tasks", [", ".join(sorted(glue["tasks"])) for glue in glues], remedy))
    remedy = "score them again under one protocol or leave runs out"
    for key in sorted({key for glue in glues for key in glue["protocol"]}):
        found.append(Aspect(f"protocol.{key}", [json.dumps(glue["protocol"].get(key)) for glue in glues], remedy))
    for task in tasks or glues[0]["tasks"]:
        starts = [glue["tasks"].get(task, {}).get("init", "absent") for glue in glues]
        if tasks or all(task in glue["tasks"] for glue in glues):
            found.append(Aspect(f"init of {task}", starts, remedy))
    return found


def why_no_loss(record: Record) -> str | None:
    last = record["eval"]
    if last is None or last.get("loss") is None:
        return "no evaluation loss: it was not evaluated, or no token of the evaluation was masked"
    if last.get("batch", record.get("batches")) != record.get("batches"):
        return f"its last evaluation is of batch {last['batch']} of {record['batches']}"
    return None


def loss_of(record: Record, tasks: Sequence[str] = ()) -> float:
    """Of the last evaluation: the mean over the masked tokens, in nats; of another objective, what that minimises."""
    return record["eval"]["loss"]


def loss_aspects(records: Sequence[Record], tasks: Sequence[str]) -> list[Aspect]:
    """What is evaluated (the dataset, by its digest, or by its path in records that have none), and how.

    Raises:
        UserError: for `tasks`, which a loss does not have.
    """
    if tasks:
        raise UserError(
            f"--tasks {','.join(tasks)}: an evaluation loss has no tasks; leave them out, or --measure score"
        )
    remedy = "evaluate them alike or leave runs out"
    learnt = Aspect("objective", [record["config"].get("objective", "masked_lm") for record in records], remedy)
    datasets, data = [record["dataset"] for record in records], [record["config"].get("data", {}) for record in records]
    if all(datasets):
        keys = dict.fromkeys(key for dataset in datasets for key in dataset)
        found = [Aspect(f"dataset.{key}", [str(dataset.get(key)) for dataset in datasets], remedy) for key in keys]
    else:
        paths = [os.path.normpath(one["path"]) if one.get("path") else "unknown" for one in data]
        sizes = [str((record.get("encoder") or {}).get("vocab_size")) for record in records]
        found = [Aspect("data.path", paths, remedy), Aspect("vocabulary size", sizes, remedy)]
    for key in ("eval_split", "eval_mask_rate", "eval_documents", "sequence_length"):
        found.append(Aspect(f"data.{key}", [json.dumps(one.get(key)) for one in data], remedy))
    return [*found, learnt]


def why_no_pairs(record: Record) -> str | None:
    return None if record.get("pairs") else "no minimal pairs; run recipe.pairs on its checkpoint"


def pairs_score(record: Record, tasks: Sequence[str] = ()) -> float:
    """The mean over paradigms of the share of pairs of which the acceptable sentence is the likelier one, times 100."""
    return record["pairs"]["score"]


def pairs_aspects(records: Sequence[Record], tasks: Sequence[str]) -> list[Aspect]:
    """The pairs, by their digest, which of them, and the method.

    Raises:
        UserError: for `tasks`, which are fine-tuning's.
    """
    if tasks:
        raise UserError(f"--tasks {','.join(tasks)}: minimal pairs have no tasks; leave them out, or --measure score")
    found = [record["pairs"] for record in records]
    remedy = "score the same pairs of all, by recipe.pairs, or leave runs out"
    data = Aspect("pairs.data", [str(one["inputs"].get("data")) for one in found], remedy)
    keys = ("method", "part", "max_pairs", "tuning_pairs")
    return [data, *(Aspect(f"pairs.{key}", [str(one[key]) for one in found], remedy) for key in keys)]


SCORE = Measure("score", "score", "pareto", "", 2, False, why_no_score, score_of, score_aspects)
LOSS = Measure("loss", "mlm_loss", "loss", " nats", 2, True, why_no_loss, loss_of, loss_aspects)
PAIRS = Measure("pairs", "pairs", "pairs", "", 1, False, why_no_pairs, pairs_score, pairs_aspects)
MEASURES = {measure.name: measure for measure in (SCORE, PAIRS, LOSS)}
