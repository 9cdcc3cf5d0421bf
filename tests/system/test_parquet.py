"""Parquet is read as pyarrow reads it, in whatever way it is stored; a file that would fill the memory is one line."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from recipe.config import Source
from recipe.config.finetune import Files
from recipe.corpus import sources
from recipe.finetune.files import read_rows
from recipe.system import expansion, parquet
from tests.mistakes import refused

MIB = 1 << 20


def read(file: Path, *columns: str) -> list[dict]:
    return [row for table in parquet.tables(file, columns) for row in table.to_pylist()]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 700, "data_page_size": 4096},
        {"compression": "gzip", "dictionary_pagesize_limit": 2000},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY", "n": "DELTA_BINARY_PACKED"}},
        {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}, "write_page_index": True},
    ],
)
def test_what_is_read_is_what_was_written(tmp_path, how):
    file, draw = tmp_path / "a.parquet", np.random.default_rng(0)
    words = [f"word {i}" for i in range(1500)]
    rows = [
        {"text": None if i % 7 == 0 else f"{words[i % 1500]} {words[i * 7 % 1500]}", "n": i, "kind": words[i % 3],
         "ids": list(range(i % 4)), "words": list(draw.choice(words, i % 5)) if i % 11 else None,
         "pair": {"a": words[i % 9], "b": i / 2}}
        for i in range(3000)
    ]  # fmt: skip
    table = pyarrow.Table.from_pylist(rows)
    table = table.set_column(2, "kind", table["kind"].dictionary_encode())
    pyarrow.parquet.write_table(table, file, **how)
    for columns in (["text"], ["n", "kind"], ["words"], ["text", "words"], ["words", "pair", "kind", "n", "ids"]):
        assert read(file, *columns) == [{name: row[name] for name in columns} for row in rows]
    assert max(table.num_rows for table in parquet.tables(file, ["words"])) <= parquet.ROWS


def repeated(file: Path) -> int:
    """A megabyte, a million times; returns the bytes that it stands for."""
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(1_000_000, np.int32)), ["a" * MIB])
    return written(file, column)


def repeated_in_a_row(file: Path) -> int:
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(100_000, np.int32)), ["a" * MIB])
    return written(file, pyarrow.ListArray.from_arrays([0, 100_000], values))


def a_long_page(file: Path) -> int:
    return written(file, pyarrow.array(["a" * (72 * MIB)]), use_dictionary=False)


def alike(file: Path) -> int:
    """Each begins as the one before."""
    values = pyarrow.array(["a" * (128 << 10)] * 1200)
    return written(file, values, use_dictionary=False, column_encoding="DELTA_BYTE_ARRAY")


def written(file: Path, column: pyarrow.Array, **how) -> int:
    table = pyarrow.table({"text": column})
    pyarrow.parquet.write_table(
        table, file, compression="zstd", dictionary_pagesize_limit=1 << 30, store_schema=False, **how
    )
    return parquet._bytes(column)


def as_text(file: Path) -> None:
    source = Source(files=[str(file)])
    for _ in sources.documents(sources.parts(source)[0], sources.Rejected()):
        pass


def as_rows(file: Path) -> None:
    for _ in read_rows(file, Files(), ["text"]):
        pass


def grown(call: Callable[[], str]) -> tuple[str, int]:
    """What it returns in a process of its own, and by how many bytes that process grew at most."""
    ours, theirs = multiprocessing.Pipe()

    def tell() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        said = call()
        theirs.send((said, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10))

    process = multiprocessing.get_context("fork").Process(target=tell)
    process.start()
    theirs.close()
    found = ours.recv()
    process.join(60)
    return found


@pytest.mark.parametrize("reader", [as_text, as_rows])
@pytest.mark.parametrize("bomb", [repeated, repeated_in_a_row, a_long_page, alike])
def test_a_file_that_expands_without_bound_is_a_line_and_takes_no_memory(tmp_path, bomb, reader):
    file = tmp_path / "bomb.parquet"
    become, packed = bomb(file), file.stat().st_size
    assert packed < 100_000 and become > expansion.most(packed)
    said, bytes_more = grown(partial(refused, reader, file))
    assert said == (
        f"{file}: unpacks to more than 250 times its size, which no text does; write it as .jsonl, if it is one"
    )
    assert bytes_more < 2 * expansion.FREE_EXPANSION, bytes_more >> 20


def test_a_column_of_maps_is_a_line(tmp_path):
    pairs = pyarrow.map_(pyarrow.string(), pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([[("a", "b")]], pairs)}), tmp_path / "x.parquet")
    with pytest.raises(pyarrow.ArrowException, match=r"columns of map<.*> are not read"):
        list(parquet.tables(tmp_path / "x.parquet", ["text"]))
