"""Documents from files, from a hub dataset or from the embedded corpus, one `Part` for what one process reads.

A `.txt` file holds documents separated by blank lines; `.jsonl` one JSON object a line; `.json` the same, or one list
of objects; `.csv` has a header line. All of these also as `.gz` and `.zst`; `.parquet` as is. A bad record is counted
and reported with its file and line; a file that is damaged as a whole, such as one cut off, is a `UserError`.
"""

from __future__ import annotations

import csv
import dataclasses
import glob
import hashlib
import io
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from recipe.config import Source
from recipe.corpus import docstrings, hub
from recipe.errors import UserError, one_line
from recipe.system import expansion, parquet

_COMPRESSION = {".gz": "gzip", ".zst": "zstd"}
_FORMATS = (".txt", ".jsonl", ".json", ".csv", ".parquet")
_EMBEDDED_PARTS = 8  # constant, so that shards do not depend on the number of processes
LONGEST = 1 << 26  # characters of a line, a cell or a document
_EXAMPLES = 5  # rejected records kept of each kind

# why a record was rejected
EMPTY, NOT_UTF8, MALFORMED, MISSING, NOT_TEXT = (
    "empty", "not UTF-8", "malformed JSON", "missing field", "not a string",
)  # fmt: skip


@dataclass
class Rejected:
    """Records that are no documents: how many of each kind, and where the first few are."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)  # kind -> "file:line"

    def add(self, kind: str, where: str) -> None:
        self.counts[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < _EXAMPLES:
            kept.append(where)

    def merge(self, other: Rejected) -> None:
        self.counts.update(other.counts)
        for kind, places in other.examples.items():
            self.examples[kind] = (self.examples.get(kind, []) + places)[:_EXAMPLES]


class Unreadable(UserError):
    """One file is damaged; the others may well be read."""


class Position:
    """How far the reading of a part has come: `share()` is 0 to 1, and stays 0 where nobody can know."""

    def __init__(self) -> None:
        self.share: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True)
class Part:
    """What one process reads from start to end: a file, a shard of a hub dataset, or a slice of the embedded corpus."""

    name: str
    source: Source
    shard: tuple[int, int] = (0, 1)  # of a hub dataset: index, number of shards
    texts: tuple[str, ...] = ()  # of the embedded corpus
    limit: int | None = None  # documents


# A reader's record: where it stands (line, row or record number), and its text or the reason there is none.
Record = tuple[int, Any, str | None]


def check(source: Source, where: str) -> None:
    """Raise a `UserError` for a source that cannot be read: before anything is written. Touches headers only.

    `where` is the key in the YAML file, such as `train`.
    """
    given = [key for key in ("files", "dataset", "embedded") if getattr(source, key)]
    if len(given) != 1:
        found = f"has {' and '.join(given)}" if given else "has none"
        raise UserError(f"`{where}` {found}: give exactly one of {where}.files, {where}.dataset, {where}.embedded")
    if source.embedded:
        docstrings.versions()
    elif source.dataset:
        hub.check(source)
    else:
        for path in files(source):
            _check_file(path, source.text_key)


def files(source: Source) -> list[Path]:
    """The files that the globs match, sorted, each once.

    Raises:
        UserError: for a glob without a match, or a suffix that is not read here.
    """
    found: set[str] = set()
    for pattern in source.files:
        matches = [path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()]
        if not matches:
            hint = f"; it is a folder, say {pattern}/*" if Path(pattern).is_dir() else ""
            raise UserError(f"files: `{pattern}` matches no file{hint} (relative to {Path.cwd()})")
        found.update(matches)
    paths = [Path(name) for name in sorted(found)]
    for path in paths:
        suffix, compression = _format(path)
        if suffix not in _FORMATS or (compression and suffix == ".parquet"):
            raise UserError(
                f"{path}: unknown suffix; known are {' '.join(_FORMATS)}, all but .parquet also .gz and .zst"
            )
    return paths


def describe(source: Source) -> dict[str, Any]:
    """Where the text comes from, for the record; equal descriptions mean equal text."""
    if source.embedded:
        return {"embedded": source.embedded, "packages": docstrings.versions()}
    if source.dataset:
        return {"dataset": source.dataset, "subset": source.subset, "split": source.split}
    return {"files": [{"path": str(path), "bytes": path.stat().st_size} for path in files(source)]}


def parts(source: Source, processes: int = 1) -> list[Part]:
    """The parts of a source, in an order that does not depend on `processes`."""
    if source.embedded:
        texts = [entry.text for entry in embedded_entries(source, processes)]
        # every n-th entry, so that each part holds some of every package
        slices = [tuple(texts[i::_EMBEDDED_PARTS]) for i in range(min(_EMBEDDED_PARTS, len(texts)))]
        return [Part(f"{source.embedded} {i}", source, texts=texts) for i, texts in enumerate(slices)]
    if source.dataset:
        count = hub.open_dataset(source).num_shards
        found = [Part(f"{source.dataset} {i}", source, shard=(i, count)) for i in range(count)]
    else:
        found = [Part(str(path), source) for path in files(source)]
    return found if source.max_documents is None else _first(found, source.max_documents)


def embedded_entries(source: Source, processes: int = 1) -> tuple[docstrings.Entry, ...]:
    """The entries of the embedded corpus that this source stands for."""
    return docstrings.collect(processes)[: source.max_documents]


def held_out(text: str, fraction: float, seed: int) -> bool:
    """Whether a document belongs to the validation split: decided by its text alone, so that a copy never leaks."""
    return text_hash(text, seed) < fraction * 2**64


def text_hash(text: str, seed: int = 0) -> int:
    """64 bits of a text."""
    key = hashlib.blake2b(text.encode(), digest_size=8, salt=seed.to_bytes(8, "little", signed=True)).digest()
    return int.from_bytes(key, "little")


def documents(part: Part, rejected: Rejected, position: Position | None = None) -> Iterator[str]:
    """The documents of a part; what is none is added to `rejected`.

    Raises:
        Unreadable: while reading, for a file that is damaged as a whole.
    """
    records = _records(part, position or Position())
    good = (text for line, value, problem in records if (text := _judge(part, line, value, problem, rejected)))
    return itertools.islice(good, part.limit)


def weight(part: Part) -> int:
    """What share of the work a part is: the bytes of its file, or the same as every other."""
    return size(part) or 1


def size(part: Part) -> int | None:
    """Bytes of the part's file, None for what is no file."""
    if not part.source.files:
        return None
    try:
        return Path(part.name).stat().st_size
    except OSError as error:
        raise Unreadable(f"{part.name}: cannot be read: {error.strerror}; bring it back, or prepare anew") from None


