"""Points of cost against score, the frontier they form, and what lies between two points of it.

A point is one finished pretraining run: x is what the pretraining cost, the score is what its fine-tuning reached. Runs
are compared under one benchmark, one set of tasks and one protocol, or not at all; nothing is read off beyond what was
measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from recipe.errors import UserError

TRUNK = ", branches of a trunk"  # a curve of its own: its points shared most of their cost
AXES = ("usd", "gpu_hours", "tokens", "seconds")
Record = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """One run: what its pretraining cost and what it scored."""

    name: str
    model: str
    score: float  # 0..100, mean over the tasks compared
    usd: float
    device_hours: float  # of GPUs, or of CPU cores where device_kind is cpu
    tokens: int  # real ones, padding excluded
    seconds: float  # of wall clock
    device_kind: str  # gpu | cpu
    seeds: int = 1  # runs that differ in their seed alone, of which these are the means
    half_width: float | None = None  # of the score's 95 % interval over them
    protocol: str = ""  # in what its scoring differs from other runs'; empty where all are scored alike

    @property
    def curve(self) -> str:
        """What shares a frontier: one model, under one protocol."""
        return f"{self.model} [{self.protocol}]" if self.protocol else self.model

    def cost(self, axis: str) -> float:
        """The coordinate on `axis`, one of AXES, in US dollars, device-hours, tokens or seconds."""
        return float(self.device_hours if axis == "gpu_hours" else getattr(self, axis))


@dataclass(frozen=True)
class Saving:
    """Two models at the highest score that both frontiers reach; costs in the axis' unit."""

    score: float
    cheaper: str
    cheaper_cost: float
    dearer: str
    dearer_cost: float
    interpolated: bool  # whether one of the two costs lies between measured points

    @property
    def ratio(self) -> float:
        """How many times the cheaper model's cost the dearer one takes, at least 1."""
        return self.dearer_cost / self.cheaper_cost

    @property
    def fraction(self) -> float:
        """The part of the dearer model's cost that the cheaper one spares, 0..1."""
        return 1 - self.cheaper_cost / self.dearer_cost


@dataclass(frozen=True)
class Gain:
    """Two models at the highest cost that both frontiers reach, in the axis' unit."""

    cost: float
    better: str
    better_score: float
    worse: str
    worse_score: float
    interpolated: bool  # whether one of the two scores lies between measured points


def why_not(record: Record) -> str | None:
    """Why a run is no point of a curve, in words, or None when it is one."""
    if record["kind"] != "pretrain":
        return f"a record of kind `{record['kind']}`: the bill of the pretraining is not in it"
    if record["status"] != "finished":
        return f"not finished (status `{record['status']}`)"
    if record["glue"] is None or not record["glue"]["tasks"]:
        return "no scores; run recipe.glue on its checkpoint"
    if not all(value > 0 for value in (record["cost"]["usd"], record["cost"]["device_hours"], record["tokens"])):
        return "its bill is empty (no dollars, device-hours or tokens)"
    for task, result in record["glue"]["tasks"].items():
        if result["score"] is None:
            return f"its score on {task} is not a number"
    return None


def points_of(records: Sequence[Record], tasks: Sequence[str] = (), mixed: bool = False) -> list[Point]:
    """One point a record, scored on `tasks`, or on all that the records have when it is empty.

    Every record must be one that `why_not` has nothing against. With `mixed`, records of several protocols are let through,
    each with its own in `protocol`, so that no two of them are ever on one frontier.

    Raises:
        UserError: when benchmark, protocol, tasks or a task's starting point differ, or a record lacks one of `tasks`.
    """
    if not mixed:
        refuse_mixture(records, tasks)
    return [
        Point(
            name=record["name"],
            model=record["model"] + (TRUNK if record.get("trunk") else ""),
            protocol=label,
            score=score_of(record["glue"], tasks),
            usd=record["cost"]["usd"],
            device_hours=record["cost"]["device_hours"],
            tokens=record["tokens"],
            seconds=record["cost"]["seconds"],
            device_kind=record["device"]["kind"],
        )
        for record, label in zip(records, protocols(records, tasks), strict=True)
    ]


def score_of(glue: Record, tasks: Sequence[str] = ()) -> float:
    """The mean of the scores of `tasks`, or of every task that is there."""
    scores = [glue["tasks"][task]["score"] for task in tasks or glue["tasks"]]
    return math.fsum(scores) / len(scores)


def refuse_mixture(records: Sequence[Record], tasks: Sequence[str] = ()) -> None:
    """Raise a UserError that names the runs and the difference when `records` cannot share one frontier."""
    for record in records:
        absent = [task for task in tasks if task not in record["glue"]["tasks"]]
        if absent:
            there = ", ".join(record["glue"]["tasks"])
            raise UserError(f"--tasks: run `{record['name']}` has no {', '.join(absent)}; it has {there}")
    for what, values, remedy in _aspects(records, tasks):
        _refuse(records, what, values, remedy)


def protocols(records: Sequence[Record], tasks: Sequence[str] = ()) -> list[str]:
    """Of each record, the aspects of its scoring in which the records differ; empty where they do not."""
    differing = [(what, values) for what, values, _ in _aspects(records, tasks) if len(set(values)) > 1]
    return ["; ".join(f"{what} {values[i]}" for what, values in differing) for i in range(len(records))]


