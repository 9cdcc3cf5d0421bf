"""Rows of the user's own files: every format gives the same, and what is wrong is named with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from recipe.config.finetune import Files
from recipe.errors import UserError
from recipe.finetune.files import LONGEST_CELL, read_rows
from tests.mistakes import refused

ROWS = [("one, two", "a"), ('a "quote"', "b"), ("café", "c")]


def rows(file: Path, wanted=("text", "label"), **how) -> list[tuple]:
    """(line, cells), or (line, problem)."""
    found = read_rows(file, Files(**how), wanted)
    return [(row.line, row.problem or tuple(row.cells.values())) for row in found]


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_every_format_gives_the_same(tmp_path):
    csv = 'label,text\na,"one, two"\nb,"a ""quote"""\nc,café\n'
    tsv = "text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in ROWS)
    jsonl = "".join(json.dumps({"text": text, "label": label, "more": None}) + "\n" for text, label in ROWS)
    parquet = tmp_path / "x.parquet"
    texts, labels = zip(*ROWS, strict=True)
    pyarrow.parquet.write_table(pyarrow.table({"label": list(labels), "text": list(texts)}), parquet)
    for file, first in ((write(tmp_path, "x.csv", csv), 2), (write(tmp_path, "x.tsv", tsv), 2),
                        (write(tmp_path, "x.jsonl", jsonl), 1), (parquet, 1)):  # fmt: skip
        assert rows(file) == [(number, row) for number, row in enumerate(ROWS, first)], file


def test_csv_with_a_byte_order_mark_carriage_returns_and_lines_inside_a_cell(tmp_path):
    content = '\ufefftext,label\r\n"two\r\nlines",a\r\n\r\nlast,b'
    assert rows(write(tmp_path, "x.csv", content)) == [(2, ("two\r\nlines", "a")), (5, ("last", "b"))]


def test_other_encodings_and_delimiters(tmp_path):
    for encoding in ("cp1252", "utf-16"):
        file = write(tmp_path, "x.csv", "text;label\ncafé;a\n".encode(encoding))
        assert rows(file, encoding=encoding, delimiter=";") == [(2, ("café", "a"))]
    assert "set encoding=utf-16" in refused(rows, file)
    found = rows(write(tmp_path, "y.csv", "text,label\nfine,a\ncafé,b\n".encode("cp1252")))
    assert found == [(2, ("fine", "a")), (3, "not UTF-8 text; set encoding, perhaps to cp1252")]
    assert "no such encoding" in refused(rows, file, encoding="utf-99")


def test_a_file_without_a_header_line(tmp_path):
    assert rows(write(tmp_path, "x.csv", "a,one\nb,two\n"), columns=["label", "text"]) == [
        (1, ("one", "a")),
        (2, ("two", "b")),
    ]


def test_a_column_that_is_not_there_is_answered_with_the_nearest(tmp_path):
    file = write(tmp_path, "x.csv", "texts,label\na,b\n")
    assert refused(rows, file) == f"{file}:1: no column `text`; did you mean `texts`?"
    file = write(tmp_path, "y.csv", "text;label\na;b\n")
    assert refused(rows, file) == f"{file}:1: its cells are divided by ';'; set format=csv and that as delimiter"
    assert rows(write(tmp_path, "x.jsonl", '{"texts": "a", "label": 1}\n')) == [
        (1, "no `text` in it; did you mean `texts`?")
    ]
    pyarrow.parquet.write_table(pyarrow.table({"tex": ["a"]}), tmp_path / "x.parquet")
    assert "no column `text`; did you mean `tex`?" in refused(rows, tmp_path / "x.parquet")


def test_rows_that_cannot_be_used_keep_their_place(tmp_path):
    csv = write(tmp_path, "x.csv", 'text,label\na,b,c\n"a"b,c\nfine,d\n')
    assert rows(csv)[0] == (2, "3 cells instead of 2") and "no CSV" in rows(csv)[1][1]
    assert rows(csv)[2] == (4, ("fine", "d"))
    lines = [
        '{"text": "a", "label": [1, true]}',
        "{",
        "[1]",
        '{"text": {"x": 1}, "label": 1}',
        '{"text": "b", "label": 2.0}',
    ]
    found = rows(write(tmp_path, "x.jsonl", "\n".join(lines)))
    assert found[0] == (1, ("a", ["1", "true"])) and found[4] == (5, ("b", "2"))
    assert [problem[:8] for _, problem in found[1:4]] == ["no JSON:", "no JSON ", "`text` i"]


def test_a_quotation_mark_that_nothing_closes_names_its_row(tmp_path):
    file = write(tmp_path, "x.csv", 'text,label\na,b\n"c,d\n' + "e,f\n" * 1000)
    assert f"{file}:3: a quotation mark opens a cell" in refused(rows, file)
    file = write(tmp_path, "y.csv", 'text,label\na,b\n"c,d\n' + "e,f\n" * (LONGEST_CELL // 4 + 1))
    assert f"{file}:3: a quotation mark opens a cell" in refused(rows, file)


def test_conll(tmp_path):
    content = (
        "-DOCSTART- -X- O O\n\nEU NNP O B-ORG\nrejects VBZ O O\n\n\nonly two\nBritish JJ O B-MISC\n\nPeter NNP O B-PER"
    )
    columns = ["word", "pos", "chunk", "tag"]
    found = rows(write(tmp_path, "x.conll", content), ("word", "tag"), columns=columns)
    assert found == [
        (3, (["EU", "rejects"], ["B-ORG", "O"])),
        (7, "line 7 has 2 cells instead of 4"),
        (10, (["Peter"], ["B-PER"])),
    ]
    words = rows(write(tmp_path, "y.bio", "EU\nrejects\n\nPeter\n"), ("word",), columns=columns)
    assert words == [(1, (["EU", "rejects"],)), (4, (["Peter"],))]
    assert "name its columns" in refused(rows, tmp_path / "y.bio")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.doc", b"a", "its suffix says no format"),
        ("x.parquet", b"no parquet", "cannot be read"),
        ("x.csv", b"", "no header line in it"),
        ("x.tsv", b"", "no header line in it"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, message):
    assert message in refused(rows, write(tmp_path, name, content))


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        rows(tmp_path / "none.csv")
