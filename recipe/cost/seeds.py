"""Runs that differ in their seed alone, as one point with a 95 % interval."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from scipy.special import stdtrit

from recipe.cost.frontier import Point

# Settings in which two runs of one model and budget may differ, beside their seed.
FREE = (
    "out",
    "seed",
    "autoresume",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "keep_checkpoints",
    "loggers",
    "cost",
    "device",
)


def interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of the mean (Student's t, n - 1 degrees); None for one value."""
    if len(values) < 2:
        return None
    return float(stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))


def alike(records: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """The records' positions, those together that are one model, one budget and one device with different seeds."""
    groups: dict[str, list[int]] = {}
    for place, record in enumerate(records):
        config = record["config"]
        key = f"{place}"
        if "seed" in config:
            same = {name: value for name, value in config.items() if name not in FREE}
            key = json.dumps(
                [record["model"], record["device"]["name"], record["device"]["count"], same], sort_keys=True
            )
            if config["seed"] in [records[other]["config"]["seed"] for other in groups.get(key, [])]:
                key = f"{place}"  # the same run again is not another sample
        groups.setdefault(key, []).append(place)
    return list(groups.values())


def merge(points: Sequence[Point]) -> Point:
    """One point at the mean cost and the mean score of several that differ in their seed alone."""
    if len(points) == 1:
        return points[0]
    mean = {
        name: statistics.fmean(getattr(point, name) for point in points)
        for name in ("score", "usd", "device_hours", "tokens", "seconds")
    }
    common = os.path.commonprefix([point.name for point in points])
    common = re.sub(r"([-_.]s?)?\d*$", "", common) or points[0].name  # of s17 and s18, s1 is no name
    name = f"{common} ({len(points)} seeds)"
    half = interval([point.score for point in points])
    return replace(
        points[0], **{**mean, "tokens": round(mean["tokens"])}, name=name, seeds=len(points), half_width=half
    )
