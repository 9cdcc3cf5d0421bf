"""Rows of the user's own files, one at a time: CSV, TSV, JSON lines, Parquet, CoNLL.

A row that cannot be used comes with its place and the reason, so that whoever reads decides: fine-tuning stops there, prediction
keeps the place. A file that cannot be read to its end is a `UserError`.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow
import pyarrow.parquet

from recipe.config.finetune import FORMATS, Files
from recipe.errors import UserError, one_line
from recipe.system import inert, parquet

SUFFIXES = {**{f".{name}": name for name in FORMATS}, ".ndjson": "jsonl", ".bio": "conll"}
LONGEST_CELL = 1 << 24  # characters of one cell: an opening quote without an end would take in the rest of the file
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
PREDICTIONS = ("row", "prediction", "probability", "problem")  # how the header of what recipe.predict wrote begins
_OURS = (("label", "prediction"), ("index", "prediction"))  # headers of a job's own predictions


class Row(NamedTuple):
    line: int  # where it begins; of Parquet its number
    cells: dict[str, Any]  # of the wanted columns: a string, or a list of them
    problem: str | None = None  # why it cannot be used


class Position:
    """How far the reading of a file has come: `share()` is 0 to 1."""

    def __init__(self) -> None:
        self.share: Callable[[], float] = lambda: 0.0


def format_of(file: Path, how: Files) -> str:
    """One of FORMATS.

    Raises:
        UserError: a suffix that says nothing.
    """
    if how.format != "auto":
        return how.format
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{file}: its suffix says no format; set format to one of {', '.join(FORMATS)}")
    return SUFFIXES[file.suffix.lower()]


def read_rows(file: Path, how: Files, wanted: Sequence[str], position: Position | None = None) -> Iterator[Row]:
    """Every row of a file, in order, with the cells of the columns `wanted`.

    Raises:
        UserError: no such file, a column that is not there, a file that is damaged or in another encoding.
    """
    kind = format_of(file, how)
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        yield from (_parquet if kind == "parquet" else _text)(file, kind, how, wanted, position or Position())
    except (OSError, UnicodeError, pyarrow.ArrowException) as error:
        raise UserError(f"{file}: cannot be read: {one_line(error)}") from None


def nearest(name: str, names: Sequence[str]) -> str:
    """Words that lead from a name that is not there to those that are."""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"there are {', '.join(names)}"


def _text(file: Path, kind: str, how: Files, wanted: Sequence[str], position: Position) -> Iterator[Row]:
    with file.open("rb") as stream:
        begin = stream.read(4)
    try:
        name = codecs.lookup(how.encoding).name
    except LookupError:
        raise UserError(f"encoding={how.encoding}: no such encoding; utf-8, cp1252 and utf-16 are some") from None
    if name == "utf-8":
        if begin.startswith(WIDE):
            raise UserError(f"{file}:1: begins as UTF-16 text; set encoding=utf-16")
        name = "utf-8-sig"
    # Bytes that are no UTF-8 become lone surrogates, which are found in the row that they are in.
    errors = "surrogateescape" if name == "utf-8-sig" else "strict"
    try:
        with file.open(encoding=name, errors=errors, newline="") as lines:
            size, raw = max(file.stat().st_size, 1), lines.buffer.raw
            position.share = lambda: 1.0 if raw.closed else raw.tell() / size
            yield from (_checked(row) for row in _READERS[kind](file, lines, how, wanted))
    except UnicodeError as error:
        raise UserError(f"{file}: is not encoded in {how.encoding} ({one_line(error)}); set encoding") from None


def _checked(row: Row) -> Row:
    """A row with its cells looked at: they must be UTF-8 text."""
    if row.problem:
        return row
    for value in row.cells.values():
        for word in value if isinstance(value, list) else [value]:
            if not word.isascii() and not _is_unicode(word):
                return row._replace(problem="not UTF-8 text; set encoding, perhaps to cp1252")
    return row


def _is_unicode(word: str) -> bool:
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _places(file: Path, columns: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where in a header, or in the configured `columns`, the wanted ones stand."""
    for name in wanted:
        if name not in columns:
            raise UserError(f"{file}:1: no column `{name}`; {nearest(name, columns)}")
    return [list(columns).index(name) for name in wanted]


def _csv(file: Path, lines: IO[str], how: Files, wanted: Sequence[str]) -> Iterator[Row]:
    if len(how.delimiter) != 1:
        raise UserError(f"delimiter={how.delimiter}: give one character")
    csv.field_size_limit(LONGEST_CELL)
    rows = csv.reader(lines, strict=True, delimiter=how.delimiter)
    return _table(file, _csv_lines(file, rows), how, wanted)


