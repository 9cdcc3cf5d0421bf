"""A bill before the spending: what a sweep or a trunk will cost in time, dollars and disk, run by run, before anything starts.

A run's seconds are its operations by a speed that is measured (a run's record) or stated (--mfu), as `recipe.plan` has it, with
the evaluations that its YAML asks for. Scoring is billed as a recorded run of the same model on the same device was, or not.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe import plan, records
from recipe.config import SweepConfig, TrainConfig, load, to_dict
from recipe.cost import prices
from recipe.errors import UserError
from recipe.model.architectures import architecture
from recipe.objectives import objective_of
from recipe.report.sweep import BUDGET, Point, points_of, trunk_lengths
from recipe.training.memory import average_bytes, outline
from recipe.training.optimizers import OPTIMIZERS

GB = 1e9
FORWARD = 1 / 3  # of a training step's operations, which an evaluation does
WEIGHT = 4  # bytes, float32


@dataclass(frozen=True)
class Where:
    """The devices that will be paid for."""

    row: prices.Row
    count: int


@dataclass(frozen=True)
class Item:
    """What one run, or one trunk, adds to the bill."""

    name: str
    batches: int
    tokens: float
    seconds: float  # of all devices together
    usd: float
    disk: int  # bytes, when it has ended


@dataclass(frozen=True)
class Bill:
    items: list[Item]
    notes: list[str]  # what the figures rest on, and what is not in them

    def total(self) -> Item:
        sums = (
            sum(getattr(item, key) for item in self.items) for key in ("batches", "tokens", "seconds", "usd", "disk")
        )
        return Item("in all", *sums)


def bill_of(
    way: str, config: SweepConfig, where: Where, speed: plan.Speed | None, runs: Sequence[dict[str, Any]]
) -> Bill:
    """What `way` (sweep or trunk) of `config` will cost; `speed`, where it is given, is every model's.

    Raises:
        UserError: what the sweep itself refuses, a model without a speed, or epochs of a dataset that is not there.
    """
    points, notes, lengths = points_of(config), [], {}
    priced = {}
    for point in points:
        wanted = point.config(Path(config.out))
        found = speed or plan.find_speed(where.row, wanted.model.name, runs)
        unit = BUDGET.fullmatch(point.budget).group(2)
        priced[point] = (wanted, found, plan.step_of(wanted, found, where.count, unit))
        lengths[point] = batches_in(point.budget, wanted, priced[point][2], where)
        notes.append(f"speed of {wanted.model.name}: {found.source}")
        notes.append(_left_out(wanted))
    items = [_item(point.name, lengths[point], *priced[point][::2], where) for point in points]
    if way == "trunk":
        items = _with_trunks(items, points, lengths, priced, config, where)
    scored, said = _scoring(config, points, priced, where, runs)
    notes += [*said, f"{where.count} x {where.row.name}, ${where.row.usd_per_hour:g} an hour each ({where.row.source})"]
    return Bill([*items, *scored], list(dict.fromkeys(filter(None, notes))))


def batches_in(text: str, config: TrainConfig, step: plan.Step, where: Where) -> int:
    """The batches of a budget, or of another length of a run, at least one.

    Raises:
        UserError: epochs, and the dataset is not there to say how many documents it has.
    """
    number, unit = BUDGET.fullmatch(text).groups()
    amount = float(number)
    if unit == "h":
        return max(1, int(amount * 3600 / where.count / step.seconds))
    if unit == "usd":
        return max(1, int(amount / (where.row.usd_per_hour * where.count) * 3600 / step.seconds))
    if unit == "ep":
        documents = _documents(config, config.data.train_split)
        if documents is None:
            raise UserError(
                f"`{text}`: {config.data.path} has no dataset.json to say how many documents that is; give sp or tok"
            )
        return max(1, int(amount * documents / step.sequences))
    return max(1, math.ceil(amount / {"ba": 1, "sp": step.sequences, "tok": step.tokens}[unit]))


def _documents(config: TrainConfig, split: str) -> int | None:
    """Of a dataset that lies here; None for one that does not."""
    if not (Path(config.data.path) / "dataset.json").is_file():
        return None
    from recipe.data.shards import read_info  # brings in the streaming library, which takes seconds

    return read_info(config.data.path).split(split).documents


def _item(name: str, batches: int, config: TrainConfig, step: plan.Step, where: Where, kept: int | None = None) -> Item:
    """A run of so many batches with its evaluations; `kept` checkpoints, where not as the config says."""
    data, every = config.data, config.eval_every
    evaluations = 1 if every.startswith("0") else 1 + (batches - 1) // batches_in(every, config, step, where)
    documents = data.eval_documents or _documents(config, data.eval_split) or 0
    seconds = step.seconds * batches + step.evaluation * evaluations * FORWARD * documents
    saved = config.checkpoint_every
    written = 1 if saved.startswith("0") else 1 + (batches - 1) // batches_in(saved, config, step, where)
    kind, learns = architecture(config.model.name), objective_of(to_dict(config))
    model = outline(learns, kind, plan.sizes_of(config), data.sequence_length)
    parameters, state = sum(p.numel() for p in model.parameters()), OPTIMIZERS[config.optimizer.name].state_bytes(model)
    state += average_bytes(config.average)
    disk = parameters * (WEIGHT + (kept or min(written, config.keep_checkpoints)) * (WEIGHT + state))
    return Item(name, batches, batches * step.tokens, seconds, usd_of(seconds, where), disk)


def usd_of(seconds: float, where: Where) -> float:
    return seconds / 3600 * where.row.usd_per_hour * where.count


def _with_trunks(
    items: list[Item],
    points: Sequence[Point],
    lengths: dict[Point, int],
    priced: dict[Point, tuple[TrainConfig, plan.Speed, plan.Step]],
    config: SweepConfig,
    where: Where,
) -> list[Item]:
    """Each trunk once, and of each branch what follows it."""
    found, branches = [], {}
    for item, point in zip(items, points, strict=True):
        siblings = [other for other in points if (other.words, other.seed) == (point.words, point.seed)]
        at = trunk_lengths(lengths, siblings, config.decay)
        wanted, _, step = priced[point]
        if point == siblings[0]:
            name = f"trunk of {point.name.replace(f'-{point.budget}-', '-')}"
            found.append(_item(name, max(at.values()), wanted, step, where, kept=len(set(at.values())) + 1))
        own = item.seconds - at[point] * step.seconds
        branches[point] = dataclasses.replace(
            item, batches=lengths[point] - at[point], tokens=(lengths[point] - at[point]) * step.tokens, seconds=own,
            usd=usd_of(own, where),
        )  # fmt: skip
    return [*found, *branches.values()]


def _left_out(config: TrainConfig) -> str | None:
    if config.data.eval_documents or _documents(config, config.data.eval_split):
        return None
    return f"evaluation is not in it: {config.data.path} is not there to say how long its {config.data.eval_split} split is"


def _scoring(
    config: SweepConfig,
    points: Sequence[Point],
    priced: dict[Point, tuple[TrainConfig, plan.Speed, plan.Step]],
    where: Where,
    runs: Sequence[dict[str, Any]],
) -> tuple[list[Item], list[str]]:
    """An item a kind of score, for all runs, and what it rests on."""
    items, notes = [], []
    for name, word in (("glue", config.glue), ("pairs", config.pairs)):
        if not word:
            continue
        seconds = 0.0
        for point in points:
            model = priced[point][0].model.name
            alike = [run for run in runs if run["model"] == model and run["device"]["price_row"] == where.row.name]
            alike = [
                run for run in alike if run.get(name) and plan.shape_of(run) == plan.shape_of_config(priced[point][0])
            ]
            if not alike:
                notes.append(f"{name} is not in it: no recorded run of this {model} on {where.row.name} was scored so")
                continue
            best = max(alike, key=lambda run: run[name]["cost"]["seconds"])
            share = best["device"]["count"] / where.count
            seconds += best[name]["cost"]["seconds"] * share
            notes.append(f"{name} of {model}: as of the recorded run `{best['name']}`")
        if seconds:
            items.append(Item(f"{name}, all runs", 0, 0.0, seconds, usd_of(seconds, where), 0))
    return items, notes


def tell(bill: Bill) -> list[str]:
    """A table, in all, and the notes."""
    head = ["run", "batches", "tokens", "hours", "usd", "disk GB"]
    lines = [head, *(_cells(item) for item in [*bill.items, bill.total()])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rows = [[text.rjust(width) for text, width in zip(line, widths, strict=True)] for line in lines]
    return ["  ".join([line[0].ljust(widths[0]), *row[1:]]) for line, row in zip(lines, rows, strict=True)] + bill.notes


def _cells(item: Item) -> list[str]:
    hours = item.seconds / 3600
    return [
        item.name,
        f"{item.batches:,}",
        f"{item.tokens:.3g}",
        f"{hours:.3g}",
        f"{item.usd:.4g}",
        f"{item.disk / GB:.3g}",
    ]


def show(way: str, config: SweepConfig, words: argparse.Namespace) -> None:
    """Print the bill that the options of `--plan` ask for."""
    first, *rest = config.models[0].split()
    where = Where(*plan.where(words.gpu, words.count, words.prices, load(TrainConfig, first, rest)))
    speed = None
    if words.mfu:
        speed = plan.stated_speed(where.row, words.mfu, "stated")
    elif words.record or config.speed:
        record = words.record or config.speed
        speed = plan.measured_speed(records.read_record(record), record)
    print("\n".join(tell(bill_of(way, config, where, speed, plan.recorded(words.runs)))))


def options(prog: str) -> argparse.ArgumentParser:
    """What may stand behind `--plan`."""
    parser = argparse.ArgumentParser(prog=f"{prog} --plan", description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", help="a row of the price table, such as h100; absent: this machine")
    parser.add_argument("--count", type=int, help="GPUs, or cores (1; of this machine all)")
    parser.add_argument("--mfu", type=float, help="state the share of the peak that is reached")
    parser.add_argument("--record", help="take the speed of this run")
    parser.add_argument("--runs", nargs="*", default=["benchmarks/results"], help="recorded runs (%(default)s)")
    parser.add_argument("--prices", default="yamls/prices.yaml")
    return parser
