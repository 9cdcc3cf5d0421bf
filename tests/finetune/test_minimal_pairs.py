"""Minimal pairs as BLiMP's files have them, and the masked copies of their sentences."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from recipe.errors import UserError
from recipe.finetune.minimal_pairs import mask_each, read_pairs
from recipe.training.checkpoint import find_checkpoint
from tests.tiny.models import write_encoder
from tests.tiny.tasks import write_pairs

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "blimp"


def test_the_two_parts_are_all_pairs_and_share_none(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", {"one": 50, "two": 41})
    parts = {part: read_pairs(str(tmp_path / "pairs.jsonl"), part) for part in ("tuning", "reported")}
    assert [(p.name, len(p.pairs)) for p in parts["tuning"]] == [("one", 40), ("two", 40)]
    assert [(p.name, len(p.pairs)) for p in parts["reported"]] == [("one", 10), ("two", 1)]
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    for place, name in enumerate(("one", "two")):
        of_file = [(row["sentence_good"], row["sentence_bad"]) for row in lines if row["UID"] == name]
        assert [*parts["tuning"][place].pairs, *parts["reported"][place].pairs] == of_file
    fewer = read_pairs(str(tmp_path / "pairs.jsonl"), "reported", 3)
    assert [one.pairs for one in fewer] == [one.pairs[:3] for one in parts["reported"]]


def test_files_of_any_form_and_one_spelling_of_a_field(tmp_path):
    write_pairs(tmp_path / "plain.jsonl", {"one": 42}, field="syntax/semantics")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "plain.jsonl").read_bytes()))
    write_pairs(tmp_path / "packed" / "b.jsonl", {"two": 42})
    folder = read_pairs(str(tmp_path / "packed"), "tuning")
    assert [one.name for one in folder] == ["one", "two"] and folder[0].field == "syntax_semantics"
    assert folder[:1] == read_pairs(str(tmp_path / "plain.jsonl"), "tuning")


PAIR = '{"sentence_good": "a", "sentence_bad": "b", "UID": "u", "linguistics_term": "t", "field": "f"}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "p.jsonl: no pair in it"),
        (b"{", "p.jsonl:1: not valid JSON"),
        (f"{PAIR}\n\n[1]\n".encode(), "p.jsonl:3: expected an object with sentence_good, sentence_bad, UID"),
        (PAIR.replace("sentence_bad", "bad").encode(), "p.jsonl:1: `sentence_bad` must be a text"),
        (PAIR.replace('"b"', '" "').encode(), "p.jsonl:1: `sentence_bad` must be a text"),
        (f"{PAIR}\n".encode() + b'{"sentence_good": "\xff"}', "p.jsonl:2: not UTF-8 text"),
        (PAIR.encode(), "u: its 1 pairs are all of part=tuning, the first 40; set part=tuning, or give more pairs"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path, content, message):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_pairs(str(tmp_path / "p.jsonl"), "reported")


def test_a_cut_archive_and_an_empty_folder_are_refused(tmp_path):
    write_pairs(tmp_path / "pairs.jsonl", {"one": 500})
    packed = gzip.compress((tmp_path / "pairs.jsonl").read_bytes())
    (tmp_path / "p.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"p\.jsonl\.gz:\d+: cannot be read"):
        read_pairs(str(tmp_path / "p.jsonl.gz"), "tuning")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \*\.jsonl or \*\.jsonl\.gz there; give BLiMP's file"):
        read_pairs(str(tmp_path / "empty"), "tuning")


def test_every_token_is_masked_once_and_equal_sequences_are_one(tmp_path):
    write_encoder(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path))
    copies, which = mask_each(checkpoint.tokenizer, ["the red horse", "a tree", "The RED  horse"], checkpoint.mask_id)
    assert which.tolist() == [0, 1, 0] and copies.sentences.tolist() == [0, 0, 0, 1, 1]
    assert copies.places.tolist() == [1, 2, 3, 1, 2]  # neither [CLS] nor [SEP]
    whole = checkpoint.tokenizer.encode("the red horse").ids
    for number in range(3):
        start, end = copies.examples.offsets[number : number + 2]
        expected = np.array(whole)
        expected[number + 1] = checkpoint.mask_id
        assert copies.examples.ids[start:end].tolist() == expected.tolist()
        assert copies.examples.labels[number] == whole[number + 1]


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/blimp is not there")
def test_of_real_pairs():
    parts = {part: read_pairs(str(REAL), part) for part in ("tuning", "reported")}
    assert {len(one.pairs) for one in parts["tuning"]} == {40} and len(parts["tuning"]) == 67
    assert {len(one.pairs) for one in parts["reported"]} == {160}
    assert {one.field for one in parts["reported"]} == {"syntax", "morphology", "semantics", "syntax_semantics"}
