"""MDS shards of token ids, and `dataset.json`, the contract between preparation and training.

    OUT/dataset.json                     DatasetInfo
    OUT/tokenizer/                       a transformers tokenizer folder
    OUT/train/index.json                 merged from the parts below
    OUT/train/lengths.npy                (documents,) uint16, tokens of each record: packing needs no other file
    OUT/train/part-00000/shard.*.mds.zstd
    OUT/validation/...

A record is one document, or a window of a long one: column `tokens`, a one-dimensional array without [CLS] and [SEP], of uint16
or, where the vocabulary has more than 65,536 ids, of uint32: `dataset.json` says which.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np

from recipe.errors import UserError
from recipe.system.files import digest, read_json
from recipe.system.private import private

FORMAT = 2  # of dataset.json; 1: every vocabulary is a vocab.txt and every id uint16
DTYPE, DTYPES = "uint16", ("uint16", "uint32")  # of ids: where nothing else is said, and all
LENGTHS = "lengths.npy"
VOCABULARIES = ("vocab.txt", "tokenizer.json")  # what may be the vocabulary's file, the second where there is no first
HASH = "xxh64"  # of every shard, checked when it is opened
_QUANTILES = (5, 25, 50, 75, 95, 99)


@dataclass
class Vocabulary:
    """`size` is the number of ids in use; a model may pad its embedding beyond it. Special tokens stand by their role: what
    begins a text is `cls`, as [CLS] or <s>, what ends it `sep`."""

    size: int
    lowercase: bool
    sha256: str  # of tokenizer/`file`
    pad_id: int
    unk_id: int | None  # None where there is none, as in a byte-level vocabulary
    cls_id: int
    sep_id: int
    mask_id: int
    file: str = "vocab.txt"  # tokenizer.json of a tokenizer that has none
    other_special_ids: list[int] = dataclasses.field(default_factory=list)

    @property
    def special_ids(self) -> list[int]:
        """What is neither masked nor drawn as a replacement."""
        named = (self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id)
        return [number for number in named if number is not None] + self.other_special_ids

    @property
    def dtype(self) -> str:
        """The smallest type that holds every id."""
        return DTYPES[self.size > 2**16]


@dataclass
class SplitInfo:
    """One split as it is stored; a window of a long document counts as a document, lengths are those of records."""

    documents: int
    tokens: int
    truncated: float  # share of all tokens that the cut at `max_tokens` lost
    unknown: float  # share of stored tokens that are [UNK]
    lengths: dict[str, float]  # min, p5, p25, p50, p75, p95, p99, max, mean


@dataclass
class SourceInfo:
    """Where text came from, and what of it was no document."""

    origin: dict[str, Any]
    rejected: dict[str, int]  # kind -> records
    rejected_examples: dict[str, list[str]]  # kind -> the first few, as file:line


@dataclass
class DatasetInfo:
    """What `dataset.json` holds."""

    vocabulary: Vocabulary
    max_tokens: int
    splits: dict[str, SplitInfo]
    sources: dict[str, SourceInfo]  # by the key of the YAML file: train, validation
    config: dict[str, Any]  # the PrepareConfig
    packages: dict[str, str]  # versions
    dtype: str = DTYPE
    format: int = FORMAT

    def split(self, name: str) -> SplitInfo:
        """A split's numbers; a `UserError` that names the splits there are, if it is not one of them."""
        if name not in self.splits:
            raise UserError(f"there is no split `{name}`; this dataset has {', '.join(self.splits)}")
        return self.splits[name]


class Lengths:
    """Counts of one split: exact, mergeable, and of constant size."""

    def __init__(self, max_tokens: int) -> None:
        self.histogram = np.zeros(max_tokens + 1, np.int64)  # documents by stored length
        self.read_tokens = 0  # before the cut
        self.unknown_tokens = 0

    def merge(self, other: Lengths) -> None:
        self.histogram += other.histogram
        self.read_tokens += other.read_tokens
        self.unknown_tokens += other.unknown_tokens

    def info(self) -> SplitInfo:
        documents = int(self.histogram.sum())
        tokens = int(self.histogram @ np.arange(len(self.histogram)))
        if documents == 0:
            return SplitInfo(0, 0, 0.0, 0.0, {})
        used = np.flatnonzero(self.histogram)
        reached = np.cumsum(self.histogram)
        # the shortest length that at least this share of the documents does not exceed
        quantiles = {f"p{q}": int(np.searchsorted(reached, documents * q / 100)) for q in _QUANTILES}
        lengths = {"min": int(used[0]), **quantiles, "max": int(used[-1]), "mean": round(tokens / documents, 2)}
        truncated = 1 - tokens / self.read_tokens
        return SplitInfo(documents, tokens, truncated, self.unknown_tokens / tokens, lengths)


