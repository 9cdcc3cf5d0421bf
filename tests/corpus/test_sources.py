"""Documents from every format, and what becomes of records and files that are damaged."""

import csv
import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from recipe.config import Source
from recipe.corpus import sources
from recipe.corpus.sources import EMPTY, MALFORMED, MISSING, NOT_TEXT, NOT_UTF8, Rejected
from recipe.errors import UserError
from tests.tiny.texts import write_text

TEXTS = ["first, with a comma", 'second "quoted"\nover two lines', "dritte Größe, 日本語, 🙂"]


def read(*paths, **settings):
    """The documents and the rejected records of files."""
    source = Source(files=[str(path) for path in paths], **settings)
    sources.check(source, "train")
    rejected = Rejected()
    return [text for part in sources.parts(source) for text in sources.documents(part, rejected)], rejected


def write_zst(path, data):
    half = len(data) // 2  # two frames, as tools that append write them
    path.write_bytes(b"".join(zstandard.ZstdCompressor().compress(piece) for piece in (data[:half], data[half:])))


def as_bytes(suffix):
    if suffix == ".txt":
        return "\n\n  \n".join(TEXTS).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps({"text": text, "n": 1}) + "\r\n" for text in TEXTS).encode()
    if suffix == ".json":
        return json.dumps([{"text": text} for text in TEXTS], indent=1, ensure_ascii=False).encode()
    rows = [("id", "text")] + [(str(i), text) for i, text in enumerate(TEXTS)]
    return "".join(",".join('"' + cell.replace('"', '""') + '"' for cell in row) + "\r\n" for row in rows).encode()


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".csv"])
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order-mark"])
def test_every_format_gives_the_same_documents(tmp_path, suffix, compression, mark):
    path = tmp_path / f"a.b{suffix}{compression}"
    data = mark + as_bytes(suffix)
    if compression == ".zst":
        write_zst(path, data)
    else:
        path.write_bytes(gzip.compress(data) if compression else data)
    texts, rejected = read(path)
    assert texts == TEXTS
    assert not rejected.counts


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_parquet(tmp_path, kind):
    path = tmp_path / "a.parquet"
    column = pyarrow.array([TEXTS[0], None, " ", *TEXTS[1:]], kind)
    pyarrow.parquet.write_table(pyarrow.table({"body": column, "n": range(5)}), path)
    texts, rejected = read(path, text_key="body")
    assert texts == TEXTS
    assert rejected.examples == {MISSING: [f"{path}:2"], EMPTY: [f"{path}:3"]}


def test_parquet_value_that_is_not_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    raw = pyarrow.array([b"good", b"bad \xff", b"fine"], pyarrow.binary())
    pyarrow.parquet.write_table(pyarrow.table({"text": raw.cast(pyarrow.string(), safe=False).view("string")}), path)
    texts, rejected = read(path)
    assert texts == ["good", "fine"]
    assert rejected.examples == {NOT_UTF8: [f"{path}:2"]}


def test_bad_json_records_are_counted_with_their_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"text": "good"}',
        b'{"text": "cut off',
        b'{"text": "bad \xff byte"}',
        b'{"text": "lone \\ud800 surrogate"}',
        b'{"body": "elsewhere"}',
        b'{"text": null}',
        b'{"text": 5}',
        b'{"text": " \\n\\t"}',
        b"",
        b'["text"]',
        b"[" * 100_000,
        '{"text": "line\u2028separator stays inside"}'.encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    texts, rejected = read(path)
    assert texts == ["good", "line\u2028separator stays inside"]
    at = {kind: [int(place.removeprefix(f"{path}:")) for place in places] for kind, places in rejected.examples.items()}
    assert at == {MALFORMED: [2, 10, 11], NOT_UTF8: [3, 4], MISSING: [5, 6], NOT_TEXT: [7], EMPTY: [8, 9]}
    assert sum(rejected.counts.values()) == len(lines) - len(texts)


def test_all_are_counted_but_few_are_quoted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("oops\n" * 1000 + '{"text": "x"}\n')
    _, rejected = read(path)
    assert rejected.counts[MALFORMED] == 1000
    assert rejected.examples[MALFORMED] == [f"{path}:{line}" for line in range(1, 6)]
    both = Rejected()
    both.merge(rejected)
    both.merge(rejected)
    assert both.counts[MALFORMED] == 2000
    assert len(both.examples[MALFORMED]) == 5


def test_other_bad_records(tmp_path):
    text = tmp_path / "a.txt"
    text.write_bytes(b"\n\none\n\ntwo \xff\xfe\nlines\n\nthree")
    texts, rejected = read(text)
    assert texts == ["one", "three"]
    assert rejected.examples == {NOT_UTF8: [f"{text}:5"]}

    table = tmp_path / "a.csv"
    table.write_bytes(b'n,text\n1,"a\nb"\n2\n3,\n4,\xff\n5,z\n')
    texts, rejected = read(table)
    assert texts == ["a\nb", "z"]
    assert rejected.examples == {MISSING: [f"{table}:4"], EMPTY: [f"{table}:5"], NOT_UTF8: [f"{table}:6"]}

    for name in ("e.txt", "e.jsonl", "e.json", "e.csv", "e.json.gz"):
        (tmp_path / name).write_bytes(b"")
        texts, rejected = read(tmp_path / name)
        assert texts == []
        assert rejected.examples == {EMPTY: [f"{tmp_path / name}:1"]}


