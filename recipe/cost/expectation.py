"""What recorded runs of a model say of a number of tokens: between two points, with the interval, and of a loss, by its law, also
beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recipe.cost import frontier, law, seeds
from recipe.cost.frontier import Point
from recipe.cost.measures import LOSS, PAIRS, SCORE, Measure, Record, tasks_in_words

NEAR = 1.02  # times a number of tokens, up to which another is the same
AXIS = "tokens"  # what a budget buys on any device


def expectation(measure: Measure, runs: Sequence[Record], tokens: float) -> str:
    """In words, `no data` and why, where nothing that was recorded says it. `runs` are of one model and one size."""
    alike = _measured_alike([run for run in runs if frontier.why_not(run, measure) is None], measure)
    if not alike:
        return f"no data (no run of this model with {_what(measure)} is recorded)"
    points = [point for point, _ in seeds.merged(alike, frontier.points_of(alike, measure=measure))]
    front = frontier.frontier(points, AXIS)
    low, high = front[0].tokens, front[-1].tokens
    if low / NEAR <= tokens <= high * NEAR:  # a budget is a whole number of batches
        tokens = min(max(tokens, low), high)
    value = frontier.value_at(front, AXIS, tokens)
    if value is None:
        return _beyond(measure, alike, front, tokens)
    near = [min(front, key=lambda p: abs(p.tokens - tokens))]
    near += [p for p in front if (p.tokens - tokens) * (near[0].tokens - tokens) < 0][:1]
    widths = [point.half_width for point in near]
    spread = "no interval: one seed per point"
    if None not in widths:
        spread = f"± {max(widths):.{measure.decimals}f} (95 %)"
    return f"{measure.text(value)} {spread}, {_how(measure, alike[0])}, between {len(front)} recorded points"


def _measured_alike(runs: Sequence[Record], measure: Measure) -> list[Record]:
    """The most that may share a frontier; of as many the latest ones."""
    if not runs:
        return []
    aspects = measure.aspects(runs, ())
    groups: dict[tuple[str, ...], list[Record]] = {}
    for place, run in enumerate(runs):
        groups.setdefault(tuple(aspect.values[place] for aspect in aspects), []).append(run)
    return max(groups.values(), key=len)


def _beyond(measure: Measure, runs: Sequence[Record], front: Sequence[Point], tokens: float) -> str:
    low, high = front[0].tokens, front[-1].tokens
    nothing = f"no data (recorded from {low:.3g} to {high:.3g} tokens)"
    costs, losses = [run[AXIS] for run in runs], [measure.value(run, ()) for run in runs]
    if measure is not LOSS or tokens < high or law.count_budgets(costs) < law.LEAST_BUDGETS:
        return nothing
    told = law.fit(costs, losses).at(tokens)
    if tokens > high * law.REACH or told.half_width is None:
        return nothing
    test = law.back_test(costs, losses)
    return (
        f"{measure.text(told.loss)} ± {told.half_width:.{measure.decimals}f} (95 %), foretold by the law of {len(runs)} runs, "
        f"not measured; without the largest of them, of {high:.3g} tokens, it foretold {test.foretold.loss:.2f} there for "
        f"{test.measured:.2f}"
    )


def _what(measure: Measure) -> str:
    return {SCORE.name: "a GLUE score", PAIRS.name: "minimal pairs", LOSS.name: "an evaluation loss"}[measure.name]


def _how(measure: Measure, run: dict[str, Any]) -> str:
    if measure is SCORE:
        return f"mean of {tasks_in_words(run['glue'], list(run['glue']['tasks']))}"
    if measure is PAIRS:
        return f"mean of {len(run['pairs']['paradigms'])} kinds of minimal pairs"
    return f"{run['config']['data']['eval_mask_rate']:.0%} masked"