class ShardWriter:
    """Writes the documents of one part of one split into a folder of its own; `finish` completes it.

    A document of more than `max_tokens` is cut, or with `windows` becomes several records.
    """

    def __init__(
        self,
        folder: Path,
        max_tokens: int,
        unk_id: int | None,
        shard_mib: int,
        windows: bool = False,
        dtype: str = DTYPE,
    ) -> None:
        from streaming import MDSWriter  # takes seconds, so only who writes pays for it

        self.lengths = Lengths(max_tokens)
        self.of_records = array("H")  # lengths, in order
        self._max_tokens = max_tokens
        self._windows = windows
        self._unk_id = unk_id
        self._dtype = dtype
        self._writer = MDSWriter(
            out=str(folder),
            columns={"tokens": f"ndarray:{dtype}"},
            compression="zstd",
            hashes=[HASH],
            size_limit=shard_mib * 2**20,
        )

    def write(self, ids: list[int]) -> None:
        for start in range(0, len(ids) if self._windows else 1, self._max_tokens):
            tokens = np.array(ids[start : start + self._max_tokens], self._dtype)
            self._writer.write({"tokens": tokens})
            self.of_records.append(len(tokens))
            self.lengths.histogram[len(tokens)] += 1
            if self._unk_id is not None:
                self.lengths.unknown_tokens += int((tokens == self._unk_id).sum())
        self.lengths.read_tokens += len(ids)

    def finish(self) -> None:
        self._writer.finish()


def part_name(split: str, index: int) -> str:
    """The folder that the shards of one part lie in, below `out`."""
    return f"{split}/part-{index:05d}"


def part_folder(out: Path, split: str, index: int) -> Path:
    """Its place."""
    return out / part_name(split, index)


def merge_parts(out: Path, split: str, count: int) -> None:
    """Write the index of a split from those of its parts."""
    from streaming.base.util import merge_index

    indexes = [str(part_folder(out, split, i).resolve() / "index.json") for i in range(count)]
    logging.disable(logging.WARNING)  # it warns of its own temporary folder
    (out / split / "index.json").unlink(missing_ok=True)  # of a run that was stopped right after it; it would refuse
    try:
        merge_index(indexes, str((out / split).resolve()))
    finally:
        logging.disable(logging.NOTSET)


def write_info(info: DatasetInfo, out: Path) -> None:
    (out / "dataset.json").write_text(
        json.dumps(private(dataclasses.asdict(info)), indent=2, ensure_ascii=False) + "\n", "utf-8"
    )


def index_digest(folder: Path, splits: Sequence[str]) -> str | None:
    """SHA-256 of the splits' indices, which hold the digests of their shards; None where they are not here yet."""
    files = [folder / split / "index.json" for split in splits]
    return digest(files) if all(file.is_file() for file in files) else None


def read_info(path: str | Path) -> DatasetInfo:
    """What the dataset in this folder is; needs neither streaming nor transformers.

    Raises:
        UserError: no such folder, no dataset.json in it, or not one of this format.
    """
    file = Path(path) / "dataset.json"
    if not file.is_file():
        what = "holds no dataset.json" if Path(path).is_dir() else "does not exist"
        raise UserError(f"{path}: {what}; python -m recipe.prepare YAML writes a dataset there")
    try:
        raw = private(read_json(file))
        if raw["format"] not in range(FORMAT + 1):
            raise UserError(
                f"{file}: format {raw['format']}, written by a newer version; this one reads {FORMAT}: update it, or prepare the "
                "text again"
            )
        if raw.get("dtype", DTYPE) not in DTYPES:
            raise ValueError(f"dtype {raw['dtype']}")
        raw["vocabulary"] = _made(Vocabulary, raw["vocabulary"])
        if raw["vocabulary"].file not in VOCABULARIES:
            raise ValueError(f"vocabulary file {raw['vocabulary'].file}")
        raw["splits"] = {name: _made(SplitInfo, split) for name, split in raw["splits"].items()}
        raw["sources"] = {name: _made(SourceInfo, source) for name, source in raw["sources"].items()}
        return _made(DatasetInfo, raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not written by recipe.prepare, or damaged ({error}); prepare it again") from None


_Kind = TypeVar("_Kind")


def _made(kind: type[_Kind], values: dict[str, Any]) -> _Kind:
    """A dataclass of what JSON has; a `ValueError` for a value that is not of its field's type."""
    found = kind(**values)
    for name, hint in get_type_hints(kind).items():
        if not _fits(getattr(found, name), hint):
            raise ValueError(f"`{name}` is {getattr(found, name)!r}")
    return found


def _fits(value: Any, hint: Any) -> bool:
    of = get_args(hint)
    if get_origin(hint) is dict:
        return isinstance(value, dict) and all(_fits(one, of[1]) for one in value.values())
    if get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(one, of[0]) for one in value)
    if of:  # one of several types
        return any(_fits(value, one) for one in of)
    if hint is Any or isinstance(value, bool):
        return hint in (Any, bool)
    return isinstance(value, (int, float) if hint is float else hint)
