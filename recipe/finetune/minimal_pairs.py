"""Minimal pairs of sentences, in BLiMP's own form (arXiv 1912.00582), and the masked copies that score a sentence.

The pseudo-log-likelihood of a sentence (Salazar et al., arXiv 1910.14659) takes a copy per token, in which that token is masked.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from recipe.errors import UserError, one_line
from recipe.finetune.batches import EncodedExamples
from recipe.system import expansion

TUNING, REPORTED = "tuning", "reported"
TUNING_PAIRS = 40  # the first of each paradigm
LONGEST = 1 << 20  # bytes of a pair's line
KEYS = ("sentence_good", "sentence_bad", "UID", "linguistics_term", "field")
NAMES = ("*.jsonl", "*.jsonl.gz")


@dataclass(frozen=True)
class Paradigm:
    name: str
    term: str  # the phenomenon, such as island_effects
    field: str  # of linguistics, such as syntax
    pairs: tuple[tuple[str, str], ...]  # (acceptable, not acceptable)


@dataclass(frozen=True)
class MaskedCopies:
    """Of each sentence as many copies as it has tokens that are not special."""

    examples: EncodedExamples  # the copies, one token of each masked; the labels are what stood there
    places: np.ndarray  # (N,) int64, where the mask stands in its copy
    sentences: np.ndarray  # (N,) int64, which sentence each is a copy of

    def __len__(self) -> int:
        return len(self.places)


def read_pairs(data: str, part: str, most: int = 0) -> list[Paradigm]:
    """The paradigms in `data`, a file or a folder of files, in the order in which they first appear.

    Args:
        part: `tuning`, the first 40 pairs of each paradigm, or `reported`, the others.
        most: pairs of a paradigm, the first of its part; 0 for all.

    Raises:
        UserError: no file, a line that is no pair, a paradigm without a pair in this part.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for file in files_of(Path(data)):
        for row in _rows(file):
            found.setdefault(row["UID"], []).append(row)
    return [_paradigm(name, rows, part, most) for name, rows in found.items()]


def files_of(place: Path) -> list[Path]:
    """`place` itself, or the files in BLiMP's form in that folder, sorted."""
    if place.is_file():
        return [place]
    files = sorted(file for name in NAMES for file in place.glob(name))
    if not files:
        raise UserError(f"data={place}: no {' or '.join(NAMES)} there; give BLiMP's file, or the folder of its files")
    return files


def _rows(file: Path) -> Iterator[dict[str, str]]:
    number, any_row, left = 0, False, expansion.most(file.stat().st_size)
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(LONGEST), b""), 1):
                left -= len(line)
                if len(line) == LONGEST or left < 0:
                    what = (
                        f"a line of {LONGEST:,} bytes"
                        if left >= 0
                        else f"more than {expansion.MOST_EXPANSION} times its own size"
                    )
                    raise UserError(f"{file}:{number}: {what}, which no pairs have; remove the file")
                if line.strip():
                    any_row = True
                    yield _row(line, f"{file}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file}:{number + 1}: cannot be read ({error})") from None
    if not any_row:
        raise UserError(f"{file}: no pair in it")


def _row(line: bytes, where: str) -> dict[str, str]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8 text; convert the file") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({getattr(error, 'msg', one_line(error))})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with {', '.join(KEYS)}")
    for key in KEYS:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UserError(f"{where}: `{key}` must be a text; a pair has {', '.join(KEYS)}")
    return row


def _paradigm(name: str, rows: Sequence[dict[str, str]], part: str, most: int) -> Paradigm:
    chosen = rows[:TUNING_PAIRS] if part == TUNING else rows[TUNING_PAIRS:]
    if not chosen:
        other = f"its {len(rows)} pairs are all of part={TUNING}, the first {TUNING_PAIRS}"
        raise UserError(f"{name}: {other}; set part={TUNING}, or give more pairs")
    pairs = tuple((row["sentence_good"], row["sentence_bad"]) for row in chosen[: most or None])
    # One field is spelt in two ways in BLiMP: syntax/semantics and syntax_semantics.
    return Paradigm(name, rows[0]["linguistics_term"], rows[0]["field"].replace("/", "_"), pairs)


def mask_each(tokenizer: Tokenizer, texts: Sequence[str], mask_id: int) -> tuple[MaskedCopies, np.ndarray]:
    """The copies of all different sequences of tokens that `texts` are, and which of them each text is, (len(texts),) int64.

    Texts that are one sequence, as where they differ in case and the vocabulary has none, so get the very same number.

    Raises:
        UserError: a text that has no token.
    """
    tokenizer.no_truncation()
    numbers: dict[tuple[int, ...], int] = {}
    which = []
    ids, types, labels, places, owners = [], [], [], [], []
    for text, encoding in zip(texts, tokenizer.encode_batch(list(texts)), strict=True):
        sequence = tuple(encoding.ids)
        seen = sequence in numbers
        which.append(numbers.setdefault(sequence, len(numbers)))
        if seen:
            continue
        masked = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        if not len(masked):
            raise UserError(f"`{text}`: no token in it; remove the pair")
        copies = np.tile(np.array(sequence, dtype=np.int32), (len(masked), 1))
        labels.append(copies[0, masked])
        copies[np.arange(len(masked)), masked] = mask_id
        ids.append(copies)
        types.append(np.tile(np.array(encoding.type_ids, dtype=np.int8), len(masked)))
        places.append(masked)
        owners += [which[-1]] * len(masked)
    lengths = np.concatenate([np.full(*copies.shape) for copies in ids])
    examples = EncodedExamples(
        ids=np.concatenate([copies.ravel() for copies in ids]),
        types=np.concatenate(types),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.concatenate(labels).astype(np.int64),
        truncated=0,
    )
    return MaskedCopies(examples, np.concatenate(places), np.array(owners)), np.array(which)
