"""`python -m benchmarks.overlap GLUE PAIRS FILE ... [--out FILE]`: what is scored and stands in the text of pretraining.

GLUE is a folder in the benchmark's layout, PAIRS BLiMP's file or folder, each FILE (or glob) text that recipe.prepare reads. Of a
scored text every 13 words in a row are looked for, as GPT-3's authors did (Brown et al. 2020, appendix C); of one with 8 to 12
words all of them; a shorter one says nothing, and is counted apart. Words are letters and digits, in lower case, whatever is
between them. Equal hashes of 64 bits are taken for equal words in a row. The result counts, and quotes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measurement import write
from recipe.config.prepare import Source
from recipe.corpus import sources
from recipe.errors import end, exit_status
from recipe.finetune.minimal_pairs import read_pairs
from recipe.finetune.tasks import choose_tasks, read_task

OUT = Path("benchmarks/results/frontier/overlap.json")
LEAST, MOST = 8, 13  # words in a row
WORD = re.compile(r"[^\W_]+")
AT_A_TIME = 1 << 20  # words of the text
FACTORS = [np.uint64(pow(0x9E3779B97F4A7C15, n, 1 << 64)) for n in range(MOST)]  # odd, so that none loses bits


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


class Searched:
    """Texts to be found again, by the hashes of their words in a row."""

    def __init__(self, texts: Sequence[str]) -> None:
        split = [words_of(text) for text in texts]
        self._ids = {word: place for place, word in enumerate(sorted(set(itertools.chain(*split))), 1)}
        # Of each word; the first is that of every other word.
        self._values = np.random.default_rng(0).integers(2**64, size=len(self._ids) + 1, dtype=np.uint64)
        self.searched = np.array([len(words) >= LEAST for words in split])
        self.found = np.zeros(len(texts), bool)
        self._owners: dict[int, list[tuple[int, int]]] = {n: [] for n in range(LEAST, MOST + 1)}  # (hash, place)
        for place in self.searched.nonzero()[0].tolist():
            n = min(len(split[place]), MOST)
            self._owners[n] += [(one, place) for one in self._rows(split[place])[n].tolist()]
        self._hashes = {n: np.unique(np.array([one for one, _ in of], np.uint64)) for n, of in self._owners.items()}

    def _rows(self, words: Iterable[str]) -> dict[int, np.ndarray]:
        """The hash of every n words in a row, for each n that counts."""
        ids = np.fromiter((self._ids.get(word, 0) for word in words), np.int64)
        values, sums, rows = self._values[ids], np.zeros(len(ids), np.uint64), {}
        for n in range(1, min(MOST, len(values)) + 1):
            sums = sums[: len(values) - n + 1] + values[n - 1 :] * FACTORS[n - 1]
            if n >= LEAST:
                rows[n] = sums
        return rows

    def look_in(self, words: Sequence[str]) -> None:
        """Mark the texts that stand in these words."""
        for n, rows in self._rows(words).items():
            hashes = self._hashes[n]
            if not len(hashes):
                continue
            places = np.searchsorted(hashes, rows).clip(max=len(hashes) - 1)
            met = set(rows[hashes[places] == rows].tolist())
            for one, place in self._owners[n] if met else ():
                self.found[place] |= one in met


def pieces(documents: Iterable[str]) -> Iterator[list[str]]:
    """Words of many documents at a time, with words of no text between two of them."""
    piece: list[str] = []
    for document in documents:
        piece += [*words_of(document), *[""] * MOST]
        if len(piece) >= AT_A_TIME:
            yield piece
            piece = []
    if piece:
        yield piece


def scored_texts(glue: str, pairs: str) -> dict[str, list[str]]:
    """Of each set, without repetitions: the sentences of GLUE's dev sets, and both of BLiMP's reported pairs."""
    found = {}
    for task in choose_tasks(glue, [])[0]:
        for name, examples in read_task(glue, task).dev.items():
            found[f"{task.name}, {name}"] = [text for texts in examples.sentences for text in texts]
    found["BLiMP, reported pairs"] = [
        text for paradigm in read_pairs(pairs, "reported") for pair in paradigm.pairs for text in pair
    ]
    return {name: list(dict.fromkeys(texts)) for name, texts in found.items()}


def measure(scored: dict[str, list[str]], documents: Iterable[str]) -> dict[str, Any]:
    every = list(itertools.chain(*scored.values()))
    texts, words = Searched(every), 0
    for piece in pieces(documents):
        texts.look_in(piece)
        words += sum(map(bool, piece))
    rows, start = {}, 0
    for name, own in scored.items():
        place = slice(start, start + len(own))
        counted = {"searched": int(texts.searched[place].sum()), "found": int(texts.found[place].sum())}
        rows[name] = {"texts": len(own), **counted}
        start = place.stop
    return {"words_in_a_row": [LEAST, MOST], "words_of_text": words, "sets": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("glue")
    parser.add_argument("pairs")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args()
    scored = scored_texts(words.glue, words.pairs)
    source, rejected = Source(files=words.files), sources.Rejected()
    documents = (text for part in sources.parts(source) for text in sources.documents(part, rejected))
    result = measure(scored, documents)
    for name, row in result["sets"].items():
        print(f"{name}: {row['found']} of {row['searched']} searched, of {row['texts']}")
    write(words.out, result)


if __name__ == "__main__":
    end(lambda: exit_status(main))
