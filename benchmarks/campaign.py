"""Many encoders at three budgets of one reference core, each scored; what is behind the frontier of benchmarks/frontier.sh.

    python -m benchmarks.campaign reference benchmarks/frontier/campaign.yaml
    python -m benchmarks.campaign run benchmarks/frontier/campaign.yaml "glue=yamls/glue/glue5.yaml data=GLUE"

`reference` measures the seconds of a step of each model, and of what comes before the first one (`model.initial_words`), on an
idle machine. A budget of minutes is as many steps as fit into it on that processor, and a run's dollars are those of its steps
and of what came before them at these times, wherever it ran; what it took there stands beside them.
`run` makes what has no record in `results` yet, the cheapest budgets first and one seed of everything before the second. Stopped
at any time, the same command goes on; on another core at the same time, it takes the points that nobody makes yet.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import yaml

from recipe import records
from recipe.config import TrainConfig, load, to_dict
from recipe.cost import prices
from recipe.errors import UserError, end, exit_status
from recipe.settings import MISSING, result_settings, setting
from recipe.system.files import held, write_whole
from recipe.system.private import private
from recipe.training.initial_words import RANDOM

REFERENCE = "reference.json"
TRUNK = "trunk"
OTHER_PROCESSOR = 0.01  # nats: how far losses of the same steps lie apart on two kinds of processor
OTHERS = 0.05  # cores that other processes may have had while a time was taken
ROWS = 4  # rows of a loss curve between which steps are timed; before the first one they are slower
VARIES = ("seed", "duration")  # between runs of one model, without a change of a step's time


# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045
@dataclass
class CampaignConfig:
    """`python -m benchmarks.campaign`: models x budgets x seeds, at the cost of one reference core."""

    out: str = setting(MISSING, "the folder of all runs, with their weights")
    results: str = setting(MISSING, "the folder of records; what has its record there is done")
    models: list[str] = setting(MISSING, "training YAMLs, each with its key=value words behind it")
    minutes: list[float] = setting(MISSING, "budgets, in minutes of a reference core", above=0)
    seeds: list[int] = setting([17, 18, 19], "of the pretraining runs", least=0, most=2**32 - 1)
    trunk: bool = setting(False, "also a trunk of the first model with the first seed, and a branch for each budget")
    longest: float = setting(
        0.0, "minutes of one more run of the first model, the last of all", least=0, special="0: none"
    )
    glue: Optional[str] = setting(None, "the YAML of the fine-tuning, with its key=value words behind it")
    floor_glue: list[str] = setting([], "words of the fine-tuning of what is not pretrained, such as lr_scale=2")
    pairs: Optional[str] = setting(None, "the YAML of the minimal pairs, with its key=value words behind it")
    checkpoint_minutes: float = setting(10.0, "between two checkpoints", above=0)
    turns: int = setting(3, "in which the models' steps are timed", least=1)
    steps: int = setting(20, "between two rows of the loss curves by which steps are timed", least=1)


@dataclass(frozen=True)
class Model:
    name: str
    words: tuple[str, ...]  # YAML and key=value words

    @property
    def settings(self) -> dict[str, Any]:
        """What a step's time depends on, and more."""
        values = to_dict(load(TrainConfig, self.words[0], self.words[1:]))
        return {key: value for key, value in result_settings(TrainConfig, values).items() if key not in VARIES}


@dataclass(frozen=True)
class Point:
    """One run to be made; without `minutes` a floor, which is not pretrained."""

    model: Model
    minutes: float | None
    seed: int
    way: str = "run"  # or TRUNK: a branch of one

    @property
    def name(self) -> str:
        budget = "floor" if self.minutes is None else f"{self.minutes:g}min"
        return f"{f'{TRUNK}-' * (self.way == TRUNK)}{self.model.name}-{budget}-s{self.seed}"

    @property
    def place(self) -> Path:
        """Of its record in the results."""
        return Path("floor" if self.minutes is None else "runs") / self.name


@dataclass(frozen=True)
class Pace:
    """Of a model on the reference processor, in seconds."""

    step: float
    start: float  # before the first step: the start of the words

    def steps_in(self, minutes: float) -> int:
        return max(1, round((60 * minutes - self.start) / self.step))

    def seconds(self, steps: int) -> float:
        return self.start + steps * self.step


def pace_of(reference: dict[str, Any], model: str, random: bool = False) -> Pace:
    row = reference["models"][model]
    return Pace(row["step_s"], 0.0 if random else row["start_s"])


def models_of(config: CampaignConfig) -> list[Model]:
    found = [tuple(words.split()) for words in config.models]
    models = [Model(load(TrainConfig, first, rest).model.name, (first, *rest)) for first, *rest in found]
    if len({model.name for model in models}) < len(models) or not models:
        raise UserError("models: give at least one, and no architecture twice")
    return models


