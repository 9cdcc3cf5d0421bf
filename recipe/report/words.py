"""What every output of a study says in words: title, axes, amounts, notes, and how its curves compare."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, NamedTuple

from recipe.cost import frontier
from recipe.cost.frontier import Curve, Gain, Saving
from recipe.cost.law import REACH, Forecast
from recipe.cost.measures import LOSS, PAIRS, SCORE, Measure, benchmark_name, tasks_in_words
from recipe.report.published import SOURCE
from recipe.report.study import MOST_PARADIGMS, Fitted, Study


class Words(NamedTuple):
    """What is said of a measure."""

    headline: str
    subtitle: str
    axis: str
    note: str


def words_of(study: Study) -> Words:
    return WORDS[study.measure.name](study)


def _of_scores(study: Study) -> Words:
    glue = study.runs[0].record["glue"]  # benchmark and protocol are the same in all, unless the study is mixed
    benchmark, tasks = glue["benchmark"], study.tasks
    count = f"mean of {tasks_in_words(glue, tasks)}" + ("" if benchmark == "GLUE" else ", not GLUE")
    count = MIXED if study.mixed else count
    missing = [task for task in dict.fromkeys([*glue["absent"], *glue["tasks"]]) if task not in tasks]
    absent = f"; not in it: {', '.join(missing)}" if missing else ""
    return Words(
        headline=f"Score on {benchmark_name(glue, tasks) if benchmark == 'GLUE' else f'{benchmark} tasks'}",
        subtitle=count,
        axis=f"score, 0 to 100 ({len(tasks)} tasks)" if len(tasks) > 1 else f"{tasks[0]} score",
        note=f"Score: {count} ({', '.join(tasks)}{absent}).",
    )


def _of_pairs(study: Study) -> Words:
    pairs = study.runs[0].record["pairs"]
    names, each = list(pairs["paradigms"]), [one["pairs"] for one in pairs["paradigms"].values()]
    kinds = f" of {len(names)} kinds" if len(names) > 1 else ""
    how = MIXED if study.mixed else f"{sum(each):,} pairs{kinds}, without fine-tuning"
    listed = f" ({', '.join(names)})" if len(names) <= MOST_PARADIGMS else ""
    return Words(
        headline="Minimal pairs told apart",
        subtitle=how,
        axis="pairs right (%)",
        note="Minimal pairs: of two sentences that differ in one place, the acceptable one has the higher pseudo-log-likelihood"
        f"{listed}; guessing scores 50.",
    )


def _of_losses(study: Study) -> Words:
    data = study.runs[0].record["config"].get("data", {})
    rate, count = data.get("eval_mask_rate"), data.get("eval_documents")
    documents = f"{count:,} held-out documents" if count else "all held-out documents"
    masked = f"{100 * rate:g} % of the tokens masked" if rate else "tokens masked"
    length = f", up to {data['sequence_length']} tokens each" if "sequence_length" in data else ""
    how = MIXED if study.mixed else f"{documents}, {masked}"
    return Words(
        headline="Evaluation loss",
        subtitle=how,
        axis="evaluation loss (nats, lower is better)",
        note=f"Evaluation loss: mean cross-entropy of the masked tokens, in nats ({how if study.mixed else how + length}).",
    )


MIXED = "several protocols, each labelled: values of two of them are not comparable"
WORDS = {SCORE.name: _of_scores, PAIRS.name: _of_pairs, LOSS.name: _of_losses}


def title(study: Study) -> tuple[str, str]:
    """The headline, and the line below it: what is measured, on which device."""
    against = {"usd": "dollars", "gpu_hours": "device time", "tokens": "tokens", "seconds": "time"}[study.axis]
    devices = dict.fromkeys(_device(run.record["device"]) for run in study.runs)
    where = " / ".join(devices) if len(devices) <= 2 else f"{len(devices)} different machines, see the table"
    words = words_of(study)
    return f"{words.headline} against {against} of pretraining", f"{words.subtitle}, on {where}"


def _device(device: dict[str, Any]) -> str:
    unit = "core" if device["kind"] == "cpu" else "GPU"
    return f"{device['name']} ({device['count']} {unit}{'s' if device['count'] != 1 else ''})"


def axis_label(study: Study) -> str:
    """The x axis in words, with its unit."""
    hours = "GPU-hours" if study.points[0].device_kind == "gpu" else "CPU core-hours"
    return {
        "usd": "cost of pretraining (US dollars)",
        "gpu_hours": f"{hours} of pretraining",
        "tokens": "tokens of pretraining (padding not counted)",
        "seconds": "wall-clock time of pretraining (seconds)",
    }[study.axis]


def tick_text(value: float, axis: str) -> str:
    text = big(value) if value >= 1e4 else plain(value)
    return f"${text}" if axis == "usd" else text


def amount(value: float, axis: str) -> str:
    """A coordinate as text: `$0.0123`, `4.6 h`, `1.5M tokens`, `312 s`."""
    if axis == "usd":
        return f"${value:,.2f}" if value >= 1 else f"${plain(value)}"
    if axis == "gpu_hours":
        return f"{number(value)} h"
    return f"{big(value)} tokens" if axis == "tokens" else f"{number(value)} s"


def plain(value: float) -> str:
    """Three digits and no exponent: `0.0000527`."""
    return format(Decimal(f"{value:.3g}").normalize(), "f")


def number(value: float) -> str:
    """Four digits or all before the point: `0.01234`, `12.3`, `12,345`."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def big(value: float) -> str:
    """A large count in four characters or so: `950`, `12.3k`, `1.5M`, `3.2B`."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def notes(study: Study) -> list[str]:
    """What a reader must know beside the figure, a sentence each."""
    prices = dict.fromkeys(
        f"{amount(run.record['device']['usd_per_hour'], 'usd')} per hour of one "
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
    if study.branches:
        more.append(
            "A branch's cost is that of its whole run, the part that it shares with its trunk included; see own_usd."
        )
    if study.floors:
        floors = ", ".join(_with_half(name, study.measure, *floor) for name, floor in study.floors.items())
        own = ", each at the learning rate that was chosen for it" if study.measure is SCORE else ""
        more.append(f"Dashed: without pretraining, measured alike{own}: {floors}.")
    if study.constant is not None:
        more.append(
            f"Dash-dotted: the training set's most common answer to every example, {study.measure.text(study.constant)}."
        )
    if study.laws:
        more.append(
            "Thin and shaded: a law fitted to the model's runs and its 95 % interval for one more run, up to "
            f"{REACH:g} times the largest budget; beyond the last point it is a forecast, not a measurement."
        )
    if study.joint:
        more.append("Dotted: the frontier of all models together.")
    if study.published:
        more.append(f"Crosses: published, not measured here ({SOURCE}); dollars by this project's price table.")
    return [
        words_of(study).note,
        bill,
        *more,
        "Filled: on the model's frontier. Hollow: dominated by a run of the same model. "
        "Lines between measured points are linear in the logarithm of cost.",
    ]


def _with_half(name: str, measure: Measure, value: float, half: float | None) -> str:
    spread = "" if half is None else f" ± {half:.{measure.decimals}f}"
    return f"{name} {value:.{measure.decimals}f}{spread}{measure.unit}"


def findings(study: Study) -> list[str]:
    """How the curves compare where their frontiers overlap, interpolated, a sentence each; what the law of a loss foretells."""
    found = []
    for protocol in dict.fromkeys(curve.protocol for curve in study.fronts):
        fronts = {curve: front for curve, front in study.fronts.items() if curve.protocol == protocol}
        found += [_saving(saving, study) for saving in frontier.savings(fronts, study.axis)]
        found += [_gain(gain, study) for gain in frontier.gains(fronts, study.axis)]
    if not found and len(study.fronts) > 1 and not study.mixed:
        name = study.measure.name
        found = [
            f"The models' frontiers overlap neither in {name} nor in cost: nothing to compare without extrapolating."
        ]
    return [*found, *(_foretold(curve, fitted, study) for curve, fitted in study.laws.items())]


def _foretold(curve: Curve, fitted: Fitted, study: Study) -> str:
    """A law's largest budget as the smaller ones foretold it, and what lies beyond."""
    test, far = fitted.back_test, fitted.law.at(fitted.law.most * REACH)
    verdict = {True: ", inside", False: ", outside", None: ", no interval: too few runs"}[test.inside]
    law, axis = fitted.law, study.axis
    return (
        f"{curve.label}, loss = {law.floor:.2f} + {law.scale:.2f} x (cost / {amount(law.unit, axis)})^-{law.power:.2f}, "
        f"fitted to {law.runs} runs: without its largest budget, {amount(test.foretold.cost, axis)}, the law foretold "
        f"{_forecast(test.foretold, study)} there, measured is {study.measure.text(test.measured)}{verdict}; "
        f"{amount(far.cost, axis)} should give {_forecast(far, study)} (not measured)."
    )


