"""Runs gathered for one figure: which are points, which are left out and why, and the words that every output shares.

Only JSON records are read, so a figure can be redrawn anywhere.
"""

from __future__ import annotations

import glob
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.published import SOURCE, TASKS, Curve, curves
from recipe.cost import frontier, seeds
from recipe.cost.frontier import Gain, Point, Saving
from recipe.cost.records import FILE_NAME, read_record
from recipe.errors import UserError

PRICES = "yamls/prices.yaml"  # what the published points' GPU-hours are billed by
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
class Study:
    """What a figure shows: `points[i]` is the mean of the runs `members[i]`, which differ in their seed alone."""

    axis: str
    tasks: list[str]
    runs: list[Run]
    points: list[Point]
    members: list[list[Run]]
    fronts: dict[str, list[Point]]
    joint: list[Point]  # the frontier of all together; empty where they are of one model, or of several protocols
    published: list[Curve]
    left_out: dict[str, str]  # a run's path: why it is no point

    @property
    def glue(self) -> dict[str, Any]:
        """The scores of the first run; benchmark and protocol are the same in all."""
        return self.runs[0].record["glue"]

    def on_frontier(self, point: Point) -> bool:
        return point in self.fronts[point.curve]

    @property
    def mixed(self) -> bool:
        """Whether runs of several protocols are in it."""
        return any(point.protocol for point in self.points)

    @property
    def xs(self) -> list[float]:
        """All that the x axis must hold."""
        return [point.cost(self.axis) for point in self.points] + [x for curve in self.published for x in curve.xs]


def gather(
    words: Sequence[str | Path],
    axis: str = "usd",
    tasks: Sequence[str] = (),
    mixed: bool = False,
    published: bool = False,
) -> Study:
    """Read the runs that `words` name (run folders, folders of run folders, globs) and find each model's frontier.

    Args:
        mixed: let runs of several protocols in, labelled, each protocol with frontiers of its own.
        published: the paper's points as an overlay.

    Raises:
        UserError: for a word without a run, an unreadable record, runs that cannot be compared, or no point at all.
    """
    if axis not in frontier.AXES:
        raise UserError(f"axis `{axis}`: expected one of {', '.join(frontier.AXES)}")
    if not words:
        raise UserError("no runs given; name run folders, or a folder that holds them, such as runs/")
    found = {str(word): _folders(str(word)) for word in words}
    empty = {word: f"no {FILE_NAME} in it" for word, folders in found.items() if not folders}
    folders = dict.fromkeys(folder for below in found.values() for folder in below)
    every = _unambiguous([Run(folder, read_record(folder)) for folder in folders])
    reasons = {str(run.path): frontier.why_not(run.record) for run in every}
    left_out = empty | {path: reason for path, reason in reasons.items() if reason}
    runs = [run for run in every if str(run.path) not in left_out]
    if not runs:
        listing = "; ".join(f"{path}: {reason}" for path, reason in left_out.items())
        raise UserError(f"no run has a place on a curve: {listing}")
    single = frontier.points_of([run.record for run in runs], tasks, mixed)
    alike = seeds.alike([run.record for run in runs])
    groups = [part for places in alike for part in _by_protocol(places, single)]
    points = [seeds.merge([single[i] for i in places]) for places in groups]
    members = [[runs[i] for i in places] for places in groups]
    shown = list(tasks) or list(dict.fromkeys(task for run in runs for task in run.record["glue"]["tasks"]))
    fronts = frontier.frontiers(points, axis)
    one_protocol = not any(point.protocol for point in points)
    joint = frontier.frontier(points, axis) if one_protocol and len(fronts) > 1 else []
    overlay = _overlay(axis, runs, shown, mixed) if published else []
    return Study(axis, shown, runs, points, members, fronts, joint, overlay, left_out)


def _by_protocol(places: Sequence[int], points: Sequence[Point]) -> list[list[int]]:
    labels = dict.fromkeys(points[i].protocol for i in places)
    return [[i for i in places if points[i].protocol == label] for label in labels]


def _overlay(axis: str, runs: Sequence[Run], tasks: Sequence[str], mixed: bool) -> list[Curve]:
    """The published points, if the runs' scores are of the same tasks, or the user says that they may differ."""
    benchmark = runs[0].record["glue"]["benchmark"]
    if not mixed and (benchmark != "GLUE" or len(tasks) != TASKS):
        raise UserError(
            f"--published: those points are the mean of {TASKS} GLUE tasks, these runs' of {len(tasks)} {benchmark} tasks; "
            "say --mixed to draw both all the same, labelled"
        )
    return curves(axis, PRICES)


def _folders(word: str) -> list[Path]:
    """The run folders that `word` stands for, sorted; none when it is a folder that holds no run."""
    roots = [word] if os.path.exists(word) else sorted(glob.glob(word))
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
    ys = [point.score for point in front]
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


def tick_text(value: float, axis: str) -> str:
    text = big(value) if value >= 1e4 else f"{value:g}"
    return f"${text}" if axis == "usd" else text