def points_of(config: CampaignConfig) -> Iterator[Point]:
    """In the order in which they are made."""
    models = models_of(config)
    for seed in config.seeds:
        for minutes in (None, *sorted(config.minutes)):
            yield from (Point(model, minutes, seed) for model in models)
        if config.trunk and seed == config.seeds[0]:
            yield from (Point(models[0], minutes, seed, TRUNK) for minutes in sorted(config.minutes))
    if config.longest:
        yield Point(models[0], config.longest, config.seeds[0])


def run(config: CampaignConfig) -> list[Path]:
    """Make every point that has no record yet and that no other command makes; returns the records' folders.

    Raises:
        UserError: no reference, or one of other models; a command that failed.
    """
    if not config.glue and not config.pairs:
        raise UserError("no scoring: give glue=YAML, pairs=YAML or both")
    results, points = Path(config.results), list(points_of(config))
    reference = read_reference(config)
    check_commit(config, reference)
    elsewhere = []
    for number, point in enumerate(points, 1):
        with held(claim(config, point)) as free:
            if (results / point.place / records.FILE_NAME).is_file():
                continue
            if not free:
                elsewhere.append(point)
                continue
            print(f"\n[{number}/{len(points)}] {point.name}", flush=True)
            pace = pace_of(reference, point.model.name)
            record = (make_branch if point.way == TRUNK else make)(point, config, pace)
            records.write_record(results / point.place, at_reference(record, reference))
    if elsewhere:
        print(f"\nother commands make {', '.join(point.name for point in elsewhere)}", flush=True)
    return [results / point.place for point in points if point not in elsewhere]


