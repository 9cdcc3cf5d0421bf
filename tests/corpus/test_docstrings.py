"""The embedded corpus, and the minimal pairs made of what is held out of it."""

import json
import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from recipe.config import PrepareConfig, Source
from recipe.corpus import doc_pairs, docstrings, sources
from recipe.errors import UserError
from recipe.finetune.minimal_pairs import read_pairs

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
        "import sys; from recipe.corpus import docstrings as d; files = [f for n in ('torch', 'sympy') "
        "for f in d._source_files(d._root(n))]; [d._read(('', str(f))) for f in files[:20]]; "
        "print(len(files), {'torch', 'sympy', 'pandas'} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed.split()[0]) > 1000
    assert printed.endswith("set()\n")


def pairs_in(file):
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_pairs(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "collect", lambda processes: entries)
    config = PrepareConfig(out="unused", train=Source(embedded="docstrings"), validation_fraction=0.4)
    file, again = (doc_pairs.write(tmp_path / name, config) for name in "ab")
    assert file.read_bytes() == again.read_bytes()
    held_out = {e.text: sources.held_out(e.text, config.validation_fraction, config.seed) for e in entries}
    known = {one for text, out in held_out.items() if out for one in doc_pairs.sentences(text)}
    trained_on = {one for text, out in held_out.items() if not out for one in doc_pairs.sentences(text)}
    found = pairs_in(file)
    assert Counter(row["UID"] for row in found) == dict.fromkeys(doc_pairs.PARADIGMS, 440)
    for row in found:
        good, bad = row["sentence_good"], row["sentence_bad"]
        assert good in known and good not in trained_on and good != bad and len(good) <= 100
        before = os.path.commonprefix([good, bad])
        after = os.path.commonprefix([good[::-1], bad[::-1]])[::-1]
        assert len(before) + len(after) >= len(good) - 15, "one word at most is exchanged"
    for paradigm in doc_pairs.PARADIGMS:
        goods = [row["sentence_good"] for row in found if row["UID"] == paradigm]
        assert len(set(goods)) == len(goods)
    read = read_pairs(str(file.parent), "reported")
    assert [(one.name, len(one.pairs)) for one in read] == [("DocMark", 400), ("DocWord", 400)]


@pytest.mark.parametrize("pattern", [doc_pairs.MARKS, doc_pairs.WORDS])
def test_who_knows_frequencies_alone_is_right_in_half_of_the_pairs(entries, pattern):
    """Every exchange is made in both directions, between sentences of their own."""
    texts = list(dict.fromkeys(one for entry in entries[:4000] for one in doc_pairs.sentences(entry.text)))
    pairs = doc_pairs.exchanges(texts, pattern, random.Random(3), 200)
    counts = Counter(match for text in texts for match in pattern.findall(text))
    right = 0.0
    for good, bad in pairs:
        in_good, in_bad = Counter(pattern.findall(good)), Counter(pattern.findall(bad))
        (written,), (put,) = in_good - in_bad, in_bad - in_good
        right += (counts[written] > counts[put]) + (counts[written] == counts[put]) / 2
    assert right == 100 and len({good for good, _ in pairs}) == len(pairs) == 200
    assert doc_pairs.exchanges(texts[:1], pattern, random.Random(3), 2) == []


def test_sentences():
    text = (
        "Return the sum\nof all of the\telements here. It is what numpy.sum in NumPy would give you.\n\n"
        "Parameters\n----------\nx : array\n    The one to be summed up by this function.\n\n"
        ">>> print('This is code and it is not a sentence.')\n\n"
        "Too short."
    )
    assert doc_pairs.sentences(text) == [
        "Return the sum of all of the elements here.",
        "It is what numpy.sum in NumPy would give you.",
    ]


def test_too_little_held_out(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(docstrings, "collect", lambda processes: entries[:3000])
    config = PrepareConfig(out="unused", train=Source(embedded="docstrings"))
    with pytest.raises(UserError, match=r"gives \d+ pairs of 440; raise validation_fraction"):
        doc_pairs.write(tmp_path, config)
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="embedded=docstrings"):
        doc_pairs.write(tmp_path, PrepareConfig(out="unused", train=Source(files=["a.txt"])))
