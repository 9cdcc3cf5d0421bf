"""Points of cost against score or loss, the frontier they form, and what lies between two points of it.

A point is one finished pretraining run: x is what the pretraining cost, y is a measure of what came of it (recipe.cost.measures).
Runs are compared under one protocol or not at all; nothing is read off beyond what was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from recipe.block import BLOCK
from recipe.cost.measures import SCORE, Measure, Record
from recipe.errors import UserError
from recipe.settings import as_word

AXES = ("usd", "gpu_hours", "tokens", "seconds")
BRANCH = "branch"


@dataclass(frozen=True, order=True)
class Curve:
    """What shares a frontier."""

    model: str  # with its size where there are several
    way: str = "run"  # or BRANCH, of a trunk: its points shared most of their cost
    protocol: str = ""  # in what its measuring differs from other runs'; empty where all are measured alike

    @property
    def label(self) -> str:
        """For people."""
        way = ", branches of a trunk" if self.way == BRANCH else ""
        return f"{self.model}{way}" + (f" [{self.protocol}]" if self.protocol else "")


@dataclass(frozen=True)
class Point:
    """One run: what its pretraining cost and what came of it."""

    name: str
    curve: Curve
    value: float  # of `measure`
    usd: float
    device_hours: float  # of GPUs, or of CPU cores where device_kind is cpu
    tokens: int  # real ones, padding excluded
    seconds: float  # of wall clock
    device_kind: str  # gpu | cpu
    seeds: int = 1  # runs that differ in their seed alone, of which these are the means
    half_width: float | None = None  # of the value's 95 % interval over them
    measure: Measure = SCORE

    @property
    def merit(self) -> float:
        """The value, turned so that more is better."""
        return -self.value if self.measure.falls else self.value

    def cost(self, axis: str) -> float:
        """The coordinate on `axis`, one of AXES, in US dollars, device-hours, tokens or seconds."""
        return float(self.device_hours if axis == "gpu_hours" else getattr(self, axis))


@dataclass(frozen=True)
class Saving:
    """Two curves at the best value that both frontiers reach; costs in the axis' unit."""

    value: float
    cheaper: Curve
    cheaper_cost: float
    dearer: Curve
    dearer_cost: float
    interpolated: bool  # whether one of the two costs lies between measured points

    @property
    def ratio(self) -> float:
        """How many times the cheaper curve's cost the dearer one takes, at least 1."""
        return self.dearer_cost / self.cheaper_cost

    @property
    def fraction(self) -> float:
        """The part of the dearer curve's cost that the cheaper one spares, 0..1."""
        return 1 - self.cheaper_cost / self.dearer_cost


@dataclass(frozen=True)
class Gain:
    """Two curves at the highest cost that both frontiers reach, in the axis' unit."""

    cost: float
    better: Curve
    better_value: float
    worse: Curve
    worse_value: float
    interpolated: bool  # whether one of the two values lies between measured points


def why_not(record: Record, measure: Measure = SCORE) -> str | None:
    """Why a run is no point of a curve of `measure`, in words, or None when it is one."""
    if record["kind"] != "pretrain":
        return f"a record of kind `{record['kind']}`: the bill of the pretraining is not in it"
    if record["status"] != "finished":
        return f"not finished (status `{record['status']}`)"
    if not all(value > 0 for value in (record["cost"]["usd"], record["cost"]["device_hours"], record["tokens"])):
        return "its bill is empty (no dollars, device-hours or tokens)"
    return measure.why_not(record)


def points_of(
    records: Sequence[Record], tasks: Sequence[str] = (), mixed: bool = False, measure: Measure = SCORE
) -> list[Point]:
    """One point a record, scored on `tasks`, or on all that the records have when it is empty.

    Every record must be one that `why_not` has nothing against. With `mixed`, records of several protocols are let through,
    each with its own in its curve, so that no two of them are ever on one frontier.

    Raises:
        UserError: when an aspect of the measure differs, such as protocol, tasks or dataset, or a record lacks one of `tasks`.
    """
    differing = [aspect for aspect in measure.aspects(records, tasks) if len(set(aspect.values)) > 1]
    if differing and not mixed:
        _refuse(records, *differing[0])
    protocols = ["; ".join(f"{name} {values[i]}" for name, values, _ in differing) for i in range(len(records))]
    return [
        Point(
            name=record["name"],
            curve=Curve(model, BRANCH if record["trunk"] else "run", protocol),
            value=measure.value(record, tasks),
            usd=record["cost"]["usd"],
            device_hours=record["cost"]["device_hours"],
            tokens=record["tokens"],
            seconds=record["cost"]["seconds"],
            device_kind=record["device"]["kind"],
            measure=measure,
        )
        for record, model, protocol in zip(records, _models(records), protocols, strict=True)
    ]