def claim(config: CampaignConfig, point: Point) -> Path:
    """The folder that who makes the point holds; a trunk's points are made at once."""
    folder = Path(config.out) / "claims" / (TRUNK if point.way == TRUNK else point.name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make(point: Point, config: CampaignConfig, pace: Pace) -> dict[str, Any]:
    """Pretrain and score one point, each in a process of its own; returns its record."""
    out = Path(config.out) / point.name
    words = [*point.model.words, f"seed={point.seed}", f"out={out}", "autoresume=true"]
    floor = point.minutes is None
    if floor:  # random to the last word, and the rate of the only batch is 0
        words += ["duration=1ba", "schedule.warmup=1", f"model.initial_words={RANDOM}"]
    else:
        every = max(1, round(60 * config.checkpoint_minutes / pace.step))
        words += [f"duration={pace.steps_in(point.minutes)}ba", f"checkpoint_every={every}ba"]
    command("recipe.train", *words)
    for module, scoring in (("recipe.glue", config.glue), ("recipe.pairs", config.pairs)):
        if scoring:
            own = config.floor_glue if floor and module == "recipe.glue" else []
            command(module, *scoring.split(), *own, f"checkpoint={out}")
    return records.read_record(out)


def make_branch(point: Point, config: CampaignConfig, pace: Pace) -> dict[str, Any]:
    """The trunk with all its branches, of which this point is one; what is there already is not made again."""
    steps = {minutes: f"{pace.steps_in(minutes)}ba" for minutes in sorted(config.minutes)}
    every = max(1, round(60 * config.checkpoint_minutes / pace.step))
    settings = {
        "out": str(Path(config.out) / TRUNK),
        "models": [" ".join((*point.model.words, f"checkpoint_every={every}ba"))],
        "budgets": list(steps.values()),
        "seeds": [point.seed],
        "glue": config.glue,
        "pairs": config.pairs,
    }
    file = Path(config.out) / f"{TRUNK}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, yaml.safe_dump({key: value for key, value in settings.items() if value is not None}))
    command("recipe.pareto", TRUNK, str(file))
    name = f"{TRUNK}-{point.model.name}-{steps[point.minutes]}-s{point.seed}"
    return records.read_record(Path(config.out) / TRUNK / "runs" / name)


def at_reference(record: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The record with the bill of the reference processor, and under `own` what it took where it ran."""
    random = record["config"]["model"]["initial_words"] == RANDOM
    device, pace = reference["device"], pace_of(reference, record["model"], random)
    price = prices.Price(device["usd_per_hour"], device["price_source"], device["price_row"])
    cost = prices.bill(pace.seconds(record["batches"]), device["count"], price, device["kind"])
    own = {"device": record["device"], "cost": record["cost"]}
    trunk = record["trunk"]
    if trunk:
        own["trunk_cost"] = trunk["cost"]
        shared = prices.bill(pace.seconds(trunk["batch"]), device["count"], price, device["kind"])
        trunk = {**trunk, "cost": shared}
    return {**record, "device": device, "cost": cost, "trunk": trunk, "own": own}


def read_reference(config: CampaignConfig) -> dict[str, Any]:
    """The measured steps, of these very models.

    Raises:
        UserError: none measured, or of other settings.
    """
    file = Path(config.results) / REFERENCE
    remedy = "on an idle machine run python -m benchmarks.campaign reference, with the same words"
    if not file.is_file():
        raise UserError(f"{file}: not measured; {remedy}")
    found = private(json.loads(file.read_text("utf-8")))
    for model in models_of(config):
        # as JSON has it
        if found["models"].get(model.name, {}).get("settings") != json.loads(json.dumps(model.settings)):
            raise UserError(f"{file}: measured with other settings of {model.name}; remove it, and {remedy}")
    return found


def check_commit(config: CampaignConfig, found: dict[str, Any]) -> None:
    """Runs of another commit stand on the same curves if its losses are the reference's, to the last digit on its processor.

    Raises:
        UserError: they are not.
    """
    commit = records.provenance()["commit"]
    if commit in found["commits"]:
        return
    for model in models_of(config):
        record, known = time_steps(model, config), found["models"][model.name]["losses"]
        losses = [row["loss"] for row in record["loss_curve"]]
        same = record["device"]["name"] == found["device"]["name"]
        if not all(a == b if same else abs(a - b) < OTHER_PROCESSOR for a, b in zip(losses, known, strict=True)):
            raise UserError(
                f"{commit}: its losses of {model.name} are {losses}, and the reference's {known}: no runs of one curve; go on at "
                f"commit {found['commits'][0]}, or begin again with another `results`"
            )
    found["commits"].append(commit)
    write_whole(Path(config.results) / REFERENCE, json.dumps(found, indent=1) + "\n")


def time_steps(model: Model, config: CampaignConfig) -> dict[str, Any]:
    """The record of a short run of this model."""
    with tempfile.TemporaryDirectory() as folder:
        batches = ROWS * config.steps
        timing = (f"out={folder}/run", f"duration={batches}ba", f"log_every={config.steps}")
        command("recipe.train", *model.words, *timing)
        return records.read_record(Path(folder) / "run")


def reference(config: CampaignConfig) -> Path:
    """Measure the models' steps and starts, in turns, and write them.

    Raises:
        UserError: other processes ran meanwhile.
    """
    models = models_of(config)
    step_s: dict[str, list[float]] = {model.name: [] for model in models}
    start_s: dict[str, list[float]] = {model.name: [] for model in models}
    record, losses, busy = {}, {}, Busy()
    for _ in range(config.turns):
        for model in models:
            record = time_steps(model, config)
            losses[model.name] = [row["loss"] for row in record["loss_curve"]]
            seconds = [row["seconds"] for row in record["loss_curve"]]
            step_s[model.name] += [(b - a) / config.steps for a, b in zip(seconds, seconds[1:], strict=False)]
            start_s[model.name].append(record.get("initial_words", {}).get("seconds", 0.0))
    others = busy.others()
    if others > OTHERS:
        raise UserError(f"other processes had {others:.2f} of a core meanwhile; wait until the machine is idle")
    found = {
        "what": "median seconds of a training step, and of what precedes the first, in one thread of an idle machine, in turns",
        "provenance": records.provenance(),
        "commits": [records.provenance()["commit"]],  # whose losses are the same
        "device": record["device"],
        "precision": record["precision"],
        "others_cores": others,
        "models": {
            model.name: {
                "step_s": statistics.median(step_s[model.name]),
                "all_step_s": step_s[model.name],
                "start_s": statistics.median(start_s[model.name]),
                "losses": losses[model.name],
                "settings": model.settings,
            }
            for model in models
        },
    }
    file = Path(config.results) / REFERENCE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(found, indent=1) + "\n")
    return file


class Busy:
    """How many cores other processes have had since it was made: the machine's busy time (Linux) less this process's, its ended
    children's included."""

    def __init__(self) -> None:
        self.began, self.before = time.perf_counter(), self._others_s()

    def others(self) -> float:
        return (self._others_s() - self.before) / (time.perf_counter() - self.began)

    @staticmethod
    def _others_s() -> float:
        with open("/proc/stat", encoding="utf-8") as stat:
            user, nice, system, _, _, irq, soft_irq, steal = map(int, stat.readline().split()[1:9])
        everyone = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
        return everyone - sum(os.times()[:4])


def command(module: str, *words: str) -> None:
    """Run one entry point in a process of its own."""
    if subprocess.run([sys.executable, "-m", module, *words], check=False).returncode:
        raise UserError(f"python -m {module} {' '.join(words)} failed; repair, and the same command goes on")


WAYS = {"run": run, "reference": reference}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) < 2 or words[0] not in WAYS:
        print(__doc__, file=sys.stderr)
        return 2
    return exit_status(lambda: WAYS[words[0]](load(CampaignConfig, words[1], words[2:])))


if __name__ == "__main__":
    end(main)
