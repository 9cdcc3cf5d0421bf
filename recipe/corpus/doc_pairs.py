"""Minimal pairs, in BLiMP's form, of documentation sentences that pretraining has not seen.

One sentence of a pair stands as it was written; in the other, one mark (DocMark) or one word (DocWord) is exchanged for another.
Two sentences exchange theirs, so that each stands as often where it was written as where it was not: an encoder that knows only
how frequent words are scores 50.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from recipe.config import PrepareConfig
from recipe.corpus import sources
from recipe.errors import UserError
from recipe.system.files import write_whole
from recipe.system.processes import resolve

FILE = "pairs.jsonl"
PAIRS = 440  # of each paradigm: 40 to choose by, 400 to report, whose standard error is 2.5 points at a score of 50
MARKS = re.compile(r"[,.():`'-]")
WORDS = re.compile(r"(?<![\w`'.(-])[a-z]{4,}(?![\w`'.(=-])")
PARADIGMS = {"DocMark": MARKS, "DocWord": WORDS}
FREQUENT = 300  # words that are exchanged: those that a few hundred batches show often enough to be learnt
# In words: shorter sentences are mostly captions, and what one costs grows with the square of its length.
_LENGTH = (6, 16)
_CHARACTERS = 100  # 60 tokens at most, and then the demo's 64 positions hold it
_SENTENCE_END = re.compile(r"(?<=[a-z)`'\"][.!?])\s+(?=[A-Z])")
_NOT_PROSE = re.compile(r"^\s*(>>>|\.\.|[-=~^*+|#:@\[{]|\d+[.)])|\s{3,}\S.*\s{3,}|::\s*$", re.MULTILINE)

Spot = tuple[str, int, int]  # a sentence, and where in it something may be exchanged
Pair = tuple[str, str]  # as written, and with the exchange


def write(folder: Path, config: PrepareConfig, count: int = PAIRS) -> Path:
    """Write `count` pairs of each paradigm into `folder`; returns the file.

    Args:
        config: the one that the dataset was prepared with; it decides what is held out.

    Raises:
        UserError: when `config` is not of the embedded corpus, or holds out too little for that many pairs.
    """
    if config.train.embedded != "docstrings" or config.validation is not None:
        raise UserError("the documentation's pairs need train.embedded=docstrings and no `validation` of its own")
    seen, held_out = set(), []
    for entry in sources.embedded_entries(config.train, resolve(config.processes)):
        if sources.held_out(entry.text, config.validation_fraction, config.seed):
            held_out += sentences(entry.text)
        else:
            seen.update(sentences(entry.text))
    new = [sentence for sentence in dict.fromkeys(held_out) if sentence not in seen]
    lines = []
    for name, pattern in PARADIGMS.items():
        pairs = exchanges(new, pattern, random.Random(config.seed), count)
        if len(pairs) < count:
            raise UserError(
                f"{name}: the held-out documentation gives {len(pairs)} pairs of {count}; raise validation_fraction"
            )
        lines += [_line(name, good, bad) for good, bad in pairs]
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, "".join(lines))
    return folder / FILE


def _line(name: str, good: str, bad: str) -> str:
    term = {"linguistics_term": "exchange", "field": "documentation"}
    return json.dumps({"sentence_good": good, "sentence_bad": bad, "UID": name, **term}, ensure_ascii=False) + "\n"


def sentences(text: str) -> list[str]:
    """The English sentences of a documentation string, each once, without line breaks and tabs."""
    found: dict[str, None] = {}
    for paragraph in re.split(r"\n\s*\n", text):
        if _NOT_PROSE.search(paragraph):
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            words = sentence.split()
            plain = sum(word.strip(".,;:()'\"`").isalpha() for word in words)
            in_length = _LENGTH[0] <= len(words) <= _LENGTH[1] and len(sentence) <= _CHARACTERS
            if in_length and sentence[0].isupper() and sentence[-1] in ".!?" and plain >= 0.7 * len(words):
                found[sentence] = None
    return list(found)


def exchanges(texts: Sequence[str], pattern: re.Pattern[str], shuffler: random.Random, count: int) -> list[Pair]:
    """At most `count` pairs, two of each exchange; no sentence is in two of them.

    What `pattern` finds is exchanged: of few kinds, such as marks, each with each in turn; of many, each of the FREQUENT with
    the one that is next to it in frequency.
    """
    spots: dict[str, list[Spot]] = {}
    for text in texts:
        for match in pattern.finditer(text):
            spots.setdefault(match.group(), []).append((text, *match.span()))
    for found in spots.values():
        shuffler.shuffle(found)
    kinds = sorted(spots, key=lambda kind: -len(spots[kind]))[:FREQUENT]
    many = len(kinds) == FREQUENT
    partners: Iterable[Pair] = zip(kinds[::2], kinds[1::2], strict=True) if many else combinations(kinds, 2)
    pairs: list[Pair] = []
    used: set[str] = set()
    left = list(partners)
    while left and len(pairs) < count:
        for both in list(left):
            one, other = (_next(spots[kind], used) for kind in both)
            if one is None or other is None or one[0] == other[0]:
                left.remove(both)
                continue
            used |= {one[0], other[0]}
            pairs += [(one[0], _put(one, both[1])), (other[0], _put(other, both[0]))]
    return pairs[:count]


def _next(spots: list[Spot], used: set[str]) -> Spot | None:
    """The last of the spots whose sentence is not used yet; those that are get dropped."""
    while spots and spots[-1][0] in used:
        spots.pop()
    return spots[-1] if spots else None


def _put(spot: Spot, what: str) -> str:
    text, start, end = spot
    return text[:start] + what + text[end:]