def _models(records: Sequence[Record]) -> list[str]:
    """Each record's model, with what its YAML changes of the architecture's block, and with its layers and width where there are
    several sizes of it: they are no single curve."""
    stated = [record["config"].get("model", {}) for record in records]
    sizes = [(model.get("num_hidden_layers"), model.get("hidden_size")) for model in stated]
    names = [
        " ".join([record["model"], *(f"{key}={as_word(model[key])}" for key in BLOCK if model.get(key) is not None)])
        for record, model in zip(records, stated, strict=True)
    ]
    several = {name for name in names if len({size for size, of in zip(sizes, names, strict=True) if of == name}) > 1}
    return [
        f"{name} {layers} x {width}" if name in several else name
        for name, (layers, width) in zip(names, sizes, strict=True)
    ]


def _refuse(records: Sequence[Record], what: str, values: Sequence[str], remedy: str) -> None:
    """Raise a UserError that names the runs and the difference."""
    groups: dict[str, list[str]] = {}
    for record, value in zip(records, values, strict=True):
        groups.setdefault(value, []).append(record["name"])
    listing = "; ".join(f"{value} in {_some(names)}" for value, names in groups.items())
    raise UserError(f"these runs cannot share a frontier, they differ in {what}: {listing}; {remedy}")


def _some(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def frontier(points: Sequence[Point], axis: str) -> list[Point]:
    """The points that no other dominates, by rising cost.

    A point is dominated by one that costs no more and is no worse, and is better in one of the two. Equal points do not
    dominate each other.
    """
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost(axis), -p.merit)):
        best = kept[-1] if kept else None
        if best is None or point.merit > best.merit or (point.cost(axis), point.merit) == (best.cost(axis), best.merit):
            kept.append(point)
    return kept


def frontiers(points: Sequence[Point], axis: str) -> dict[Curve, list[Point]]:
    """The frontier of each curve, in order of appearance.

    Raises:
        UserError: for GPU-hours beside CPU core-hours, which are not one unit.
    """
    if axis == "gpu_hours" and len({point.device_kind for point in points}) > 1:
        names = ", ".join(point.name for point in points if point.device_kind == "cpu")
        raise UserError(f"--axis gpu_hours: {names} ran on a CPU, others on GPUs; use --axis usd, tokens or seconds")
    curves = dict.fromkeys(point.curve for point in points)
    return {curve: frontier([point for point in points if point.curve == curve], axis) for curve in curves}


def cost_at(front: Sequence[Point], axis: str, value: float) -> float | None:
    """What `value` costs on a frontier, linear in the logarithm of cost; None outside the measured values."""
    for point in front:
        if point.value == value:
            return point.cost(axis)
    log_cost = _between([(point.value, math.log(point.cost(axis))) for point in front], value)
    if log_cost is None:
        return None
    # exp(log(cost)) may round to just outside what was measured
    return min(max(math.exp(log_cost), front[0].cost(axis)), front[-1].cost(axis))


def value_at(front: Sequence[Point], axis: str, cost: float) -> float | None:
    """What `cost` buys on a frontier, linear in the logarithm of cost; None outside the measured costs."""
    for point in front:
        if point.cost(axis) == cost:
            return point.value
    if not front or not front[0].cost(axis) < cost < front[-1].cost(axis):
        return None
    return _between([(math.log(point.cost(axis)), point.value) for point in front], math.log(cost))


def _between(knots: Sequence[tuple[float, float]], x: float) -> float | None:
    """Piecewise linear interpolation through `knots`, whose x rises or falls; None beyond the first and the last."""
    for (x0, y0), (x1, y1) in zip(knots, knots[1:], strict=False):
        if x0 != x1 and min(x0, x1) <= x <= max(x0, x1):  # of two costs that differ the logarithms may not
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return None


def savings(fronts: Mapping[Curve, Sequence[Point]], axis: str) -> list[Saving]:
    """Each pair of curves whose frontiers overlap in value, compared by cost."""
    found = []
    for one, other in combinations(fronts, 2):
        value = min((fronts[one][-1], fronts[other][-1]), key=lambda point: point.merit).value
        costs = [(cost_at(fronts[curve], axis, value), curve) for curve in (one, other)]
        if all(cost is not None for cost, _ in costs):
            (low, cheaper), (high, dearer) = sorted(costs)
            measured = all(any(point.value == value for point in fronts[curve]) for curve in (one, other))
            found.append(Saving(value, cheaper, low, dearer, high, interpolated=not measured))
    return found


def gains(fronts: Mapping[Curve, Sequence[Point]], axis: str) -> list[Gain]:
    """Each pair of curves whose frontiers overlap in cost, compared by value."""
    found = []
    for one, other in combinations(fronts, 2):
        cost = min(fronts[one][-1].cost(axis), fronts[other][-1].cost(axis))
        values = [(value_at(fronts[curve], axis, cost), curve) for curve in (one, other)]
        if all(value is not None for value, _ in values):
            falls = fronts[one][0].measure.falls
            (low, worse), (high, better) = sorted(values, reverse=falls)
            measured = all(any(point.cost(axis) == cost for point in fronts[curve]) for curve in (one, other))
            found.append(Gain(cost, better, high, worse, low, interpolated=not measured))
    return found
