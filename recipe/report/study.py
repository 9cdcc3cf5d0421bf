"""Runs gathered for one figure: which are points, which are left out and why, and the numbers that every output shares.

Only JSON records are read, so a figure can be redrawn anywhere.
"""

from __future__ import annotations

import glob
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from recipe import shipped
from recipe.cost import frontier, law, seeds
from recipe.cost.frontier import BRANCH, Curve, Point
from recipe.cost.measures import LOSS, MEASURES, PAIRS, SCORE, Measure, benchmark_name, tasks_in_words
from recipe.errors import UserError
from recipe.records import FILE_NAME, read_record
from recipe.report import published as papers

PRICES = "yamls/prices.yaml"  # what the published points' GPU-hours are billed by
BILL = ("usd", "gpu_hours", "device_hours", "seconds")
LINE = 40  # pieces that a law is drawn in
MOST_PARADIGMS = 8  # that have columns of their own
LOG_FROM = 3.0  # dearest over cheapest run: from here on the x axis is logarithmic


@dataclass(frozen=True)
class Run:
    """A record and the folder it was read from."""

    path: Path
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.record["name"]


@dataclass(frozen=True)
class Fitted:
    """A curve's law, and what it is worth."""

    law: law.Law
    back_test: law.BackTest

    def line(self) -> list[law.Forecast]:
        """From the smallest budget to as far as it foretells."""
        low, high = self.law.least, self.law.most * law.REACH
        return [self.law.at(low * (high / low) ** (i / LINE)) for i in range(LINE + 1)]


@dataclass(frozen=True)
class Study:
    """What a figure shows: `points[i]` is the mean of the runs `members[i]`, which differ in their seed alone."""

    measure: Measure
    axis: str
    tasks: list[str]  # that a score is the mean of; of another measure, none
    runs: list[Run]
    points: list[Point]
    members: list[list[Run]]
    fronts: dict[Curve, list[Point]]
    joint: list[Point]  # the frontier of all together; empty where they are of one curve, or of several protocols
    published: list[papers.Published]
    left_out: dict[str, str]  # a run's path: why it is no point
    floors: dict[str, tuple[float, float | None]] = field(
        default_factory=dict
    )  # a model's value without pretraining, ±
    constant: float | None = None  # the score of the constant answer, where it is recorded
    laws: dict[Curve, Fitted] = field(default_factory=dict)  # of a loss, where a curve has budgets enough

    def on_frontier(self, point: Point) -> bool:
        return point in self.fronts[point.curve]

    @property
    def mixed(self) -> bool:
        """Whether runs of several protocols are in it."""
        return any(curve.protocol for curve in self.fronts)

    @property
    def branches(self) -> bool:
        """Whether branches of a trunk are in it."""
        return any(curve.way == BRANCH for curve in self.fronts)

    @property
    def xs(self) -> list[float]:
        """All that the x axis must hold."""
        foretold = [line[-1].cost for fitted in self.laws.values() if (line := fitted.line())]
        published = [x for curve in self.published for x in curve.xs]
        return [point.cost(self.axis) for point in self.points] + published + foretold


def gather(
    words: Sequence[str | Path],
    axis: str = "usd",
    tasks: Sequence[str] = (),
    mixed: bool = False,
    published: bool = False,
    measure: str = SCORE.name,
    floor: Sequence[str | Path] = (),
) -> Study:
    """Read the runs that `words` name (run folders, folders of run folders, globs) and find each curve's frontier.

    Args:
        mixed: let runs of several protocols in, labelled, each protocol with frontiers of its own.
        published: the paper's points as an overlay.
        measure: the name of one of MEASURES.
        floor: runs without pretraining (of one batch, at the rate 0), which are no points but a level for each model.

    Raises:
        UserError: for a word without a run, an unreadable record, runs that cannot be compared, or no point at all.
    """
    for what, word, known in (("axis", axis, frontier.AXES), ("measure", measure, MEASURES)):
        if word not in known:
            raise UserError(f"{what} `{word}`: expected one of {', '.join(known)}")
    if not words:
        raise UserError("no runs given; name run folders, or a folder that holds them, such as runs/")
    chosen = MEASURES[measure]
    runs, left_out = _runs(words, chosen)
    records = [run.record for run in runs]
    untrained = [_at_rate_of(run, records[0]) for run in _runs(floor, chosen)[0]] if floor else []
    every = frontier.points_of([*records, *(run.record for run in untrained)], tasks, mixed, chosen)
    merged = seeds.merged(records, every[: len(runs)])
    floors = {
        point.curve.label: (point.value, point.half_width)
        for point, _ in seeds.merged([run.record for run in untrained], every[len(runs) :])
    }
    points, members = [point for point, _ in merged], [[runs[i] for i in places] for _, places in merged]
    scored = [record["glue"]["tasks"] for record in records] if chosen is SCORE else []
    shown = list(tasks) or list(dict.fromkeys(task for scores in scored for task in scores))
    fronts = frontier.frontiers(points, axis)
    one_protocol = not any(curve.protocol for curve in fronts)
    joint = frontier.frontier(points, axis) if one_protocol and len(fronts) > 1 else []
    overlay = _overlay(axis, chosen, runs, shown, mixed) if published else []
    constant = _constant(records[0]["glue"], shown) if shown else None
    laws = _laws(points, members, fronts, axis) if chosen is LOSS else {}
    return Study(chosen, axis, shown, runs, points, members, fronts, joint, overlay, left_out, floors, constant, laws)


