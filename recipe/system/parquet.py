"""Parquet, of which no file takes more memory than its size allows.

A column has a repeated value once, so 2 KB may stand for a million copies of a megabyte. What comes of a file is counted before
it is unpacked, from the headers of its pages: they are what the reader follows, whatever the footer says. They are structs in
Thrift's compact protocol (https://github.com/apache/parquet-format, its `parquet.thrift` has the numbers of their fields).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from recipe.errors import UserError
from recipe.system import expansion

ROWS = 1024  # that are read at a time, or fewer
SHARED = 1 << 23  # bytes, at most, that a batch takes of what the file has only once; or a single row
LONGEST_FIELD = 1 << 24  # bytes of one in a header, as with Arrow
_WIDTHS = {
    "BOOLEAN": 1,
    "INT32": 4,
    "FLOAT": 4,
    "INT64": 8,
    "DOUBLE": 8,
    "INT96": 12,
    "BYTE_ARRAY": 4,
}  # of a value, or its place
_DICTIONARY = 2  # type of a page
_DELTA_BYTE_ARRAY = 7  # encoding, in which a value may begin as the one before does
_KEPT = (0, 2, 8)  # encodings (plain, and a dictionary's two) of which Arrow makes an array with a dictionary


class Expands(UserError):
    """A file that becomes far more than it is."""

    def __init__(self, file: Path) -> None:
        super().__init__(
            f"{file}: unpacks to more than {expansion.MOST_EXPANSION} times its size, which no text does; write it as .jsonl, if "
            "it is one"
        )


@dataclass(frozen=True)
class _Leaf:
    """A column as it is stored; one of lists or structs is stored as several."""

    path: str
    nested: bool  # its rows may have any number of values
    kept: bool  # as an array with a dictionary, if that is asked for
    unpacked: int  # bytes of its pages, and what its values take beside them
    longest: int  # bytes of a value that is there once for many; 0 if there is none


@dataclass(frozen=True)
class _Page:
    dictionary: bool
    unpacked: int  # bytes
    values: int
    encoding: int | None  # of values


def tables(file: Path, columns: Sequence[str]) -> Iterator[pyarrow.Table]:
    """All rows of these columns, ROWS or fewer at a time; strings may be arrays with a dictionary.

    Raises:
        Expands: before anything of it is unpacked, or before the rows with which it becomes too much.
        pyarrow.ArrowException, OSError: it is damaged.
    """
    most, metadata = expansion.most(file.stat().st_size), pyarrow.parquet.read_metadata(file)
    with file.open("rb") as stream:
        leaves = list(_leaves(stream, metadata, columns))
    if sum(leaf.unpacked for leaf in leaves) > most:
        raise Expands(file)
    unpacked, nested = 0, [leaf for leaf in leaves if leaf.nested]
    lists = [name for name in columns if any(_below(leaf.path, name) for leaf in nested)]
    others = [name for name in columns if name not in lists]
    rows = max(1, min(ROWS, SHARED // max(1, sum(leaf.longest for leaf in leaves if not leaf.nested))))
    dictionaries = [leaf.path for leaf in nested if leaf.kept]
    with pyarrow.parquet.ParquetFile(file, read_dictionary=dictionaries, pre_buffer=False) as table:
        for group in range(metadata.num_row_groups):
            # How many values a row of lists has stands nowhere. So they are read with their dictionaries and counted, and written
            # out where they are used.
            of_lists, start = table.read_row_group(group, columns=lists) if lists else None, 0
            unpacked += _bytes(of_lists) if lists else 0
            if unpacked > most:
                raise Expands(file)
            if lists and not others:
                yield from (of_lists.slice(first, ROWS) for first in range(0, of_lists.num_rows, ROWS))
            for batch in table.iter_batches(rows, row_groups=[group], columns=others) if others else ():
                found = pyarrow.Table.from_batches([batch])
                unpacked += _bytes(found)
                if unpacked > most:
                    raise Expands(file)
                for name in lists:
                    found = found.append_column(name, of_lists[name].slice(start, len(found)))
                start += len(found)
                yield found


def _below(path: str, name: str) -> bool:
    return f"{path}.".startswith(f"{name}.")


def _bytes(array: pyarrow.Table | pyarrow.ChunkedArray | pyarrow.Array) -> int:
    """What it takes, each value written out.

    Raises:
        pyarrow.ArrowTypeError: a type that is not known here.
    """
    if isinstance(array, pyarrow.Table):
        return sum(map(_bytes, array.columns))
    if isinstance(array, pyarrow.ChunkedArray):
        return sum(map(_bytes, array.chunks))
    kind = array.type
    if pyarrow.types.is_dictionary(kind):
        if pyarrow.types.is_primitive(kind.value_type):
            return 8 * len(array)
        lengths = pyarrow.compute.binary_length(array.dictionary).cast(pyarrow.int64())
        return (pyarrow.compute.sum(lengths.take(array.indices)).as_py() or 0) + array.indices.nbytes
    if pyarrow.types.is_struct(kind):
        return sum(map(_bytes, array.flatten()))
    lists = (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray)
    if isinstance(array, lists) and not pyarrow.types.is_map(kind):  # whose arrays are lists to Python
        return _bytes(array.flatten()) + 8 * len(array)
    if pyarrow.types.is_nested(kind):
        raise pyarrow.ArrowTypeError(f"columns of {kind} are not read")
    return array.nbytes


def _leaves(stream: IO[bytes], metadata: pyarrow.parquet.FileMetaData, columns: Sequence[str]) -> Iterator[_Leaf]:
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        if not any(_below(column.path, name) for name in columns):
            continue
        groups = range(metadata.num_row_groups)
        chunks = [list(_pages(stream, metadata.row_group(group).column(number))) for group in groups]
        pages, strings = [page for chunk in chunks for page in chunk], column.physical_type == "BYTE_ARRAY"
        longest = [page.unpacked for page in pages if page.dictionary]
        for chunk in chunks:
            if any(page.encoding == _DELTA_BYTE_ARRAY for page in chunk):
                longest.append(sum(page.unpacked for page in chunk))
        width = _WIDTHS.get(column.physical_type, column.length)
        nested, largest = column.max_repetition_level > 0, max(longest, default=0) if strings else 0
        kept = strings and all(page.dictionary or page.encoding in _KEPT for page in pages)
        if nested and not kept:
            width = max(width, largest)  # as if each were the longest, as they are not counted before they are in rows
        yield _Leaf(column.path, nested, kept, sum(page.unpacked + page.values * width for page in pages), largest)


def _pages(stream: IO[bytes], chunk: pyarrow.parquet.ColumnChunkMetaData) -> Iterator[_Page]:
    """Of a chunk, a column's part in a group of rows.

    Raises:
        pyarrow.ArrowInvalid: what is there is no page.
    """
    place, first = chunk.data_page_offset, chunk.dictionary_page_offset
    place = first if first and 0 < first < place else place
    end = place + chunk.total_compressed_size
    while 0 <= place < end:
        stream.seek(place)
        try:
            # 1: type; 2 and 3: bytes, unpacked and packed; 5 and 8: of a page of data, in its two versions
            header = _Thrift(stream).struct()
            data, data_2 = header.get(5, {}), header.get(8, {})
            packed, unpacked, values = header[3], header[2], data.get(1, 0) + data_2.get(1, 0)
            if min(packed, unpacked, values) < 0:
                raise ValueError
            place = stream.tell() + packed
            page = _Page(header[1] == _DICTIONARY, unpacked, values, data.get(2, data_2.get(4)))
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
            raise pyarrow.ArrowInvalid(f"no page at byte {place}") from None
        yield page


class _Thrift:
    """What Thrift's compact protocol says, at a place in a file; values of which nothing is needed are None."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def struct(self) -> dict[int, Any]:
        """Values by the numbers of their fields."""
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            kind = head & 15
            found[number] = None if kind in (1, 2) else self._value(kind)  # true or false is in the type
        return found

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return self._skip(8)
        if kind == 8:
            return self._skip(self._varint())
        if kind == 12:
            return self.struct()
        if kind not in (9, 10):
            raise ValueError
        head = self._byte()
        for _ in range(head >> 4 if head >> 4 < 15 else self._varint()):
            self._value(head & 15)
        return None

    def _byte(self) -> int:
        return self._stream.read(1)[0]

    def _varint(self) -> int:
        total = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            total |= (byte & 127) << shift
            if byte < 128:
                return total
        raise ValueError

    def _integer(self) -> int:
        found = self._varint()
        return found >> 1 ^ -(found & 1)

    def _skip(self, size: int) -> None:
        if size > LONGEST_FIELD:
            raise ValueError
        self._stream.seek(size, 1)