def styles(found: Study) -> dict[str, tuple[str, str]]:
    """A colour (Okabe and Ito's, told apart by every kind of colour vision) and a matplotlib marker a model."""
    palette = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    markers = "os^DvPX"
    return {
        model: (palette[index % len(palette)], markers[index % len(markers)])
        for index, model in enumerate(sorted(found.fronts))
    }


def axis_label(study: Study) -> str:
    """The x axis in words, with its unit."""
    hours = "GPU-hours" if study.points[0].device_kind == "gpu" else "CPU core-hours"
    return {
        "usd": "cost of pretraining (US dollars)",
        "gpu_hours": f"{hours} of pretraining",
        "tokens": "tokens of pretraining (padding not counted)",
        "seconds": "wall-clock time of pretraining (seconds)",
    }[study.axis]


def amount(value: float, axis: str) -> str:
    """A coordinate as text: `$0.0123`, `4.6 h`, `1.5M tokens`, `312 s`."""
    if axis == "usd":
        return f"${value:,.2f}" if value >= 1 else f"${value:.3g}"
    if axis == "gpu_hours":
        return f"{number(value)} h"
    return f"{big(value)} tokens" if axis == "tokens" else f"{number(value)} s"


def number(value: float) -> str:
    """Four digits or all before the point: `0.01234`, `12.3`, `12,345`."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def big(value: float) -> str:
    """A large count in four characters or so: `950`, `12.3k`, `1.5M`, `3.2B`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def title(study: Study) -> tuple[str, str]:
    """The headline, and the line below it: how many tasks, which device."""
    benchmark = study.glue["benchmark"]
    name = "GLUE" if benchmark == "GLUE" else f"{benchmark} tasks"
    against = {"usd": "dollars", "gpu_hours": "device time", "tokens": "tokens", "seconds": "time"}[study.axis]
    devices = dict.fromkeys(_device(run.record["device"]) for run in study.runs)
    where = " / ".join(devices) if len(devices) <= 2 else f"{len(devices)} different machines, see the table"
    return f"Score on {name} against {against} of pretraining", f"{count_of_tasks(study)}, on {where}"


def count_of_tasks(study: Study) -> str:
    count, of = len(study.tasks), study.glue["of"]
    if study.mixed:
        return "several protocols, each labelled: scores of two of them are not comparable"
    if study.glue["benchmark"] == "GLUE":
        return f"mean of {count} of {of} GLUE tasks"
    return f"mean of {count} of {of} {study.glue['benchmark']} tasks, not GLUE"


def _device(device: dict[str, Any]) -> str:
    unit = "core" if device["kind"] == "cpu" else "GPU"
    return f"{device['name']} ({device['count']} {unit}{'s' if device['count'] != 1 else ''})"


def notes(study: Study) -> list[str]:
    """What a reader must know beside the figure, a sentence each."""
    absent = dict.fromkeys([*study.glue["absent"], *study.glue["tasks"]])
    missing = [task for task in absent if task not in study.tasks]
    tasks = f"Score: {count_of_tasks(study)} ({', '.join(study.tasks)}"
    tasks += f"; not in it: {', '.join(missing)})." if missing else ")."
    prices = dict.fromkeys(
        f"{amount(run.record['device']['usd_per_hour'], 'usd')} an hour of one "
        f"{'core' if run.record['device']['kind'] == 'cpu' else 'GPU'} ({run.record['device']['price_source']})"
        for run in study.runs
    )
    bill = "Cost is that of pretraining alone, fine-tuning is not in it"
    bill += f"; {' / '.join(prices)}." if study.axis == "usd" else "."
    more = []
    if any(point.half_width is not None for point in study.points):
        more.append(
            "Bars: 95 % confidence interval of the mean over runs that differ in their seed alone (Student's t)."
        )
    if any(run.record.get("trunk") for run in study.runs):
        more.append(
            "A branch's cost is that of its whole run, the part that it shares with its trunk included; see own_usd."
        )
    if study.joint:
        more.append("Dotted: the frontier of all models together.")
    if study.published:
        more.append(f"Crosses: published, not measured here ({SOURCE}); dollars by this project's price table.")
    return [
        tasks,
        bill,
        *more,
        "Filled: on the model's frontier. Hollow: dominated by a run of the same model. "
        "Lines between measured points are linear in the logarithm of cost.",
    ]


def findings(study: Study) -> list[str]:
    """How the models compare where their frontiers overlap, a sentence each; interpolated, never extrapolated."""
    found = []
    for protocol in dict.fromkeys(point.protocol for point in study.points):
        fronts = {curve: front for curve, front in study.fronts.items() if front[0].protocol == protocol}
        found += [_saving(saving, study) for saving in frontier.savings(fronts, study.axis)]
        found += [_gain(gain, study) for gain in frontier.gains(fronts, study.axis)]
    if not found and len(study.fronts) > 1 and not study.mixed:
        return ["The models' frontiers overlap neither in score nor in cost: nothing to compare without extrapolating."]
    return found


