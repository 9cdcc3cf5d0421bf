"""Tasks of a user's own, of each kind, that are learnt in a second, and their configs."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

from recipe.config import Cost, FinetuneConfig, to_dict
from tests.tiny.configs import write_yaml
from tests.tiny.tasks import ANIMALS, COLOURS, FILLERS, sentence

KINDS = {
    "classification": {"train": ["train.csv"], "test": ["test.csv"]},
    "multilabel": {"train": ["train.jsonl"], "label": "labels"},
    "regression": {"train": ["train.tsv"], "text": ["one", "two"], "metrics": ["pearson", "spearman"]},
    "entities": {"train": ["train.txt"], "test": ["test.txt"], "format": "conll", "columns": ["word", "tag", "rest"],
               "text": ["word"], "label": "tag"},
}  # fmt: skip


def write_csv(file: Path, rows: list[tuple], delimiter: str = ",") -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter=delimiter).writerows(rows)


def write_own(data: Path, count: int = 240) -> None:
    """The files of every kind: a colour or an animal decides."""
    data.mkdir(exist_ok=True)
    chance = random.Random(11)
    for name in ("train", "test"):
        rows = [(sentence(chance.choice(kind), chance), label) for label, kind in (("colour", COLOURS), ("animal", ANIMALS))
                for _ in range(count // 2)]  # fmt: skip
        write_csv(data / f"{name}.csv", [("text", "label"), *rows])
        tagged = [sentence(chance.choice(ANIMALS), chance).split() for _ in range(count)]
        lines = [f"{word} {'B-ANIMAL' if word in ANIMALS else 'O'} 0" for words in tagged for word in [*words, ""]]
        text = "\n".join(line if not line.startswith(" ") else "" for line in lines)
        (data / f"{name}.txt").write_text(text + "\n", "utf-8")
    kinds = [("colour", COLOURS), ("animal", ANIMALS)]
    with (data / "train.jsonl").open("w", encoding="utf-8") as stream:
        for _ in range(2 * count):
            chosen = [one for one in kinds if chance.random() < 0.5]
            words = [*chance.choices(FILLERS, k=4), *(chance.choice(words) for _, words in chosen)]
            row = {"text": " ".join(chance.sample(words, len(words))), "labels": [name for name, _ in chosen]}
            stream.write(json.dumps(row) + "\n")
    pairs = [("one", "two", "label")]
    for number in range(count):
        other, score = ((COLOURS, 5.0), (ANIMALS, 0.5))[number % 2]
        pairs.append((sentence(chance.choice(COLOURS), chance), sentence(chance.choice(other), chance), score))
    (data / "train.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in pairs), "utf-8")


def own_config(folder: Path, kind: str = "classification", **settings: Any) -> FinetuneConfig:
    """Of fine-tuning the run in `folder`/run on the files in `folder`/own, at a dollar per core-second."""
    defaults = {"name": "mine", "kind": kind, "checkpoint": str(folder / "run"), "data": str(folder / "own"), "max_length": 48,
                "seeds": [19], "lr": 5e-3, "epochs": 4.0, "batch_size": 16, "device": "cpu", "precision": "fp32"}  # fmt: skip
    return FinetuneConfig(**{**defaults, **KINDS.get(kind, {}), "cost": Cost(usd_per_hour=3600.0), **settings})


def own_yaml(folder: Path, kind: str = "classification", **settings: Any) -> Path:
    return write_yaml(folder / "own.yaml", to_dict(own_config(folder, kind, **settings)))