def _csv_lines(file: Path, rows: Any) -> Iterator[tuple[int, list[str] | None, str | None]]:
    while True:
        line = rows.line_num + 1
        try:
            cells = next(rows, None)
        except csv.Error as error:
            if "limit" in str(error) or "unexpected end" in str(error):
                raise UserError(
                    f"{file}:{line}: a quotation mark opens a cell that nothing closes; repair it"
                ) from None
            yield line, None, f"no CSV: {one_line(error)}"
            continue
        if cells is None:
            return
        if cells:  # an empty line is no row
            yield line, cells, None


def _tsv(file: Path, lines: IO[str], how: Files, wanted: Sequence[str]) -> Iterator[Row]:
    split = ((number, line.rstrip("\r\n").split("\t"), None) for number, line in enumerate(_physical(lines), 1))
    return _table(file, (one for one in split if one[1] != [""]), how, wanted)


def _physical(lines: IO[str]) -> Iterator[str]:
    """Lines that end with a line feed alone: a carriage return inside belongs to the text."""
    before = ""
    for line in lines:
        if line.endswith("\r"):
            before += line
            continue
        yield before + line
        before = ""
    if before:
        yield before


def _table(
    file: Path, lines: Iterator[tuple[int, list[str] | None, str | None]], how: Files, wanted: Sequence[str]
) -> Iterator[Row]:
    columns = how.columns
    if not columns:
        _, columns, problem = next(lines, (1, None, "no header line in it"))
        if columns is None:
            raise UserError(f"{file}:1: {problem}")
        if tuple(columns[: len(PREDICTIONS)]) == PREDICTIONS or tuple(columns) in _OURS:
            lines = ((line, cells and [inert.from_cell(one) for one in cells], why) for line, cells, why in lines)
    if len(columns) == 1 and columns[0] not in wanted and (others := [c for c in ";\t|" if c in columns[0]]):
        raise UserError(f"{file}:1: its cells are divided by {others[0]!r}; set format=csv and that as delimiter")
    places = _places(file, columns, wanted)
    for line, cells, problem in lines:
        if cells is None:
            yield Row(line, {}, problem)
        elif len(cells) != len(columns):
            yield Row(line, {}, f"{len(cells)} cells instead of {len(columns)}")
        else:
            yield Row(line, {name: cells[place] for name, place in zip(wanted, places, strict=True)})


def _jsonl(file: Path, lines: IO[str], how: Files, wanted: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(number, {}, f"no JSON: {one_line(error)}")
            continue
        if isinstance(value, dict):
            yield _of_values(number, value, wanted)
        else:
            yield Row(number, {}, "no JSON object")


def _of_values(line: int, values: dict[str, Any], wanted: Sequence[str]) -> Row:
    """Numbers and truth values become words, as a CSV has them."""
    cells = {}
    for name in wanted:
        if name not in values:
            return Row(line, {}, f"no `{name}` in it; {nearest(name, list(values))}")
        value = values[name]
        items = [_word(one) for one in value] if isinstance(value, list) else _word(value)
        if items is None or (isinstance(items, list) and None in items):
            return Row(line, {}, f"`{name}` is {json.dumps(value, default=str)[:40]}, no text, number or list of them")
        cells[name] = items
    return Row(line, cells)


def _word(value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value) if isinstance(value, (str, int, float)) else None


def _parquet(file: Path, kind: str, how: Files, wanted: Sequence[str], position: Position) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(file) as table:
        _places(file, table.schema_arrow.names, wanted)
        number, rows = 0, max(table.metadata.num_rows, 1)
    position.share = lambda: number / rows
    for table in parquet.tables(file, wanted):
        for values in table.to_pylist():
            number += 1
            yield _of_values(number, values, wanted)


def _conll(file: Path, lines: IO[str], how: Files, wanted: Sequence[str]) -> Iterator[Row]:
    """A sentence per row, each of its cells a list with an item per word. `-DOCSTART-` lines are left out."""
    if not how.columns:
        raise UserError(f"{file}: conll has no header line; name its columns, such as columns=[word,tag]")
    places = _places(file, how.columns, wanted)
    start, words, problem = 1, [], None
    for number, line in enumerate(_with_end(lines), 1):
        cells = line.replace("\t", " ").strip(" \r\n").split(" ")
        cells = [cell for cell in cells if cell]
        if not cells or cells[0] == "-DOCSTART-":
            if words or problem:
                columns = zip(*words, strict=True) if words else [()] * len(wanted)
                yield Row(start, dict(zip(wanted, map(list, columns), strict=True)), problem)
            words, problem = [], None
            continue
        start = start if words or problem else number
        # Whoever wants the words alone may have a file of words alone.
        if len(cells) != len(how.columns) and (len(wanted) > 1 or len(cells) <= places[0]):
            problem = problem or f"line {number} has {len(cells)} cells instead of {len(how.columns)}"
        else:
            words.append([cells[place] for place in places])


def _with_end(lines: IO[str]) -> Iterator[str]:
    """The last sentence ends with the file."""
    yield from lines
    yield ""


_READERS: dict[str, Callable[[Path, IO[str], Files, Sequence[str]], Iterator[Row]]] = {
    "csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "conll": _conll,
}  # fmt: skip
