"""Two small classification tasks in GLUE's TSV layout, made of documentation that pretraining has not seen.

DocPackage: which package does this sentence document? DocOpening: is it the first sentence of its entry, or a later one?
Both are made of the entries that `recipe.prepare` holds out for validation, train and dev of different ones. Tasks on
pairs of sentences or on the order of words were tried and are beyond encoders that were trained for seconds.
"""

from __future__ import annotations

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
    """Write `DocPackage/{train,dev}.tsv` and `DocOpening/{train,dev}.tsv`, `train` and `dev` rows each.

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
        ("DocOpening", ("index", "sentence", "label"), opening_rows),
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


def opening_rows(entries: dict[str, list[Sentences]], shuffler: random.Random, count: int) -> list[Row]:
    """(sentence, label), at most `count`, half of each label: `first` of its entry, or a `later` one of the same entries."""
    first: dict[str, None] = {}
    later: dict[str, None] = {}
    for _, texts in sorted(entries.items()):
        for found in texts:
            if len(found) > 1:
                first[found[0]] = None
                later[shuffler.choice(found[1:])] = None
    both = first.keys() & later.keys()  # these have no right answer
    pools = [(label, [s for s in pool if s not in both]) for label, pool in (("first", first), ("later", later))]
    least = min(len(pool) for _, pool in pools)
    rows = [(s, label) for label, pool in pools for s in shuffler.sample(pool, min(least, count // 2))]
    shuffler.shuffle(rows)
    return rows


def _flat(texts: Iterable[Sentences]) -> Iterable[str]:
    return (sentence for found in texts for sentence in found)