def _laws(
    points: Sequence[Point], members: Sequence[Sequence[Run]], fronts: dict[Curve, list[Point]], axis: str
) -> dict[Curve, Fitted]:
    """Of every curve whose frontier has as many budgets as a law is fitted to, from the single runs."""
    found = {}
    for curve, front in fronts.items():
        costs, losses = [], []
        for point, runs in zip(points, members, strict=True):
            if point in front:  # the point's cost stands for those of its runs, which are nearly the same
                costs += [point.cost(axis)] * len(runs)
                losses += [LOSS.value(run.record, ()) for run in runs]
        if law.count_budgets(costs) >= law.LEAST_BUDGETS:
            found[curve] = Fitted(law.fit(costs, losses), law.back_test(costs, losses))
    return found


def _at_rate_of(run: Run, record: dict[str, Any]) -> Run:
    """A run without pretraining, as if fine-tuned at another's rate: it may have the rate that is best for it."""
    glue = run.record["glue"]
    if glue is None or record["glue"] is None:
        return run
    rate = {key: record["glue"]["protocol"][key] for key in ("lr_scale",) if key in record["glue"]["protocol"]}
    return replace(run, record={**run.record, "glue": {**glue, "protocol": glue["protocol"] | rate}})


def _constant(glue: dict[str, Any], tasks: Sequence[str]) -> float | None:
    """The mean over `tasks` of what the constant answer scores."""
    found = glue.get("constant", {})
    return statistics.fmean(found[task] for task in tasks) if all(task in found for task in tasks) else None


def _runs(words: Sequence[str | Path], measure: Measure) -> tuple[list[Run], dict[str, str]]:
    """The runs that can be points, and why the others cannot; at least one can."""
    found = {str(word): _folders(str(word)) for word in words}
    left_out = {word: f"no {FILE_NAME} in it" for word, folders in found.items() if not folders}
    folders = dict.fromkeys(folder for below in found.values() for folder in below)
    every = _unambiguous([Run(folder, read_record(folder)) for folder in folders])
    reasons = {str(run.path): frontier.why_not(run.record, measure) for run in every}
    left_out |= {path: reason for path, reason in reasons.items() if reason}
    runs = [run for run in every if str(run.path) not in left_out]
    if not runs:
        listing = "; ".join(f"{path}: {reason}" for path, reason in left_out.items())
        raise UserError(f"no run has a place on a curve: {listing}")
    return runs, left_out


def _overlay(
    axis: str, measure: Measure, runs: Sequence[Run], tasks: Sequence[str], mixed: bool
) -> list[papers.Published]:
    """The published points, if the runs' scores are of the same tasks, or the user says that they may differ."""
    if measure is not SCORE:
        raise UserError(f"--published: those points are scores, which no {measure.name} can stand beside; leave it out")
    glue = runs[0].record["glue"]
    if not mixed and (benchmark_name(glue, tasks) != "GLUE" or len(tasks) != papers.TASKS):
        raise UserError(
            f"--published: those points are the mean of {papers.TASKS} GLUE tasks, these runs' of {tasks_in_words(glue, tasks)}; "
            "say --mixed to draw both all the same, labelled"
        )
    return papers.curves(axis, PRICES)


def _folders(word: str) -> list[Path]:
    """The run folders that `word` stands for, sorted; none when it is a folder that holds no run."""
    there = shipped.find(word)
    roots = [str(there)] if there.exists() else sorted(glob.glob(word))
    if not roots:
        raise UserError(f"{word}: no such file or folder; name run folders, or a folder that holds them")
    found = []
    for root in map(Path, roots):
        if root.name == FILE_NAME and root.is_file():
            found.append(root.parent)
            continue
        for folder, below, files in os.walk(root):
            below.sort()
            if FILE_NAME in files:
                found.append(Path(folder))
                below.clear()  # what lies inside a run's folder (its fine-tuning) belongs to that run
    return [Path(os.path.normpath(folder)) for folder in found]


def _unambiguous(runs: list[Run]) -> list[Run]:
    """`runs`, those that share a name renamed to their paths, so that a point can be told from another."""
    names = [run.name for run in runs]
    return [
        replace(run, record={**run.record, "name": str(run.path)}) if names.count(run.name) > 1 else run for run in runs
    ]


