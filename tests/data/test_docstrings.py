"""The embedded corpus, and the two tasks made of what is held out of it."""

import csv
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from recipe.config import PrepareConfig, Source
from recipe.data import doc_tasks, docstrings, sources
from recipe.data.glue_tasks import BLANK
from recipe.errors import UserError

LONG = "x" * docstrings.MIN_CHARACTERS
SOURCE = f'''"""Module. {LONG}"""
class A:
    r"""Class \\d. {LONG}

    Notes:
        indented
    """
    async def f(self):
        """Method. {LONG}"""
        def inner():
            """Inner. {LONG}"""
    def g(self): "short"
if True:
    try:
        def h():
            """Guarded. {LONG}"""
    except ImportError:
        def h():
            """Fallback. {LONG}"""
add_newdoc("place", "name", ("attribute", """Attached. {LONG}"""))
torch._C._add_docstr(x, r"""Formatted. {{input}} {{{{kept}}}} {LONG}""".format(**common) + "end")
add_docstr(y, variable)
unrelated("""Not documentation. {LONG}""")
'''


def read(tmp_path, content):
    path = tmp_path / "module.py"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return docstrings._read(("python", str(path)))


def test_reads_every_kind_of_documentation(tmp_path):
    texts = read(tmp_path, SOURCE)
    assert [text.split()[0] for text in texts] == [
        "Module.", "Class", "Method.", "Inner.", "Guarded.", "Fallback.", "Attached.", "Formatted.",
    ]  # fmt: skip
    assert texts[1] == f"Class \\d. {LONG}\n\nNotes:\n    indented"
    assert texts[-1] == f"Formatted.  {{kept}} {LONG}end"


@pytest.mark.parametrize("content", [b"", b'print "python 2" """', b'"""\x00"""', f'"""\\ud800 {LONG}"""'])
def test_files_without_documentation(tmp_path, content):
    assert read(tmp_path, content) == []


PACKAGES = {name: docstrings.PACKAGES[name] for name in ("numpy", "pandas", "matplotlib", "networkx", "python")}


@pytest.fixture(scope="module")
def entries():
    """The corpus without its large packages, which take longest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docstrings, "PACKAGES", PACKAGES)
        return docstrings.collect.__wrapped__(processes=2)  # past the cache, which others share


def test_corpus(entries):
    assert {entry.package for entry in entries} == set(PACKAGES)
    assert sum(len(entry.text) for entry in entries) > 6e6
    assert len({entry.text for entry in entries}) == len(entries)
    assert min(len(entry.text) for entry in entries) >= docstrings.MIN_CHARACTERS
    texts = "\n".join(entry.text for entry in entries if entry.package == "numpy")
    assert "Join a sequence of arrays along an existing axis." in texts  # attached to a compiled function


def test_nothing_is_imported():
    code = (
        "import sys; from recipe.data import docstrings as d; files = [f for n in ('torch', 'sympy') "
        "for f in d._source_files(d._root(n))]; [d._read(('', str(f))) for f in files[:20]]; "
        "print(len(files), {'torch', 'sympy', 'pandas'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed.split()[0]) > 1000
    assert printed.endswith("set()\n")


def table(path):
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    return rows[0], rows[1:]


def test_tasks(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "collect", lambda processes: entries)
    config = PrepareConfig(out="unused", train=Source(embedded="docstrings"), validation_fraction=0.4)
    doc_tasks.write(tmp_path / "a", config)
    doc_tasks.write(tmp_path / "b", config)
    held_out = [e.text for e in entries if sources.held_out(e.text, config.validation_fraction, config.seed)]
    known = "\n".join(sentence for text in held_out for sentence in doc_tasks.sentences(text))
    for task, words in doc_tasks.WORDS.items():
        seen = {}
        for split, count in (("train", 2000), ("dev", 1000)):
            path = Path(task) / f"{split}.tsv"
            assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
            header, rows = table(tmp_path / "a" / path)
            assert header == ["index", "sentence", "label"]
            assert [row[0] for row in rows] == [str(i) for i in range(count)]
            for _, text, label in rows:
                assert text.split().count(BLANK) == 1 and len(text.split()) <= 2 * doc_tasks.CONTEXT + 1
                assert text.replace(BLANK, label) in known
            labels = Counter(row[-1] for row in rows)
            assert set(labels) == set(words)
            assert max(labels.values()) <= 2 * min(labels.values())
            seen[split] = {row[1] for row in rows}
        assert len(seen["train"]) == 2000 and not seen["train"] & seen["dev"]


def test_a_blank_is_asked_for_once_a_sentence_and_never_again():
    texts = [f"row {i} is of the kind that comes to be" for i in range(20)] + ["none here"]
    used = {texts[0], "row 1 [MASK] of the kind that"}
    rows = doc_tasks.blank_rows(texts, ("is", "of"), random.Random(5), 100, used)
    assert {text.split()[1] for text, _ in rows} == {str(i) for i in range(1, 20)} and len(rows) == 19
    for text, label in rows:
        number = text.split()[1]
        assert (
            text
            == {"is": f"row {number} [MASK] of the kind that", "of": f"row {number} is [MASK] the kind that comes"}[
                label
            ]
        )
    assert ("row 1 is [MASK] the kind that comes", "of") in rows
    assert {text for text, _ in rows} | set(texts[:20]) <= used
    few = doc_tasks.blank_rows(texts, ("is", "of"), random.Random(5), 6, set())
    assert Counter(label for _, label in few) == {"is": 3, "of": 3}


def test_sentences():
    text = (
        "Return the sum\nof all of the\telements here. It is what numpy.sum in NumPy would give you.\n\n"
        "Parameters\n----------\nx : array\n    The one to be summed up by this function.\n\n"
        ">>> print('This is code and it is not a sentence.')\n\n"
        "Too short."
    )
    assert doc_tasks.sentences(text) == [
        "Return the sum of all of the elements here.",
        "It is what numpy.sum in NumPy would give you.",
    ]


def test_too_little_held_out(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "collect", lambda processes: entries[:3000])
    config = PrepareConfig(out="unused", train=Source(embedded="docstrings"))
    with pytest.raises(UserError, match=r"gives \d+ rows of 2000; raise validation_fraction"):
        doc_tasks.write(tmp_path, config)
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="embedded=docstrings"):
        doc_tasks.write(tmp_path, PrepareConfig(out="unused", train=Source(files=["a.txt"])))
