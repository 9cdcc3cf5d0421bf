"""Predictions as files: of a development set, to check the metrics by, and of a test set, as gluebenchmark.com takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recipe.errors import UserError
from recipe.finetune.examples import Examples
from recipe.finetune.kinds import KINDS
from recipe.finetune.tasks import DEV, HUB, Task, TaskData, read_task, rows_of
from recipe.system import inert

# What the site calls a test set's file, where that is not the task's own name.
SUBMISSION_NAMES = {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm"}


@dataclass(frozen=True)
class TestSet:
    """Examples without labels; `examples.labels` stand for none."""

    index: list[str]  # the first column, which a submission repeats
    examples: Examples

    __test__ = False  # no test class, whatever its name says


def read_test_sets(data: str, task: Task) -> dict[str, TestSet]:
    """The test sets that lie beside a task's other files, by file name; of the hub, none.

    Raises:
        UserError: a file without the task's columns, or with a broken row.
    """
    found = {}
    for name in (dev.replace("dev", "test") for dev in task.dev):
        file = Path(data) / task.name / f"{name}.tsv"
        if data == HUB or not file.is_file():
            continue
        with file.open(encoding="utf-8-sig", errors="replace") as stream:
            first_column = stream.readline().rstrip("\r\n").split("\t")[0]
        # A test set has an index where the others have a label, and a header line even where they have none.
        rows = list(rows_of(file, dataclasses.replace(task, label=first_column, columns=None)))
        if not rows:
            raise UserError(f"{file}: no example in it")
        labels = [KINDS[task.kind].unlabelled] * len(rows)
        found[name] = TestSet([row[2] for row in rows], Examples([row[1] for row in rows], labels))
    return found


@dataclass(frozen=True)
class GlueFiles:
    """The source of GLUE's jobs: a folder in the benchmark's layout, or the hub."""

    data: str
    split: str = DEV
    max_train_examples: int = 0
    section = "glue"
    lr_key = "lr_scale"

    def read(self, task: Task) -> TaskData:
        return read_task(self.data, task, self.max_train_examples, self.split)

    def tests(self, task: Task) -> dict[str, TestSet]:
        return read_test_sets(self.data, task) if self.split == DEV else {}

    def files(self, task: Task) -> list[Path]:
        return [] if self.data == HUB else sorted((Path(self.data) / task.name).glob("*.tsv"))


def write_dev(file: Path, data: TaskData, gold: Sequence, predicted: Sequence) -> None:
    """Label and prediction of every development example, in the words of the task's files."""
    rows = (
        "\t".join(inert.cell(data.kind.word(one, data.labels)) for one in pair)
        for pair in zip(gold, predicted, strict=True)
    )
    _write(file, ["label\tprediction", *rows])


def write_test(file: Path, test: TestSet, data: TaskData, predicted: Sequence) -> None:
    """A submission's file; numbers are clipped to the task's scale."""
    if data.task.scale:
        predicted = np.clip(predicted, *data.task.scale)
    words = [inert.cell(data.kind.word(one, data.labels)) for one in predicted]
    rows = zip(test.index, words, strict=True)
    _write(file, ["index\tprediction", *(f"{inert.cell(index)}\t{prediction}" for index, prediction in rows)])


def submission_name(task: str, test: str) -> str:
    return f"{SUBMISSION_NAMES.get(test, task) if task == 'MNLI' else task}.tsv"


def _write(file: Path, lines: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
