"""A task of the user's own: from the config and the files to a row of the table of tasks, and its examples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from recipe.config import FinetuneConfig
from recipe.errors import UserError
from recipe.finetune.examples import WORD_BREAK, Examples
from recipe.finetune.files import Row, format_of, nearest, read_rows
from recipe.finetune.kinds import KINDS
from recipe.finetune.kinds.kind import Kind, Labels
from recipe.finetune.predictions import TestSet
from recipe.finetune.tasks import Fitting, Task, TaskData
from recipe.finetune.tuning_split import split_places

TRAIN, DEV, TEST = "train", "dev", "test"
DEV_SHARE = 0.1
SALT = "dev split"
SAID = 5  # labels that are named, of a kind of note


@dataclass(frozen=True)
class Raw:
    """Examples whose labels are words still, with where each stands."""

    texts: list[tuple[str, ...]]
    labels: list[str | list[str]]
    places: list[tuple[Path, int]]

    def only(self, indices: Sequence[int]) -> Raw:
        return Raw(*([part[i] for i in indices] for part in (self.texts, self.labels, self.places)))

    @property
    def where(self) -> list[str]:
        return [f"{file}:{line}" for file, line in self.places]


@dataclass(frozen=True)
class OwnTask:
    """The source of a fine-tuning's jobs whose task a config describes; it is handed to the processes of a pool."""

    config: FinetuneConfig
    section = "finetune"
    lr_key = "lr"

    @property
    def kind(self) -> Kind:
        return KINDS[self.config.kind]

    @cached_property
    def bad(self) -> list[str]:
        """Rows that were left out, each with the reason."""
        return []

    def files(self, task: Task | None = None) -> list[Path]:
        return [file for name in (TRAIN, DEV, TEST) for file in self._files(name)]

    def read(self, task: Task) -> TaskData:
        return self.data

    def tests(self, task: Task) -> dict[str, TestSet]:
        return {}

    @cached_property
    def data(self) -> TaskData:
        """The examples, split, with the labels that were found.

        Raises:
            UserError: for whatever is wrong with the files, with file and line.
        """
        config, kind = self.config, self.kind
        check(config)
        raw = {name: self._raw(name) for name in (TRAIN, DEV, TEST) if getattr(config, name)}
        if self._has_labels(TRAIN) and (problem := alike(kind, raw[TRAIN])):
            raise UserError(problem)
        labels = self._labels(raw[TRAIN])
        if "f1" in config.metrics and len(labels) != 2:
            raise UserError(
                f"metrics: f1 is that of the second of two labels, and there are {len(labels)}; take macro_f1"
            )
        sets = {name: self._examples(name, one, labels) for name, one in raw.items()}
        if share := self.dev_share:
            kept, drawn = split_places(sets[TRAIN], share, len(sets[TRAIN]), f"{SALT} {config.split_seed}")
            if not drawn:
                raise UserError(
                    f"dev_share={share:g}: {len(kept)} examples, or their texts in common, are too few; give dev"
                )
            raw[TRAIN], raw[DEV] = raw[TRAIN].only(kept), raw[TRAIN].only(drawn)
            sets[TRAIN], sets[DEV] = sets[TRAIN].only(kept), sets[TRAIN].only(drawn)
        scored = TEST if TEST in sets else DEV
        choosing = sets[DEV] if scored == TEST and DEV in sets else None
        places = {name: one.where for name, one in raw.items()}
        task = self._task(labels)
        train = kind.training(sets[TRAIN], config)
        if not len(train):
            raise UserError(f"positives={config.positives}: no row of train has so much in `{config.label}`; lower it")
        left_out = [f"{len(self.bad)} rows are left out, the first {self.bad[0]}"] if self.bad else []
        said = (*left_out, *notes(kind, raw[TRAIN], labels))
        return TaskData(task, labels, train, {scored: sets[scored]}, choosing=choosing, places=places, notes=said)

    def _task(self, labels: Labels) -> Task:
        config = self.config
        fitting = Fitting(
            warmup=config.warmup,
            final_lr=config.final_lr,
            balanced=config.class_weights == "balanced",
            patience=config.early_stopping,
            layer_decay=config.layer_decay,
            freeze_layers=config.freeze_layers,
            temperature=config.temperature,
        )
        return Task(
            name=config.name, sentences=tuple(config.text[:2]), label=config.label, labels=tuple(labels),
            metrics=tuple(config.metrics) or tuple(self.kind.metrics)[:1], lr=config.lr, epochs=config.epochs,
            batch_size=config.batch_size, weight_decay=config.weight_decay, seeds=tuple(config.seeds), kind=config.kind,
            fitting=fitting,
        )  # fmt: skip

    @property
    def draws_dev(self) -> bool:
        return self.dev_share > 0

    @property
    def dev_share(self) -> float:
        """Of the training files, as dev split."""
        config = self.config
        if config.dev_share is not None:
            if config.dev_share and config.dev:
                raise UserError(f"dev_share={config.dev_share:g}, and dev names files; leave one of them out")
            if not config.dev_share and not (config.dev or config.test):
                raise UserError("dev_share=0 without dev and test: nothing is left to score on; give one of them")
            return config.dev_share
        needed = not config.dev and (not config.test or config.early_stopping)
        return DEV_SHARE if needed else 0.0

    def _has_labels(self, name: str) -> bool:
        """Whether a set's rows need one."""
        return name != TRAIN or self.draws_dev or self.kind.train_labels(self.config)

    def _files(self, name: str) -> list[Path]:
        return [Path(self.config.data) / file for file in getattr(self.config, name)]

    def _raw(self, name: str) -> Raw:
        """Every row of a set's files; the first that cannot be used is an error."""
        found, bad = Raw([], [], []), []
        labelled = self._has_labels(name)
        # what does not belong, a third text, is for training alone
        columns = self.config.text if name == TRAIN and not self.draws_dev else self.config.text[:2]
        wanted = [*columns, *([self.config.label] if labelled else [])]
        for file in self._files(name):
            before = len(found.texts)
            for row in read_rows(file, self.config, wanted):
                text, problem = text_of(row, columns, self.kind)
                label = row.cells.get(self.config.label) if labelled else ""
                if problem is None and labelled:
                    label, problem = self._split_label(label, text)
                if problem:
                    bad.append(f"{file}:{row.line}: {problem}")
                    if len(bad) > self.config.bad_rows:
                        raise UserError(f"{bad[-1]}; repair or remove the row{self._left_out(bad[:-1])}")
                    continue
                found.texts.append(text)
                found.labels.append(label)
                found.places.append((file, row.line))
            if len(found.texts) == before:
                raise UserError(f"{file}: no example in it")
        self.bad.extend(bad)
        return found

    @staticmethod
    def _left_out(bad: Sequence[str]) -> str:
        return (
            f", the {len(bad) + 1}th of these; bad_rows={len(bad)} leaves out that many" if bad else ", or set bad_rows"
        )

    def _split_label(self, label: str | list[str], text: tuple[str, ...]) -> tuple[str | list[str] | None, str | None]:
        """A cell as the kind reads it, or what is wrong with it."""
        column, kind = self.config.label, self.kind
        if kind.separator is None:
            if isinstance(label, list):
                return None, f"column `{column}` is a list, and kind={kind.name} has one label"
            return (label, None) if label.strip() else (None, f"column `{column}` is empty")
        words = split_cell(label, self.config.separator, kind)
        if kind.word_per_line and len(words) != (count := len(text[0].split(WORD_BREAK))):
            return None, f"{len(words)} tags for {count} words"
        return words, None

    def _labels(self, train: Raw) -> Labels:
        """Those of the config, or all of the training files, in an order that does not depend on the rows'."""
        if self.config.labels:
            if len(set(self.config.labels)) < len(self.config.labels):
                raise UserError("labels: one of them stands there twice")
            return tuple(self.config.labels)
        found = dict.fromkeys(word for label in train.labels for word in self.kind.words(label))
        if all(re.fullmatch(r"-?\d+", word) for word in found):
            return tuple(sorted(found, key=int))
        return tuple(self.kind.words(sorted(found))) if self.kind.word_per_line else tuple(sorted(found))

    def _examples(self, name: str, raw: Raw, labels: Labels) -> Examples:
        if not self._has_labels(name):
            return Examples(raw.texts, [self.kind.unlabelled] * len(raw.texts))
        read = []
        for (file, line), label in zip(raw.places, raw.labels, strict=True):
            try:
                read.append(self.kind.read(label, labels))
            except ValueError as error:
                # A CoNLL file has a line for each tag.
                line += getattr(error, "place", 0) if format_of(file, self.config) == "conll" else 0
                raise UserError(f"{file}:{line}: {self._unknown(name, label, labels) or error}") from None
        return Examples(raw.texts, read)

    def _unknown(self, name: str, label: str | list[str], labels: Labels) -> str | None:
        """Of a label that only this set has: which it is, and the nearest."""
        words = [word for word in self.kind.words(label) if word not in labels]
        if name == TRAIN or not words or self.config.labels:
            return None
        return f"label `{words[0]}` is in no row of train; {nearest(words[0], labels)}"