def test_a_long_csv_field(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([["text"], ["word " * 100_000]])
    assert read(path)[0] == ["word " * 100_000]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "b.json", "c.csv", "d.parquet", "e.txt.gz"])
def test_damaged_files_are_errors_that_name_them(tmp_path, name):
    path = tmp_path / name
    lines = b"".join(b'{"text": "%d"}\n' % i for i in range(50_000))
    if name.endswith(".gz") and name.startswith("a"):
        path.write_bytes(gzip.compress(lines)[:-1000])
    elif name.endswith(".zst"):
        path.write_bytes(zstandard.ZstdCompressor().compress(lines)[:-1000])
    else:
        content = {"b.json": b'[\n{"text": "a"},\n{"text": ]', "c.csv": b'text\n"open quote\nswallows\n'}
        path.write_bytes(content.get(name, b"no such format"))
    with pytest.raises(UserError, match=f"{name}.*(repair|cannot be read)") as error:
        read(path)
    assert "\n" not in str(error.value)
    if name == "b.json":
        assert "b.json:3" in str(error.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(), "has none"),
        (Source(files=["*.txt"], embedded="docstrings"), "files and embedded"),
        (Source(files=["nothing-*.txt"]), "matches no file"),
        (Source(files=["folder"]), "say folder/"),
        (Source(files=["known.txt", "a.pdf"]), "a.pdf: unknown suffix"),
        (Source(files=["a.parquet.gz"]), "unknown suffix"),
        (Source(files=["a.csv"]), "no column `text`; it has body, n"),
        (Source(files=["a.parquet"]), "no column `text`; it has n"),
        (Source(files=["a.parquet"], text_key="n"), "is int64, not text"),
        (Source(dataset="no/such", subset="en"), r"dataset no/such \(en\), split train"),
    ],
)
def test_what_cannot_be_read_is_said_beforehand(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "folder").mkdir()
    for name in ("known.txt", "a.pdf", "a.parquet.gz"):
        (tmp_path / name).write_text("x")
    (tmp_path / "a.csv").write_text("body,n\nx,1\n")
    pyarrow.parquet.write_table(pyarrow.table({"n": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=message) as error:
        sources.check(source, "train")
    assert "\n" not in str(error.value)


def test_globs_are_sorted_and_overlap_once(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert read(tmp_path / "**/*.txt", tmp_path / "a*")[0] == ["a.txt", "b.txt", "sub/c.txt"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 99])
def test_max_documents_counts_over_all_parts(tmp_path, count):
    for name, content in (("a", "1\n\n2"), ("b", "\xff\n\n"), ("c", "3\n\n4\n\n5")):
        (tmp_path / f"{name}.txt").write_text(content, "latin-1")
    texts, rejected = read(tmp_path / "*.txt", max_documents=count)
    assert texts == list("12345")[:count]
    assert rejected.counts[NOT_UTF8] == (count > 2)


def test_a_dataset_by_name(tmp_path):
    for i in range(3):
        lines = [json.dumps({"text": f"{i}{j}"}) + "\n" for j in "ab"] + ['{"text": ""}\n']
        (tmp_path / f"train-{i}.jsonl").write_text("".join(lines))
    source = Source(dataset=str(tmp_path))
    sources.check(source, "train")
    parts, rejected = sources.parts(source), Rejected()
    assert len(parts) == 3
    assert sorted(text for part in parts for text in sources.documents(part, rejected)) == [
        "0a", "0b", "1a", "1b", "2a", "2b",
    ]  # fmt: skip
    assert rejected.counts == {EMPTY: 3}
    with pytest.raises(UserError, match="no field `body`; it has text"):
        sources.check(Source(dataset=str(tmp_path), text_key="body"), "train")
    with pytest.raises(UserError, match="split test"):
        sources.check(Source(dataset=str(tmp_path), split="test"), "train")


def test_held_out_share_and_independence():
    texts = [f"document {i}" for i in range(20_000)]
    chosen = {text for text in texts if sources.held_out(text, 0.1, 17)}
    assert abs(len(chosen) - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5  # five standard deviations
    more = {text for text in texts if sources.held_out(text, 0.2, 17)}
    assert chosen < more
    assert chosen != {text for text in texts if sources.held_out(text, 0.1, 18)}


def test_a_dataset_that_vanishes_while_it_is_read(tmp_path):
    for name in "ab":
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / f"{name}.jsonl").write_text('{"text": "words"}\n')
    source = Source(dataset=str(tmp_path / "set"))
    first, second = sources.parts(source)
    assert list(sources.documents(first, Rejected())) == ["words"]
    (tmp_path / "set" / "b.jsonl").unlink()
    with pytest.raises(UserError, match="^dataset .*set 1: reading stopped: .*b.jsonl.*; run the same command again$"):
        list(sources.documents(second, Rejected()))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_the_position_in_a_file_runs_to_its_end(tmp_path, suffix):
    draw = random.Random(0)
    texts = [" ".join(str(draw.random()) for _ in range(30)) for _ in range(3_000)]
    file = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), file)
    else:
        write_text(file, texts)
    position = sources.Position()
    shares = [
        position.share()
        for _ in sources.documents(sources.Part(str(file), Source(files=[str(file)])), Rejected(), position)
    ]
    assert shares == sorted(shares) and shares[0] < 0.2 and 0.4 < shares[1_800] < 0.8 and shares[-1] > 0.99