def _judge(part: Part, line: int, value: Any, problem: str | None, rejected: Rejected) -> str | None:
    if problem is None and not isinstance(value, str):
        problem = NOT_TEXT
    if problem is None and not value.strip():
        problem = EMPTY
    if problem is None and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # undecodable bytes arrive here as lone surrogates
            problem = NOT_UTF8
    if problem is None:
        return value
    rejected.add(problem, f"{part.name}:{line}")
    return None


def _first(all_parts: Sequence[Part], count: int) -> list[Part]:
    """The leading parts, limited so that they hold `count` documents together. Reads them once to count."""
    kept = []
    for part in all_parts:
        kept.append(dataclasses.replace(part, limit=count))
        count -= sum(1 for _ in documents(kept[-1], Rejected()))
        if count == 0:
            break
    return kept


def _records(part: Part, position: Position) -> Iterator[Record]:
    key = part.source.text_key
    if part.source.embedded:
        for number, text in enumerate(part.texts, 1):
            position.share = lambda number=number: number / len(part.texts)
            yield number, text, None
    elif part.source.dataset:
        yield from _dataset_rows(part)
    else:
        path = Path(part.name)
        suffix, _ = _format(path)
        empty = True
        try:
            for record in _READERS[suffix](path, key, position):
                empty = False
                yield record
        except (OSError, EOFError, pyarrow.ArrowException, csv.Error) as error:
            raise Unreadable(f"{path}: cannot be read to its end: {one_line(error)}; repair or remove it") from None
        except parquet.Expands as error:
            raise Unreadable(str(error)) from None
        if empty:
            yield 1, "", EMPTY


def _format(path: Path) -> tuple[str, str | None]:
    """The suffix that says the format, and the compression, of `name.json.gz` for example."""
    compression = _COMPRESSION.get(path.suffix)
    return (path.with_suffix("") if compression else path).suffix, compression


def _open(path: Path, position: Position, newline: str | None = None) -> io.TextIOWrapper:
    """Text of a plain or compressed file. Bytes that are not UTF-8 become lone surrogates, which `_judge` finds."""
    # pyarrow notices a compressed file that was cut off, which zstandard's reader does not
    stream = file = pyarrow.OSFile(str(path))
    if compression := _format(path)[1]:
        stream = io.BufferedReader(_Unpacked(path, file, compression), 1 << 16)
    bytes_in_all = max(file.size(), 1)
    position.share = lambda: 1.0 if file.closed else file.tell() / bytes_in_all
    return io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=newline)