def check(config: FinetuneConfig) -> None:
    """What the config says by itself."""
    if config.kind not in KINDS:
        raise UserError(f"kind: no kind `{config.kind}`; {nearest(config.kind, list(KINDS))}")
    kind = KINDS[config.kind]
    for metric in config.metrics:
        if metric not in kind.metrics:
            raise UserError(f"metrics: kind={config.kind} has no `{metric}`; {nearest(metric, list(kind.metrics))}")
    if kind.word_per_line and config.labels and config.labels[0] != kind.words(config.labels)[0]:
        raise UserError(f"labels: `{kind.words(config.labels)[0]}` must be the first of them")
    if not kind.least_texts <= len(config.text) <= kind.texts:
        counts = " or ".join("123"[kind.least_texts - 1 : kind.texts])
        raise UserError(f"text={config.text}: kind={config.kind} reads {counts} columns")
    if not config.train or not config.seeds:
        raise UserError(f"{'seeds' if config.train else TRAIN}: empty; give one at least")
    if len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"seeds={config.seeds}: one of them stands there twice")
    if config.class_weights != "none" and kind.balance is None:
        raise UserError(f"class_weights={config.class_weights}: kind={config.kind} has no classes; leave it out")


def text_of(row: Row, columns: Sequence[str], kind: Kind) -> tuple[tuple[str, ...], str | None]:
    """A row's text or pair, or why it cannot be used. Of a kind that has a label per word, the words of its one text."""
    if row.problem:
        return (), row.problem
    texts = []
    for column in columns:
        cell = row.cells[column]
        if kind.word_per_line:
            words = cell if isinstance(cell, list) else cell.split()
            cell = WORD_BREAK.join(" ".join(word.split()) for word in words)
            if any(not word.strip() for word in words):
                return (), f"column `{column}` has an empty word"
        elif isinstance(cell, list):
            return (), f"column `{column}` is a list, no text"
        if not cell.strip():
            return (), f"column `{column}` is empty"
        texts.append(cell)
    return tuple(texts), None


