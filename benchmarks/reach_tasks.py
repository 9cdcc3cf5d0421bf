"""The tasks by which encoders of others and of our own are judged here, and what runs them through recipe.finetune.

The data sets are not the project's (docs/data.md says where they come from); DATA is a folder of them: `intents/`, `ner/`,
`pairs/` and `retrieval/`, as their distributions name the files.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import convert_tasks
from benchmarks.measurement import write
from recipe import records
from recipe.config import FinetuneConfig
from recipe.config.loading import load
from recipe.errors import UserError
from recipe.finetune.own import OwnTask
from recipe.finetune.tasks import TaskData
from recipe.records import read_record
from recipe.system.hardware import find_hardware

SEEDS = (19, 8364, 717)


@dataclass(frozen=True)
class ReachTask:
    """A row: a YAML of recipe.finetune, where its files are, and the settings of an encoder of MiniLM's size."""

    name: str  # also its YAML's
    folder: str  # in DATA
    words: tuple[str, ...]

    def config(self, data: Path, work: Path, checkpoint: str, *words: str) -> FinetuneConfig:
        return load(FinetuneConfig, self.yaml, self.settings(data, work, checkpoint, *words))

    @property
    def yaml(self) -> str:
        return f"yamls/finetune/{self.name}.yaml"

    def settings(self, data: Path, work: Path, checkpoint: str, *words: str) -> list[str]:
        folder = convert_clinc150(data, work) if self.name == "clinc150" else data / self.folder
        out = f"out={work / self.name}"
        return [f"checkpoint={checkpoint}", f"data={folder}", f"seeds={list(SEEDS)}", out, *self.words, *words]


# Peak rates and epochs with which a pretrained encoder of 22 million parameters learns them in minutes of a core.
TASKS = {
    task.name: task
    for task in (
        ReachTask("banking77", "intents", ("lr=3e-4", "epochs=1", "batch_size=32")),
        ReachTask("clinc150", "intents", ("lr=3e-4", "epochs=1", "batch_size=32")),
        # Twice the rate in 282 batches instead of 846: 29.8 and 58.5 with two seeds, where this has 80.5.
        ReachTask("sick-relatedness", "pairs", ("lr=1e-4", "epochs=3", "batch_size=16")),
        ReachTask("conll2003", "ner", ("lr=2e-4", "epochs=1", "batch_size=16")),
    )
}


def convert_clinc150(data: Path, work: Path) -> Path:
    """Its JSON lines, in `work`."""
    out = work / "clinc150-lines"
    if not out.is_dir():
        convert_tasks.clinc150(data / "intents/clinc150.json.gz", out)
    return out


def chosen(names: Sequence[str], table: dict[str, Any]) -> list[Any]:
    """Rows of `table`, all where no name is given."""
    for name in names:
        if name not in table:
            raise UserError(f"--tasks: no task `{name}`; known are {', '.join(table)}")
    return [row for name, row in table.items() if not names or name in names]


def fine_tune(yaml: str, settings: Sequence[str]) -> None:
    """As a user would, in a process of its own; what was done before is not done again."""
    command = [sys.executable, "-m", "recipe.finetune", yaml, *settings]
    if subprocess.run(command).returncode:
        raise UserError(f"{' '.join(command)} failed; repair it and run the same command again")


def scores(config: FinetuneConfig) -> list[float]:
    """Of each seed, in the config's order."""
    folders = [Path(config.out) / "jobs" / str(seed) for seed in config.seeds]
    return [read_record(folder)["job"]["score"] for folder in folders]


def about(config: FinetuneConfig, data: TaskData) -> dict[str, Any]:
    """What a score needs beside it."""
    scored = next(iter(data.dev.values()))
    keys = ("kind", "lr", "epochs", "batch_size", "max_length", "warmup", "final_lr")
    return {
        "metrics": list(data.task.metrics),
        "settings": {key: getattr(config, key) for key in keys},
        "seeds": list(config.seeds),
        "train_examples": len(data.train),
        "scored_examples": len(scored),
        "labels": len(data.labels),
    }


def read(config: FinetuneConfig) -> TaskData:
    return OwnTask(config).data


def keep(file: Path, found: dict[str, Any], task: str, row: dict[str, Any]) -> None:
    """Put a task's row, with the provenance of its own run, into a result's file."""
    hardware = find_hardware("cpu", "auto", 1)
    device = {"name": hardware.name, "threads": torch.get_num_threads(), "bf16": hardware.autocast is not None}
    found["tasks"][task] = {**row, "device": device, "provenance": records.provenance()}
    write(file, {"provenance": records.provenance(), **found})


def start(file: Path, about: dict[str, Any]) -> dict[str, Any]:
    """What a result's file has so far, of the same subject.

    Raises:
        UserError: the file is of another one.
    """
    if not file.is_file():
        return {**about, "tasks": {}}
    found = json.loads(file.read_text("utf-8"))
    if other := [key for key, value in about.items() if found.get(key) != value]:
        raise UserError(f"{file} is of another {other[0]}; remove it, or give another --out")
    return {key: value for key, value in found.items() if key != "provenance"}