def _forecast(one: Forecast, study: Study) -> str:
    spread = "" if one.half_width is None else f" ± {one.half_width:.{study.measure.decimals}f}"
    return f"{one.loss:.{study.measure.decimals}f}{spread}{study.measure.unit}"


def _saving(saving: Saving, study: Study) -> str:
    axis, front, measure = study.axis, study.fronts[saving.dearer], study.measure
    there = frontier.value_at(front, axis, saving.cheaper_cost)
    if there is None:  # the dearer one has no run as cheap: for less than its cheapest it would have done no better
        there = front[0].value
    doubt = _doubt(abs(saving.value - there), (saving.cheaper, saving.dearer), study)
    cheaper, dearer = saving.cheaper.label, saving.dearer.label
    return (
        f"At {measure.name} {measure.text(saving.value)}, the {measure.best} that both reach: "
        f"{cheaper} {amount(saving.cheaper_cost, axis)}, {dearer} {amount(saving.dearer_cost, axis)}, "
        f"{saving.ratio:.2f} times as much; {cheaper} saves {saving.fraction:.0%}{_how(saving)}{doubt}."
    )


def _gain(gain: Gain, study: Study) -> str:
    measure, difference = study.measure, abs(gain.better_value - gain.worse_value)
    return (
        f"At {amount(gain.cost, study.axis)}, the most that both were given: "
        f"{gain.better.label} {measure.text(gain.better_value)}, {gain.worse.label} {measure.text(gain.worse_value)}, "
        f"a gain of {measure.text(difference)}{_how(gain)}{_doubt(difference, (gain.better, gain.worse), study)}."
    )


def _doubt(difference: float, curves: tuple[Curve, Curve], study: Study) -> str:
    """Whether a difference of values at one cost is more than chance: by the widest interval of either frontier, as it may lie
    between points."""
    halves = [[point.half_width for point in study.fronts[curve]] for curve in curves]
    if any(half is None for front in halves for half in front):
        return "; one seed per point, so it cannot be told from chance"
    together = math.hypot(*map(max, halves))
    margin = f"95 % intervals, ± {study.measure.text(together)} on the difference"
    return f"; {'not told from' if difference <= together else 'beyond'} chance ({margin})"


def _how(comparison: Saving | Gain) -> str:
    return " (interpolated)" if comparison.interpolated else " (measured)"