def _saving(saving: Saving, study: Study) -> str:
    axis, front = study.axis, study.fronts[saving.dearer]
    there = frontier.score_at(front, axis, saving.cheaper_cost)
    if there is None:  # the dearer one has no run as cheap: for less than its cheapest it would have scored no more
        there = front[0].score
    doubt = _doubt(saving.score - there, (saving.cheaper, saving.dearer), study)
    return (
        f"At score {saving.score:.2f}, the highest that both reach: "
        f"{saving.cheaper} {amount(saving.cheaper_cost, axis)}, {saving.dearer} {amount(saving.dearer_cost, axis)}, "
        f"{saving.ratio:.2f} times as much; {saving.cheaper} saves {saving.fraction:.0%}{_how(saving)}{doubt}."
    )


def _gain(gain: Gain, study: Study) -> str:
    difference = gain.better_score - gain.worse_score
    return (
        f"At {amount(gain.cost, study.axis)}, the most that both were given: {gain.better} {gain.better_score:.2f}, "
        f"{gain.worse} {gain.worse_score:.2f}, a gain of {difference:.2f}{_how(gain)}"
        f"{_doubt(difference, (gain.better, gain.worse), study)}."
    )


def _doubt(difference: float, curves: tuple[str, str], study: Study) -> str:
    """Whether a difference of scores at one cost is more than chance: by the widest interval of either frontier, as it may lie
    between points."""
    halves = [[point.half_width for point in study.fronts[curve]] for curve in curves]
    if any(half is None for front in halves for half in front):
        return "; one seed a point, so no telling it from chance"
    together = math.hypot(*map(max, halves))
    if difference <= together:
        return f"; not told from chance (95 % intervals, ± {together:.2f} on the difference)"
    return f"; beyond chance (95 % intervals, ± {together:.2f} on the difference)"


def _how(comparison: Saving | Gain) -> str:
    return " (interpolated)" if comparison.interpolated else " (measured)"


def table(study: Study) -> list[dict[str, Any]]:
    """Every number of every point, one row a point, as the records hold them, or their mean over seeds; by curve, then cost."""
    pairs = sorted(zip(study.members, study.points, strict=True), key=lambda p: (p[1].curve, p[1].cost(study.axis)))
    return [_row(study, runs, point) for runs, point in pairs]


def _row(study: Study, runs: Sequence[Run], point: Point) -> dict[str, Any]:
    records = [run.record for run in runs]
    device, provenance = records[0]["device"], records[0]["provenance"]
    tasks = dict.fromkeys(task for record in records for task in record["glue"]["tasks"])
    return {
        "run": point.name,
        "model": point.curve,
        "frontier": "yes" if study.on_frontier(point) else "no",
        **({"joint_frontier": "yes" if point in study.joint else "no"} if study.joint else {}),
        "score": point.score,
        "seeds": point.seeds,
        "ci95": point.half_width,
        "usd": _mean([record["cost"]["usd"] for record in records]),
        "gpu_hours": _mean([record["cost"]["gpu_hours"] for record in records]),
        "device_hours": _mean([record["cost"]["device_hours"] for record in records]),
        "seconds": _mean([record["cost"]["seconds"] for record in records]),
        "tokens": point.tokens,
        **({"own_usd": _own(records)} if any(run.record.get("trunk") for run in study.runs) else {}),
        "sequences": _mean([record.get("sequences") for record in records]),
        "batches": _mean([record.get("batches") for record in records]),
        "parameters": records[0]["parameters"],
        "mlm_loss": _mean([(record["eval"] or {}).get("loss") for record in records]),
        "masked_accuracy": _mean([(record["eval"] or {}).get("masked_accuracy") for record in records]),
        **{task: _mean([record["glue"]["tasks"][task]["score"] for record in records]) for task in tasks},
        **{f"{task}_std": _spread([record["glue"]["tasks"][task] for record in records]) for task in tasks},
        "glue_usd": _mean([(record["glue"].get("cost") or {}).get("usd") for record in records]),
        "device": device["name"],
        "devices": device["count"],
        "usd_per_hour": device["usd_per_hour"],
        "price_source": device["price_source"],
        "commit": provenance.get("commit"),
        "path": " ".join(str(run.path) for run in runs),
    }


def _own(records: Sequence[dict[str, Any]]) -> float | None:
    """Of `usd`, what a branch alone cost, the trunk's share taken off."""
    return _mean([r["cost"]["usd"] - (r["trunk"]["cost"]["usd"] if r.get("trunk") else 0.0) for r in records])


def _mean(values: Sequence[float | None]) -> float | None:
    """The one value itself, the mean of several, nothing where one is missing."""
    if None in values:
        return None
    return values[0] if len(values) == 1 else math.fsum(values) / len(values)


def _spread(tasks: Sequence[dict[str, Any]]) -> float | None:
    """A task's standard deviation: over the seeds of fine-tuning of one run, or of pretraining where there are several."""
    return tasks[0].get("std") if len(tasks) == 1 else statistics.stdev([task["score"] for task in tasks])