def line_of(front: Sequence[Point], axis: str) -> tuple[list[float], list[float]]:
    """x and y of the frontier's line: what interpolation gives, so that it is right on a linear axis as well."""
    xs = [point.cost(axis) for point in front]
    ys = [point.value for point in front]
    if is_logarithmic(xs):
        return xs, ys
    steps = [step / 20 for step in range(20)]
    fine_x = [a * (b / a) ** step for a, b in zip(xs, xs[1:], strict=False) for step in steps]
    fine_y = [a + (b - a) * step for a, b in zip(ys, ys[1:], strict=False) for step in steps]
    return [*fine_x, xs[-1]], [*fine_y, ys[-1]]


def is_logarithmic(xs: Sequence[float]) -> bool:
    return max(xs) / min(xs) >= LOG_FROM


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` for a logarithmic axis: three a decade, more below one decade."""
    steps = (1, 2, 5) if high / low >= 10 else (1, 1.5, 2, 3, 4, 5, 7)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    return [mark for mark in marks if low <= mark <= high]


def styles(found: Study) -> dict[Curve, tuple[str, str]]:
    """A colour (Okabe and Ito's, told apart by every kind of colour vision) and a matplotlib marker per curve."""
    palette = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    markers = "os^DvPX"
    return {
        curve: (palette[index % len(palette)], markers[index % len(markers)])
        for index, curve in enumerate(sorted(found.fronts, key=lambda curve: curve.label))
    }


def table(study: Study) -> list[dict[str, Any]]:
    """Every number of every point, one row a point, as the records hold them, or their mean over seeds; by curve, then cost."""
    pairs = sorted(
        zip(study.members, study.points, strict=True), key=lambda p: (p[1].curve.label, p[1].cost(study.axis))
    )
    return [_row(study, runs, point) for runs, point in pairs]


def _row(study: Study, runs: Sequence[Run], point: Point) -> dict[str, Any]:
    records = [run.record for run in runs]
    device, curve = records[0]["device"], point.curve
    return {
        "run": point.name,
        "model": curve.model,
        **({"way": curve.way} if study.branches else {}),
        **({"protocol": curve.protocol} if study.mixed else {}),
        "frontier": "yes" if study.on_frontier(point) else "no",
        **({"joint_frontier": "yes" if point in study.joint else "no"} if study.joint else {}),
        study.measure.column: point.value,
        "seeds": point.seeds,
        "ci95": point.half_width,
        **{key: _mean([record["cost"][key] for record in records]) for key in BILL},
        "tokens": point.tokens,
        **({"own_usd": _own(records)} if study.branches else {}),
        "sequences": _mean([record.get("sequences") for record in records]),
        "batches": _mean([record.get("batches") for record in records]),
        "parameters": records[0]["parameters"],
        LOSS.column: _mean([(record["eval"] or {}).get("loss") for record in records]),
        "masked_accuracy": _mean([(record["eval"] or {}).get("masked_accuracy") for record in records]),
        **(_scores([record["glue"] for record in records]) if study.tasks else {}),
        **(_paradigms([record["pairs"] for record in records]) if study.measure is PAIRS else {}),
        "device": device["name"],
        "devices": device["count"],
        "usd_per_hour": device["usd_per_hour"],
        "price_source": device["price_source"],
        "commit": records[0]["provenance"].get("commit"),
        "path": " ".join(str(run.path) for run in runs),
    }


def _scores(glues: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Of every task, also of those that the figure leaves out, and what the fine-tuning cost."""
    tasks = dict.fromkeys(task for glue in glues for task in glue["tasks"])
    return {
        **{task: _mean([glue["tasks"][task]["score"] for glue in glues]) for task in tasks},
        **{f"{task}_std": _spread([glue["tasks"][task] for glue in glues]) for task in tasks},
        "glue_usd": _mean([(glue.get("cost") or {}).get("usd") for glue in glues]),
    }


def _paradigms(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of every paradigm, or of the fields of linguistics where they are many."""
    if len(found[0]["paradigms"]) > MOST_PARADIGMS:
        return {name: _mean([one["fields"][name] for one in found]) for name in found[0]["fields"]}
    return {name: _mean([one["paradigms"][name]["score"] for one in found]) for name in found[0]["paradigms"]}


def _own(records: Sequence[dict[str, Any]]) -> float | None:
    """Of `usd`, what a branch alone cost, the trunk's share taken off."""
    return _mean([r["cost"]["usd"] - (r["trunk"]["cost"]["usd"] if r["trunk"] else 0.0) for r in records])


def _mean(values: Sequence[float | None]) -> float | None:
    """The one value itself, the mean of several, nothing where one is missing."""
    if None in values:
        return None
    return values[0] if len(values) == 1 else math.fsum(values) / len(values)


def _spread(tasks: Sequence[dict[str, Any]]) -> float | None:
    """A task's standard deviation: over the seeds of fine-tuning of one run, or of pretraining where there are several."""
    return tasks[0].get("std") if len(tasks) == 1 else statistics.stdev([task["score"] for task in tasks])