class _Unpacked(io.RawIOBase):
    """A compressed file's bytes, as long as they are not far more than a text's would be."""

    def __init__(self, path: Path, file: pyarrow.NativeFile, compression: str) -> None:
        self._path, self._file, self._bytes = path, file, 0
        self._stream = pyarrow.CompressedInputStream(file, compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        self._bytes += len(piece)
        if self._bytes > expansion.most(self._file.tell()):
            raise Unreadable(
                f"{self._path}: unpacks to more than {expansion.MOST_EXPANSION} times its size, which no text does; unpack it "
                "yourself, if it is one"
            )
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
            self._file.close()
        super().close()


def _lines(path: Path, stream: io.TextIOBase) -> Iterator[str]:
    """Its lines, of which none may fill the memory."""
    while line := stream.readline(LONGEST):
        if len(line) == LONGEST:
            raise Unreadable(f"{path}: a line of more than {LONGEST:,} characters; divide it, or remove the file")
        yield line


def _read_txt(path: Path, key: str, position: Position) -> Iterator[Record]:
    start, block, characters = 1, [], 0
    with _open(path, position) as stream:
        for number, line in enumerate(_lines(path, stream), 1):
            if line.strip():
                start = start if block else number
                block.append(line)
                characters += len(line)
                if characters >= LONGEST:
                    raise Unreadable(f"{path}:{start}: no blank line for {LONGEST:,} characters; divide the documents")
            elif block:
                yield start, "".join(block).rstrip("\n"), None
                block, characters = [], 0
    if block:
        yield start, "".join(block).rstrip("\n"), None


def _read_jsonl(path: Path, key: str, position: Position) -> Iterator[Record]:
    with _open(path, position) as stream:
        yield from _json_lines(_lines(path, stream), key)


def _read_json(path: Path, key: str, position: Position) -> Iterator[Record]:
    with _open(path, position) as stream:
        head, lines = [], _lines(path, stream)
        for line in lines:
            head.append(line)
            if line.strip():
                break
        if not head or not head[-1].lstrip().startswith("["):
            yield from _json_lines(itertools.chain(head, lines), key)
            return
        try:
            values = json.loads("".join(head) + stream.read())
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", 1)
            raise Unreadable(f"{path}:{line}: malformed JSON list: {one_line(error)}; repair or remove it") from None
        yield from ((number, *_field(value, key)) for number, value in enumerate(values, 1))


def _json_lines(lines: Iterable[str], key: str) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            yield number, "", EMPTY
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            yield number, None, MALFORMED
            continue
        yield number, *_field(value, key)


def _field(value: Any, key: str) -> tuple[Any, str | None]:
    if not isinstance(value, dict):
        return None, MALFORMED  # JSON, but not an object
    if value.get(key) is None:
        return None, MISSING
    return value[key], None


def _read_csv(path: Path, key: str, position: Position) -> Iterator[Record]:
    csv.field_size_limit(LONGEST)  # the default, 128 KiB, is less than a long document
    with _open(path, position, newline="") as stream:
        rows = csv.DictReader(
            _lines(path, stream), strict=True
        )  # strict: an open quote would swallow the rows after it
        rows.fieldnames  # noqa: B018 - reads the header line
        line = rows.line_num + 1
        for row in rows:
            value = row.get(key)
            yield line, value, MISSING if value is None else None
            line = rows.line_num + 1


def _read_parquet(path: Path, key: str, position: Position) -> Iterator[Record]:
    row, rows = 0, max(pyarrow.parquet.read_metadata(path).num_rows, 1)
    position.share = lambda: row / rows
    for table in parquet.tables(path, [key]):
        # as bytes, because one value that is not UTF-8 would fail the whole column
        for value in table.column(0).cast(pyarrow.large_binary()):
            row += 1
            raw = value.as_py()
            if raw is None:
                yield row, None, MISSING
                continue
            if len(raw) >= LONGEST:
                raise Unreadable(f"{path}:{row}: a text of more than {LONGEST:,} bytes; divide it, or remove the file")
            yield row, raw.decode(errors="surrogateescape"), None


_READERS = {
    ".txt": _read_txt, ".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv, ".parquet": _read_parquet,
}  # fmt: skip


def _check_file(path: Path, key: str) -> None:
    """Open the file, and look for the column where a header names it."""
    suffix, _ = _format(path)
    try:
        if suffix == ".csv":
            with _open(path, Position(), newline="") as stream:
                columns = next(csv.reader(stream), [])
        elif suffix == ".parquet":
            schema = pyarrow.parquet.read_schema(path)
            columns = schema.names
            if key in columns and schema.field(key).type not in (pyarrow.string(), pyarrow.large_string()):
                raise UserError(f"{path}: column `{key}` is {schema.field(key).type}, not text; set text_key")
        else:
            with path.open("rb"):
                return
    except (OSError, pyarrow.ArrowException, csv.Error) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    if columns and key not in columns:
        raise UserError(f"{path}: no column `{key}`; it has {', '.join(columns)}: set text_key")


def _dataset_rows(part: Part) -> Iterator[Record]:
    index, count = part.shard
    for number, row in enumerate(hub.rows(part.source, index, count), 1):
        yield number, *_field(row, part.source.text_key)
