"""Many runs for one figure: models x budgets x seeds, each pretrained and scored, in one of two ways.

`sweep` gives every budget a run of its own, its schedule decayed for it. `trunk` trains one run a model and seed at a
constant rate and lets short decays branch off it, so that a whole curve costs little more than its dearest point: a branch has
the batches and the rates of a warm-up-stable-decay run of its own length, whose first part was paid once for all of them (only
the draws of dropout may differ, as the trunk's evaluation draws too). A branch's `cost` is that of the whole run; its `trunk`
says what part of it was shared.

What is finished is not done again, and what was interrupted continues.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from recipe import glue, pairs, plan, records, train
from recipe.config import GlueConfig, PairsConfig, SweepConfig, TrainConfig, load, to_dict
from recipe.cost import prices
from recipe.errors import UserError, say_error
from recipe.settings import check_values
from recipe.system.quiet import quiet_libraries
from recipe.training.averages import AVERAGES
from recipe.training.checkpoint_files import fork

BUDGET = re.compile(r"(\d+(?:\.\d+)?(?:e\d+)?)(ba|sp|tok|ep|h|usd)")


@dataclass(frozen=True)
class Point:
    """One run to be made."""

    name: str
    words: tuple[str, ...]  # YAML and key=value words
    budget: str
    seed: int

    def config(self, out: Path, *more: str) -> TrainConfig:
        first, *rest = self._words(out, *more)
        return load(TrainConfig, first, rest)

    def train(self, ranks: int, out: Path, *more: str) -> dict[str, Any]:
        """Pretrain in this process, or in as many as there are ranks; returns the record.

        Raises:
            UserError: see `recipe.train`; of ranks, which have said why, that they did not finish.
        """
        if ranks == 1:
            return train.train(self.config(out, *more))
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        done = subprocess.run([*launch, "-m", "recipe.train", *self._words(out, *more)], check=False)
        if done.returncode:
            raise UserError(f"its {ranks} ranks did not finish; what they said stands above")
        return records.read_record(out)

    def _words(self, out: Path, *more: str) -> tuple[str, ...]:
        return (*self.words, f"out={out}", f"seed={self.seed}", "autoresume=true", *more)


def points_of(config: SweepConfig) -> list[Point]:
    """Every model with every budget and every seed.

    Raises:
        UserError: an empty list, a budget that is none, or two models of one name.
    """
    check_values(config)
    for key in ("models", "budgets", "seeds"):
        values = getattr(config, key)
        if not values or len(set(values)) < len(values):
            raise UserError(f"{key}={values}: give at least one, and none twice")
    for budget in config.budgets:
        if not BUDGET.fullmatch(budget):
            raise UserError(f"budgets: `{budget}`: give 300ba, 2000000tok, 100000sp, 1ep, 0.5h (device-hours) or 20usd")
    words = [tuple(model.split()) for model in config.models]
    names = [load(TrainConfig, first, rest).model.name for first, *rest in words]
    names = [name if names.count(name) == 1 else f"{name}-{i}" for i, name in enumerate(names, 1)]
    return [
        Point(f"{name}-{budget}-s{seed}", model, budget, seed)
        for name, model in zip(names, words, strict=True)
        for budget in config.budgets
        for seed in config.seeds
    ]


def duration_of(point: Point, config: SweepConfig) -> str:
    """The budget as a `duration`; hours and dollars by the speed of the run `speed`, as recipe.plan has it.

    Raises:
        UserError: hours or dollars without a run that says how fast they are used up.
    """
    number, unit = BUDGET.fullmatch(point.budget).groups()
    if unit not in ("h", "usd"):
        return f"{float(number):.0f}{unit}"
    if config.speed is None:
        raise UserError(f"budgets: `{point.budget}` needs a speed; give speed=RUN, a run of this model on this device")
    wanted = point.config(Path(config.out))
    row, count = plan.where(None, None, wanted.cost.prices, wanted)
    dollars = float(number) * (row.usd_per_hour if unit == "h" else 1)
    speed = plan.measured_speed(records.read_record(config.speed), config.speed)
    return plan.forecast(wanted, row, count, dollars, speed, []).config.duration


def sweep(config: SweepConfig) -> list[Path]:
    """A run a point; returns their folders.

    Raises:
        UserError: at the end, when all others are done, for the points that failed.
    """
    points = points_of(config)
    durations = [duration_of(point, config) for point in points]

    def pretrain(point: Point, out: Path) -> None:
        point.train(config.ranks, out, f"duration={durations[points.index(point)]}")

    return run_all(config, points, pretrain)


def trunk(config: SweepConfig) -> list[Path]:
    """A trunk a model and seed, a branch a budget; returns the branches' folders.

    Raises:
        UserError: a budget that is no number of batches, or at the end, for points that failed.
    """
    # Beside the runs of a sweep in one figure, a name must say which of the two it is.
    points = [replace(point, name=f"trunk-{point.name}") for point in points_of(config)]
    for point in points:
        wanted = point.config(Path(config.out))
        if wanted.data.mask_rate_end is not None:
            raise UserError(
                "data.mask_rate_end: the rate falls over a run's own length, so no trunk is shared; use sweep"
            )
        if wanted.stages.share:
            raise UserError("stages: each is a share of a run's own length, so no trunk is shared; use sweep")
        if wanted.average.steps and AVERAGES[wanted.average.shape].needs_end:
            raise UserError(
                f"average.shape={wanted.average.shape}: the mean is over the end of a run's own length, so no trunk is shared; "
                "set average.shape=ema, or use sweep"
            )
    lengths = {point: batches_of(duration_of(point, config)) for point in points}

    def pretrain(point: Point, out: Path) -> None:
        siblings = [other for other in points if (other.words, other.seed) == (point.words, point.seed)]
        branch(point, lengths, siblings, config, out)

    return run_all(config, points, pretrain)


def batches_of(duration: str) -> int:
    if not duration.endswith("ba"):
        raise UserError(f"budgets: {duration}: a trunk branches at batches; give ba, h or usd")
    return int(duration.removesuffix("ba"))


def run_all(config: SweepConfig, points: Sequence[Point], pretrain: Callable[[Point, Path], None]) -> list[Path]:
    """Pretrain and score every point; one that fails is said in one line, and the others go on."""
    scored_by = [
        (score, schema, *word.split())
        for score, schema, word in ((glue.glue, GlueConfig, config.glue), (pairs.pairs, PairsConfig, config.pairs))
        if word
    ]
    if not scored_by:
        raise UserError("no scoring: give glue=YAML, pairs=YAML or both")
    for _, schema, file, *words in scored_by:
        load(schema, file, [*words, "checkpoint=any"])  # a mistake in it is found before hours of training
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    done, failed = [], []
    for number, point in enumerate(points, 1):
        out = Path(config.out) / "runs" / point.name
        print(f"\n[{number}/{len(points)}] {point.name}", flush=True)
        try:
            pretrain(point, out)
            for score, schema, file, *words in scored_by:
                score(load(schema, file, [*words, f"checkpoint={out}"]))
            done.append(out)
        except UserError as error:
            failed.append(point.name)
            say_error(f"{point.name}: {error}")
    if failed:
        raise UserError(f"{', '.join(failed)} failed; repair and run the same command again: it continues with them")
    return done


def trunk_lengths(lengths: dict[Point, int], siblings: Sequence[Point], decay: float) -> dict[Point, int]:
    """The batch of the trunk at which each branch begins."""
    return {other: max(1, round(lengths[other] * (1 - decay))) for other in siblings}


def branch(point: Point, lengths: dict[Point, int], siblings: Sequence[Point], config: SweepConfig, out: Path) -> None:
    """The run of `point`, begun with the checkpoint that the trunk left where its decay starts."""
    at = trunk_lengths(lengths, siblings, config.decay)
    if at[point] >= lengths[point]:
        raise UserError(f"budgets: {point.budget} has no batch to decay in at decay={config.decay}; give more")
    # Counted in batches, the warm-up is the same for all: it is that of the shortest.
    first = point.config(out).schedule.warmup * min(lengths[other] for other in siblings)
    folder = Path(config.out) / "trunks" / point.name.removeprefix("trunk-").replace(f"-{point.budget}-", "-")
    last = max(at.values())
    stops = ",".join(str(batch) for batch in sorted(set(at.values())))
    stem = point.train(
        config.ranks,
        folder,
        f"duration={last}ba",
        f"checkpoint_at=[{stops}]",
        f"keep_checkpoints={len(set(at.values())) + 1}",
        "schedule.shape=wsd",
        "schedule.decay=0",
        f"schedule.warmup={first / last}",
    )
    length = lengths[point]
    own = (f"duration={length}ba", "schedule.shape=wsd", f"schedule.decay={1 - at[point] / length}")
    own = (*own, f"schedule.warmup={first / length}")
    if not (out / records.FILE_NAME).is_file():
        begin(point.config(out, *own), out, folder, stem, at[point])
    point.train(config.ranks, out, *own)


def begin(config: TrainConfig, out: Path, trunk_folder: Path, stem: dict[str, Any], batch: int) -> None:
    """Write a run that has come as far as the trunk's checkpoint at `batch`, for recipe.train to continue."""
    done, device = fork(trunk_folder, batch, out), stem["device"]
    price = prices.Price(device["usd_per_hour"], device["price_source"])
    cost = prices.bill(done["seconds"], device["count"], price, device["kind"])
    trunk = {"run": str(trunk_folder), "batch": batch, "tokens": done["tokens"], "cost": cost}
    records.write_record(out, records.branch(stem, out.name, to_dict(config), trunk))


def spent(folder: Path) -> dict[str, float]:
    """What a finished sweep or trunk really cost: every trunk once, and of each branch its own part alone."""
    found = [records.read_record(file) for file in sorted(folder.glob("*/*/run.json"))]
    keys = ("usd", "device_hours", "seconds")
    return {
        key: sum(r["cost"][key] - (r.get("trunk") or {"cost": {key: 0}})["cost"][key] for r in found) for key in keys
    }


def run(way: Callable[[SweepConfig], list[Path]], config: SweepConfig) -> list[Path]:
    """`sweep` or `trunk`, and what it cost."""
    folders = way(config)
    bill = spent(Path(config.out))
    alone = sum(records.read_record(folder)["cost"]["usd"] for folder in folders)
    print(
        f"\npretraining: ${bill['usd']:.4f}, {bill['device_hours']:.3f} device-hours in all; the runs one by one: ${alone:.4f}"
    )
    return folders
