"""The tasks that an encoder is scored on, a row each, and their files as the benchmark distributes them.

The hyperparameters are MosaicBERT's (arXiv 2312.17482, appendix).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from recipe.errors import UserError, one_line
from recipe.finetune.examples import Examples
from recipe.finetune.kinds import CLASSIFICATION, KINDS, REGRESSION
from recipe.finetune.kinds.kind import Kind
from recipe.finetune.tuning_split import tuning_split

HUB = "hub"  # instead of a folder
DEV, TUNING = "dev", "tuning"  # the splits to score on
CHOOSING = "choosing"  # what `TaskData.choosing` is called among sets
HUB_DATASET = "nyu-mll/glue"
Row = tuple[int, tuple[str, ...], str]  # line number, texts, label
SUBSET_SEED = 0  # draws the examples that `max_train_examples` keeps, the same for every run
SEEDS = (19, 8364, 717, 10536, 90166)
YES_NO = ("0", "1")


@dataclass(frozen=True)
class Fitting:
    """How a task is fitted beyond its row's numbers; the defaults are what GLUE's tasks have."""

    warmup: float = 0.06  # share of the run
    final_lr: float = 0.0  # share of the peak
    balanced: bool = False  # whether rare classes count as much as others
    patience: int = 0  # epochs without a better score after which training ends; 0: never
    layer_decay: float = 1.0
    freeze_layers: int = 0
    temperature: float = 0.05  # of what compares the examples of a batch


@dataclass(frozen=True)
class Task:
    """One row. `labels` stand in the order of their ids, which is the hub's too."""

    name: str  # also its folder's
    sentences: tuple[str, ...]  # the columns that the encoder reads
    label: str  # the column that it predicts
    labels: tuple[str, ...]  # none where the label is a number
    metrics: tuple[str, ...]
    lr: float
    epochs: float
    batch_size: int
    weight_decay: float
    seeds: tuple[int, ...]
    from_mnli: bool = False  # starts from the encoder that was fine-tuned on MNLI
    dev: tuple[str, ...] = ("dev",)  # the files it is scored on
    columns: tuple[str, ...] | None = None  # of files without a header line
    torn_rows: int = 0  # at most so many lines of the distributed train.tsv have another number of columns
    hub: str = ""  # its name there
    hub_sentences: tuple[str, ...] | None = None  # where the columns have other names there
    kind: str = CLASSIFICATION.name
    scale: tuple[float, float] | None = None  # that a submission's numbers are to lie in
    fitting: Fitting = Fitting()


PAIR = ("sentence1", "sentence2")
ENTAILED = ("entailment", "not_entailment")
GLUE = (
    Task("MNLI", PAIR, "gold_label", ("entailment", "neutral", "contradiction"), ("accuracy",), 5e-5, 3, 48, 5e-6,
         SEEDS[:1], dev=("dev_matched", "dev_mismatched"), hub="mnli", hub_sentences=("premise", "hypothesis")),
    # Some questions of QQP hold a line break, which tears their row into two lines.
    Task("QQP", ("question1", "question2"), "is_duplicate", YES_NO, ("accuracy", "f1"), 3e-5, 5, 16, 3e-6, SEEDS[:1],
         torn_rows=20, hub="qqp"),
    Task("QNLI", ("question", "sentence"), "label", ENTAILED, ("accuracy",), 1e-5, 10, 16, 1e-6, SEEDS[:1], hub="qnli"),
    Task("SST-2", ("sentence",), "label", YES_NO, ("accuracy",), 3e-5, 3, 16, 3e-6, SEEDS[:3], hub="sst2"),
    Task("CoLA", ("sentence",), "label", YES_NO, ("matthews",), 5e-5, 10, 32, 5e-6, SEEDS[:4],
         columns=("source", "label", "mark", "sentence"), hub="cola"),
    Task("RTE", PAIR, "label", ENTAILED, ("accuracy",), 1e-5, 3, 16, 1e-5, SEEDS, from_mnli=True, hub="rte"),
    Task("MRPC", ("#1 String", "#2 String"), "Quality", YES_NO, ("accuracy", "f1"), 8e-5, 10, 32, 8e-6, SEEDS,
         from_mnli=True, hub="mrpc", hub_sentences=PAIR),
    Task("STS-B", PAIR, "score", (), ("pearson", "spearman"), 3e-5, 10, 32, 3e-6, SEEDS,
         from_mnli=True, hub="stsb", kind=REGRESSION.name, scale=(0.0, 5.0)),
)  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for task in GLUE}


@dataclass(frozen=True)
class TaskData:
    task: Task
    labels: tuple[str, ...]  # empty where numbers are predicted
    train: Examples
    dev: dict[str, Examples]  # what the score is of, by the name of the file
    torn_rows: int = 0  # lines of train.tsv left out
    choosing: Examples | None = None  # what epoch and seed are chosen by, where that is not what the score is of
    places: Mapping[str, Sequence[str]] = field(
        default_factory=dict
    )  # file and line of each example, by the set's name
    notes: tuple[str, ...] = ()  # what is odd about the labels, in words

    @property
    def kind(self) -> Kind:
        return KINDS[self.task.kind]


