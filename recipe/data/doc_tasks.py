"""Two small classification tasks in GLUE's TSV layout, made of documentation that pretraining has not seen.

In a few words cut from a sentence one is blanked out: which of eight was it? DocWord asks for an article, verb or particle, which
the parts of speech around it decide, DocPreposition for a preposition, which the words themselves decide ("based on"). Both are
made of the entries that `recipe.prepare` holds out for validation, train and dev of different ones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path

from recipe.config import PrepareConfig
from recipe.data import sources
from recipe.data.glue_tasks import BLANK
from recipe.data.pool import resolve
from recipe.errors import UserError

Row = tuple[str, ...]

# The eight answers of each task, all common enough to be asked for equally often.
WORDS = {
    "DocWord": ("a", "and", "be", "is", "of", "that", "the", "to"),
    "DocPreposition": ("as", "by", "for", "from", "in", "of", "on", "with"),
}
CONTEXT = 4  # words kept on either side of the blank
_LENGTH = (6, 60)  # in words; a sentence shorter or longer than this is mostly a caption or a list
_SENTENCE_END = re.compile(r"(?<=[a-z)`'\"][.!?])\s+(?=[A-Z])")
_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.|[-=~^*+|#:@\[{]|\d+[.)])|\s{3,}\S.*\s{3,}|::\s*$", re.MULTILINE)


def write(folder: Path, config: PrepareConfig, train: int = 2000, dev: int = 1000) -> None:
    """Write `{train,dev}.tsv` of each task of WORDS, `train` and `dev` rows each.

    Args:
        folder: gets a sub-folder for each task.
        config: the one that the dataset was prepared with; it decides what is held out.

    Raises:
        UserError: when `config` is not of the embedded corpus, or holds out too little for that many rows.
    """
    if config.train.embedded != "docstrings" or config.validation is not None:
        raise UserError("the documentation tasks need train.embedded=docstrings and no `validation` of its own")
    shuffler = random.Random(config.seed)
    held_out = [
        sentences(entry.text)
        for entry in sources.embedded_entries(config.train, resolve(config.processes))
        if sources.held_out(entry.text, config.validation_fraction, config.seed)
    ]
    shuffler.shuffle(held_out)
    cut = round(len(held_out) * dev / (train + dev))
    tables = {}
    for name, words in WORDS.items():
        used: set[str] = set()
        for split, entries, count in (("train", held_out[cut:], train), ("dev", held_out[:cut], dev)):
            rows = blank_rows([text for found in entries for text in found], words, shuffler, count, used)
            if len(rows) < count:
                raise UserError(
                    f"{name}/{split}.tsv: the held-out documentation gives {len(rows)} rows of {count}; "
                    "raise validation_fraction or ask for fewer"
                )
            numbered = [(str(i), *row) for i, row in enumerate(rows)]
            tables[folder / name / f"{split}.tsv"] = [("index", "sentence", "label"), *numbered]
    for path, table in tables.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join("\t".join(row) + "\n" for row in table), "utf-8")


def sentences(text: str) -> list[str]:
    """The English sentences of a documentation string, each once, without line breaks and tabs."""
    found: dict[str, None] = {}
    for paragraph in re.split(r"\n\s*\n", text):
        if _NOT_PROSE.search(paragraph):
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            words = sentence.split()
            plain = sum(word.strip(".,;:()'\"`").isalpha() for word in words)
            in_length = _LENGTH[0] <= len(words) <= _LENGTH[1]
            if in_length and sentence[0].isupper() and sentence[-1] in ".!?" and plain >= 0.7 * len(words):
                found[sentence] = None
    return list(found)


def blank_rows(
    texts: Sequence[str], words: Sequence[str], shuffler: random.Random, count: int, used: set[str]
) -> list[Row]:
    """(a blank with its neighbours, the word that stood there), at most `count`: words in turn, so that classes are equal until
    one runs out.

    No sentence and no row's text that is in `used` is taken, and what is taken is added: documentation repeats itself, and a row
    of dev that train has too would be remembered, not understood.
    """
    left: dict[str, list[tuple[str, str]]] = {word: [] for word in words}
    for sentence in texts:
        split = sentence.split()
        for place, word in enumerate(split):
            if word in left:
                row = (*split[max(0, place - CONTEXT) : place], BLANK, *split[place + 1 : place + 1 + CONTEXT])
                left[word].append((sentence, " ".join(row)))
    for found in left.values():
        shuffler.shuffle(found)
    rows: list[Row] = []
    while len(rows) < count and any(left.values()):
        for word, found in left.items():
            while found:
                pair = found.pop()
                if used.isdisjoint(pair):
                    used.update(pair)
                    rows.append((pair[1], word))
                    break
    rows = rows[:count]
    shuffler.shuffle(rows)
    return rows
