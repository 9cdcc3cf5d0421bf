"""Two small classification tasks in GLUE's TSV layout, made of documentation that pretraining has not seen.

DocPackage: which package does this sentence document? DocPair: do these two sentences stand together in one entry
(`same`), or are they from two (`different`)? Both are made of the entries that `recipe.prepare` holds out for validation,
train and dev of different ones.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from recipe.config import PrepareConfig
from recipe.data import sources
from recipe.data.pool import resolve
from recipe.errors import UserError

Row = tuple[str, ...]
Sentences = list[str]  # of one entry

_WORDS = (6, 60)  # a sentence shorter or longer than this is mostly a caption or a list
_SENTENCE_END = re.compile(r"(?<=[a-z)`'\"][.!?])\s+(?=[A-Z])")
_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.|[-=~^*+|#:@\[{]|\d+[.)])|\s{3,}\S.*\s{3,}|::\s*$", re.MULTILINE)
# A sentence that names its package, or the name it is imported by, would need no understanding; the names of all
# packages become one word, because blanking only the right one would give it away by its absence.
_NAMES = re.compile(
    r"\b(py)?torch\b|\bnumpy\b|\bnp\b|\bscipy\b|\bscikit-learn\b|\bsklearn\b|\bpandas\b|\bpd\b|\bmatplotlib\b|\bmpl\b|"
    r"\bpyplot\b|\bplt\b|\bnetworkx\b|\bnx\b|\bsympy\b|\bpython\b",
    re.IGNORECASE,
)


def write(folder: Path, config: PrepareConfig, train: int = 2000, dev: int = 500) -> None:
    """Write `DocPackage/{train,dev}.tsv` and `DocPair/{train,dev}.tsv`, `train` and `dev` rows each.

    Args:
        folder: gets the two sub-folders.
        config: the one that the dataset was prepared with; it decides what is held out.

    Raises:
        UserError: when `config` is not of the embedded corpus, or holds out too little for that many rows.
    """
    if config.train.embedded != "docstrings" or config.validation is not None:
        raise UserError("the documentation tasks need train.embedded=docstrings and no `validation` of its own")
    entries = [
        entry
        for entry in sources.embedded_entries(config.train, resolve(config.processes))
        if sources.held_out(entry.text, config.validation_fraction, config.seed)
    ]
    shuffler = random.Random(config.seed)
    by_package: dict[str, list[Sentences]] = defaultdict(list)
    for entry in entries:
        by_package[entry.package].append(sentences(entry.text))
    halves: dict[str, dict[str, list[Sentences]]] = {"dev": {}, "train": {}}
    for package, found in by_package.items():
        shuffler.shuffle(found)
        cut = round(len(found) * dev / (train + dev))
        halves["dev"][package], halves["train"][package] = found[:cut], found[cut:]
    tasks: tuple[tuple[str, Row, Callable], ...] = (
        ("DocPackage", ("index", "sentence", "label"), package_rows),
        ("DocPair", ("index", "sentence1", "sentence2", "label"), pair_rows),
    )
    tables = {}
    for name, header, rows_of in tasks:
        for split, count in (("train", train), ("dev", dev)):
            rows = rows_of(halves[split], shuffler, count)
            if len(rows) < count:
                raise UserError(
                    f"{name}/{split}.tsv: the held-out documentation gives {len(rows)} rows of {count}; "
                    "raise validation_fraction or ask for fewer"
                )
            tables[folder / name / f"{split}.tsv"] = [header, *((str(i), *row) for i, row in enumerate(rows))]
    for path, table in tables.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join("\t".join(row) + "\n" for row in table), "utf-8")


def sentences(text: str) -> Sentences:
    """The English sentences of a documentation string, each once, without line breaks, tabs and package names."""
    found: dict[str, None] = {}
    for paragraph in re.split(r"\n\s*\n", text):
        if _NOT_PROSE.search(paragraph):
            continue
        for sentence in _SENTENCE_END.split(_NAMES.sub("package", " ".join(paragraph.split()))):
            words = sentence.split()
            plain = sum(word.strip(".,;:()'\"`").isalpha() for word in words)
            in_length = _WORDS[0] <= len(words) <= _WORDS[1]
            if in_length and sentence[0].isupper() and sentence[-1] in ".!?" and plain >= 0.7 * len(words):
                found[sentence] = None
    return list(found)


def package_rows(entries: dict[str, list[Sentences]], shuffler: random.Random, count: int) -> list[Row]:
    """(sentence, package), at most `count`: packages in turn, so that classes are equal until one runs out."""
    owners: dict[str, set[str]] = defaultdict(set)
    for package, texts in entries.items():
        for sentence in _flat(texts):
            owners[sentence].add(package)
    # a sentence that stands in two packages has no right answer
    left = {p: [s for s in dict.fromkeys(_flat(texts)) if len(owners[s]) == 1] for p, texts in sorted(entries.items())}
    for found in left.values():
        shuffler.shuffle(found)
    rows = []
    while len(rows) < count and any(left.values()):
        rows += [(found.pop(), package) for package, found in left.items() if found]
    rows = rows[:count]
    shuffler.shuffle(rows)
    return rows


def pair_rows(entries: dict[str, list[Sentences]], shuffler: random.Random, count: int) -> list[Row]:
    """(sentence1, sentence2, label), at most `count`, half of each label.

    Half of all neighbouring sentences stay together; the other half exchange partners among themselves. So both labels draw
    on the same packages, positions and sentences in equal parts, and only the relation tells them apart.
    """
    texts = [found for _, of_package in sorted(entries.items()) for found in of_package]
    pairs = [(i, *two) for i, found in enumerate(texts) for two in itertools.pairwise(found)]
    shuffler.shuffle(pairs)
    kept, exchanged = pairs[: len(pairs) // 2], sorted(pairs[len(pairs) // 2 :])
    turn = len(exchanged) // 2  # sorted by entry, so half-way around lies another entry
    partners = exchanged[turn:] + exchanged[:turn]
    same = [(first, second, "same") for _, first, second in kept]
    different = [
        (first, second, "different")
        for (i, first, _), (_, _, second) in zip(exchanged, partners, strict=True)
        if second not in texts[i]
    ]
    shuffler.shuffle(different)
    least = min(len(same), len(different), count // 2)
    rows = same[:least] + different[:least]
    shuffler.shuffle(rows)
    return rows


def _flat(texts: Iterable[Sentences]) -> Iterable[str]:
    return (sentence for found in texts for sentence in found)