def choose_tasks(data: str, asked: Sequence[str]) -> tuple[list[Task], list[str]]:
    """The tasks to run, in the table's order, and the names of the others.

    Args:
        data: a folder with a sub-folder a task, or `hub`.
        asked: names; none for all that `data` has.

    Raises:
        UserError: a name that is in no row or not in `data`, no task at all.
    """
    names = list(TASKS)
    for name in asked:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
            raise UserError(f"tasks: no task `{name}`; {hint}")
    if data != HUB and not Path(data).is_dir():
        raise UserError(f"data={data}: no such folder; give one in GLUE's layout (CoLA/train.tsv, ...) or data=hub")
    present = [task for task in TASKS.values() if data == HUB or (Path(data) / task.name).is_dir()]
    for name in asked:
        if name not in [task.name for task in present]:
            there = ", ".join(task.name for task in present) or "none of the table's"
            raise UserError(f"tasks: {name} is not in {data}; there are {there}")
    chosen = [task for task in present if not asked or task.name in asked]
    if not chosen:
        raise UserError(f"data={data}: no task in it; expected sub-folders such as {', '.join(names)}")
    return chosen, [name for name, task in TASKS.items() if task not in chosen]


def read_task(data: str, task: Task, max_train_examples: int = 0, split: str = DEV) -> TaskData:
    """A task's examples from its folder in `data`, or from the hub.

    Args:
        max_train_examples: of the training set, drawn at random; 0 for all.
        split: what the task is scored on: `dev`, its development sets, or `tuning`, a part of the training set, which is then
            left out of it; the development sets are not read.

    Raises:
        UserError: a missing file, text that is not UTF-8, a row with a column too many or too few, an unknown label, no
            example, too few for a tuning split.
    """
    if split == TUNING:
        task = dataclasses.replace(task, dev=())
    found = _from_hub(task) if data == HUB else _from_folder(Path(data) / task.name, task)
    if split == TUNING:
        train, tuning = tuning_split(found.train)
        if not len(tuning):
            raise UserError(
                f"{task.name}: {len(train)} training examples are too few for a tuning split; set split=dev"
            )
        found = dataclasses.replace(found, train=train, dev={TUNING: tuning})
    if max_train_examples and max_train_examples < len(found.train):
        chosen = np.random.default_rng(SUBSET_SEED).choice(len(found.train), max_train_examples, replace=False)
        return dataclasses.replace(found, train=found.train.only(chosen))
    return found


def _from_folder(folder: Path, task: Task) -> TaskData:
    torn: list[int] = []
    train = _examples(folder / "train.tsv", rows_of(folder / "train.tsv", task, torn), task)
    dev = {name: _examples(file, rows_of(file, task), task) for name in task.dev for file in [folder / f"{name}.tsv"]}
    return TaskData(task, task.labels, train, dev, len(torn))


def rows_of(file: Path, task: Task, torn: list[int] | None = None) -> Iterator[Row]:
    """(line number, sentences, label) of each row. The format has no quoting: a quotation mark belongs to the text.

    Lines with a wrong number of columns are left out and noted in `torn`, as many as the task is known to have.
    """
    lines = _lines(file)
    columns = list(task.columns or lines[0].split("\t"))
    lacking = [name for name in (*task.sentences, task.label) if name not in columns]
    if lacking:
        raise UserError(f"{file}:1: no column `{lacking[0]}` in the header, which is {', '.join(columns)}")
    picked = [columns.index(name) for name in task.sentences]
    label = columns.index(task.label)
    first = 0 if task.columns else 1
    for number, line in enumerate(lines[first:], first + 1):
        cells = line.split("\t")
        if len(cells) == len(columns):
            yield number, tuple(cells[i] for i in picked), cells[label]
        elif torn is not None and len(torn) < task.torn_rows:
            torn.append(number)
        else:
            raise UserError(
                f"{file}:{number}: {len(cells)} columns instead of {len(columns)}; repair or remove the row"
            )


def _lines(file: Path) -> list[str]:
    """Split at line feeds alone, as other characters that end a line occur in the texts."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); a task's folder holds train.tsv and its dev files"
        ) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}:{line}: not UTF-8 text; convert the file") from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{file}: no example in it")
    return lines


def _examples(file: Path, rows: Iterable[Row], task: Task) -> Examples:
    sentences, labels, kind = [], [], KINDS[task.kind]
    for number, texts, label in rows:
        sentences.append(texts)
        try:
            labels.append(kind.read(label, task.labels))
        except ValueError as error:
            raise UserError(f"{file}:{number}: {error}") from None
    if not sentences:
        raise UserError(f"{file}: no example in it")
    return Examples(sentences, labels)


def _from_hub(task: Task) -> TaskData:
    from datasets import load_dataset  # takes seconds, and only the hub needs it

    splits = {"train": "train", **{name: name.replace("dev", "validation") for name in task.dev}}
    try:
        tables = {name: load_dataset(HUB_DATASET, task.hub, split=split) for name, split in splits.items()}
    except Exception as error:  # the library raises a dozen kinds: no network, a proxy, a full disk
        raise UserError(
            f"data=hub: {HUB_DATASET} ({task.hub}) cannot be loaded: {one_line(error)}; give data=FOLDER"
        ) from None
    columns = task.hub_sentences or task.sentences
    examples = {
        name: Examples(list(zip(*(table[column] for column in columns), strict=True)), list(table["label"]))
        for name, table in tables.items()
    }
    return TaskData(task, task.labels, examples.pop("train"), examples)
