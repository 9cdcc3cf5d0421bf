"""Tasks that are learnt in a second, in GLUE's form and in BLiMP's: what counts is a colour or an animal among other words."""

from __future__ import annotations

import json
import random
from pathlib import Path

COLOURS = ["red", "green", "blue", "black", "white"]
ANIMALS = ["horse", "tiger", "snake", "whale", "mouse"]
FILLERS = ["the", "a", "near", "with", "under", "very", "old", "new", "and", "or", "of", "in", "house", "tree", "road"]
TEXTS = [" ".join(COLOURS + ANIMALS + FILLERS)] * 3  # what a tokenizer is trained on


def sentence(word: str, chance: random.Random) -> str:
    """`word` somewhere among words that say nothing."""
    words = chance.choices(FILLERS, k=chance.randint(3, 9))
    words.insert(chance.randrange(len(words) + 1), word)
    return " ".join(words)


def write_tsv(file: Path, rows: list[tuple]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), "utf-8")


def write_sst2(data: Path, train: int = 320, dev: int = 80) -> None:
    """A colour is 0, an animal 1; the rows sorted by label, as no training should read them."""
    chance = random.Random(5)
    for split, count in (("train", train), ("dev", dev)):
        halves = [(sentence(chance.choice(kind), chance), label) for label, kind in enumerate((COLOURS, ANIMALS))
                  for _ in range(count // 2)]  # fmt: skip
        write_tsv(data / "SST-2" / f"{split}.tsv", [("sentence", "label"), *halves])


def write_stsb(data: Path, train: int = 96, dev: int = 40) -> None:
    """5 for two colours, 0 for a colour and an animal."""
    chance = random.Random(6)
    for split, count in (("train", train), ("dev", dev)):
        rows = []
        for number in range(count):
            other, score = ((COLOURS, "5.000"), (ANIMALS, "0.0"))[number % 2]
            pair = [sentence(chance.choice(kind), chance) for kind in (COLOURS, other)]
            rows.append((number, "genre", *pair, score))
        write_tsv(data / "STS-B" / f"{split}.tsv", [("index", "genre", "sentence1", "sentence2", "score"), *rows])


def write_inference(data: Path, task: str, train: int = 240, dev: int = 16) -> None:
    """MNLI or RTE: two sentences about colours entail each other, others do not."""
    chance = random.Random(7)
    column, labels = {
        "MNLI": ("gold_label", ("entailment", "neutral", "contradiction")),
        "RTE": ("label", ("entailment", "not_entailment")),
    }[task]
    for split in ("train", "dev_matched", "dev_mismatched") if task == "MNLI" else ("train", "dev"):
        rows = []
        for number in range(train if split == "train" else dev):
            label = number % len(labels)
            second = chance.choice((COLOURS, ANIMALS, FILLERS)[label])
            rows.append((number, sentence("red", chance), sentence(second, chance), labels[label]))
        write_tsv(data / task / f"{split}.tsv", [("index", "sentence1", "sentence2", column), *rows])


def write_pairs(
    file: Path,
    paradigms: dict[str, int],
    terms: list[str] = (),
    field: str = "syntax",
    rows: list[tuple[str, str]] = (),
) -> None:
    """Minimal pairs in BLiMP's form, so many of each paradigm; `rows` instead of random sentences."""
    chance = random.Random(8)
    lines = []
    for place, (name, count) in enumerate(paradigms.items()):
        for number in range(count):
            good, bad = rows[number] if rows else [sentence(chance.choice(COLOURS), chance) for _ in range(2)]
            term = terms[place] if terms else "term"
            lines.append({"sentence_good": good, "sentence_bad": bad, "field": field, "linguistics_term": term, "UID": name,
                          "pairID": str(number)})  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