def split_cell(cell: str | list[str], separator: str, kind: Kind) -> list[str]:
    """The labels in one cell."""
    if isinstance(cell, list):
        return cell
    separator = separator or kind.separator
    return [word.strip() for word in (cell.split() if separator == " " else cell.split(separator)) if word.strip()]


def alike(kind: Kind, train: Raw) -> str | None:
    """What is wrong with a training set that has one answer alone."""
    answers = {tuple(label) if isinstance(label, list) else label for label in train.labels}
    if kind.word_per_line:
        answers = {word for label in answers for word in label}
    if len(answers) > 1:
        return None
    answer = next(iter(answers), "")
    word = answer if isinstance(answer, str) else ", ".join(answer) or "none"
    return f"{train.where[0]}: every row of train has the label `{word}`, so there is nothing to learn"


def notes(kind: Kind, train: Raw, labels: Labels) -> Iterator[str]:
    """What a user should know of the labels before they are learnt."""
    if not labels:
        return
    places: dict[str, list[str]] = {word: [] for word in labels}
    for where, label in zip(train.where, train.labels, strict=True):
        for word in kind.words(label):
            places[word].append(where)
    once = [word for word, found in places.items() if len(found) == 1]
    yield from (f"{places[word][0]}: label `{word}` is seen once, too rarely to be learnt" for word in once[:SAID])
    if len(once) > SAID:
        yield f"{len(once) - SAID} more labels are seen once"
    absent = [word for word, found in places.items() if not found]
    yield from (f"label `{word}` is in no row of train, so it is not learnt" for word in absent[:SAID])