def _aspects(records: Sequence[Record], tasks: Sequence[str]) -> list[tuple[str, list[str], str]]:
    """(what, its value in each record, what to do where they differ) of all that makes scores comparable."""
    glues = [record["glue"] for record in records]
    found = [("benchmark", [glue["benchmark"] for glue in glues], "compare the runs of one benchmark")]
    if not tasks:
        common = [task for task in glues[0]["tasks"] if all(task in glue["tasks"] for glue in glues)]
        remedy = f"--tasks {','.join(common)} or leave runs out" if common else "they have no task in common"
        found.append(("tasks", [", ".join(sorted(glue["tasks"])) for glue in glues], remedy))
    remedy = "score them again under one protocol or leave runs out"
    for key in sorted({key for glue in glues for key in glue["protocol"]}):
        found.append((f"protocol.{key}", [json.dumps(glue["protocol"].get(key)) for glue in glues], remedy))
    for task in tasks or glues[0]["tasks"]:
        starts = [glue["tasks"].get(task, {}).get("init", "absent") for glue in glues]
        if tasks or all(task in glue["tasks"] for glue in glues):
            found.append((f"init of {task}", starts, remedy))
    return found


def _refuse(records: Sequence[Record], what: str, values: Sequence[str], remedy: str) -> None:
    groups: dict[str, list[str]] = {}
    for record, value in zip(records, values, strict=True):
        groups.setdefault(value, []).append(record["name"])
    if len(groups) > 1:
        listing = "; ".join(f"{value} in {_some(names)}" for value, names in groups.items())
        raise UserError(f"these runs cannot share a frontier, they differ in {what}: {listing}; {remedy}")


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def frontier(points: Sequence[Point], axis: str) -> list[Point]:
    """The points that no other dominates, by rising cost.

    A point is dominated by one that costs no more and scores no less, and is better in one of the two. Equal points do
    not dominate each other.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost(axis), -p.score)):
        best = kept[-1] if kept else None
        if best is None or point.score > best.score or (point.cost(axis), point.score) == (best.cost(axis), best.score):
            kept.append(point)
    return kept


def frontiers(points: Sequence[Point], axis: str) -> dict[str, list[Point]]:
    """The frontier of each model (under each protocol, where there are several), in order of appearance.

    Raises:
        UserError: for GPU-hours beside CPU core-hours, which are not one unit.
    """
    if axis == "gpu_hours" and len({point.device_kind for point in points}) > 1:
        names = ", ".join(point.name for point in points if point.device_kind == "cpu")
        raise UserError(f"--axis gpu_hours: {names} ran on a CPU, others on GPUs; use --axis usd, tokens or seconds")
    curves = dict.fromkeys(point.curve for point in points)
    return {curve: frontier([point for point in points if point.curve == curve], axis) for curve in curves}


def cost_at(front: Sequence[Point], axis: str, score: float) -> float | None:
    """What `score` costs on a frontier, linear in the logarithm of cost; None outside the measured scores."""
    for point in front:
        if point.score == score:
            return point.cost(axis)
    log_cost = _between([(point.score, math.log(point.cost(axis))) for point in front], score)
    return None if log_cost is None else math.exp(log_cost)


def score_at(front: Sequence[Point], axis: str, cost: float) -> float | None:
    """What `cost` buys on a frontier, linear in the logarithm of cost; None outside the measured costs."""
    for point in front:
        if point.cost(axis) == cost:
            return point.score
    return _between([(math.log(point.cost(axis)), point.score) for point in front], math.log(cost))


def _between(knots: Sequence[tuple[float, float]], x: float) -> float | None:
    """Piecewise linear interpolation through `knots`, both coordinates rising; None beyond the first and the last."""
    for (x0, y0), (x1, y1) in zip(knots, knots[1:], strict=False):
        if x0 < x < x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def savings(fronts: Mapping[str, Sequence[Point]], axis: str) -> list[Saving]:
    """Each pair of models whose frontiers overlap in score, compared by cost."""
    found = []
    for one, other in combinations(fronts, 2):
        score = min(fronts[one][-1].score, fronts[other][-1].score)
        costs = [(cost_at(fronts[model], axis, score), model) for model in (one, other)]
        if all(cost is not None for cost, _ in costs):
            (low, cheaper), (high, dearer) = sorted(costs)
            measured = all(any(point.score == score for point in fronts[model]) for model in (one, other))
            found.append(Saving(score, cheaper, low, dearer, high, interpolated=not measured))
    return found


def gains(fronts: Mapping[str, Sequence[Point]], axis: str) -> list[Gain]:
    """Each pair of models whose frontiers overlap in cost, compared by score."""
    found = []
    for one, other in combinations(fronts, 2):
        cost = min(fronts[one][-1].cost(axis), fronts[other][-1].cost(axis))
        scores = [(score_at(fronts[model], axis, cost), model) for model in (one, other)]
        if all(score is not None for score, _ in scores):
            (low, worse), (high, better) = sorted(scores)
            measured = all(any(point.cost(axis) == cost for point in fronts[model]) for model in (one, other))
            found.append(Gain(cost, better, high, worse, low, interpolated=not measured))
    return found
