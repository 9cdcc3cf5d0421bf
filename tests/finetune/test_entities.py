"""Entities and their F1 by seqeval's definition; the first case is that of its README."""

from __future__ import annotations

import pytest

from recipe.finetune.entities import entities, f1_by_type, not_iob2


def test_the_case_of_seqeval_s_readme():
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert f1_by_type(gold, predicted) == (0.5, {"MISC": 0.0, "PER": 1.0})


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("B-PER I-LOC I-LOC", {("PER", 0, 0), ("LOC", 1, 2)}),  # of another type: another entity
        ("I-PER I-PER O I-LOC", {("PER", 0, 1), ("LOC", 3, 3)}),  # begins with I-, as a model may say
        ("O O", set()),
        ("B-A-B I-A-B", {("A-B", 0, 1)}),
        ("", set()),
    ],
)
def test_entities_by_hand(tags, expected):
    assert entities(tags.split()) == expected


def test_f1_by_hand():
    gold = [["B-PER", "O", "B-LOC", "I-LOC"], ["B-PER", "O"]]
    predicted = [["B-PER", "O", "B-LOC", "O"], ["O", "B-PER"]]
    # 1 of 3 that were said, 1 of 3 that are there
    assert f1_by_type(gold, predicted) == (pytest.approx(1 / 3), {"LOC": 0.0, "PER": 0.5})
    assert f1_by_type([["O"]], [["O"]]) == (0.0, {})
    assert f1_by_type([["O"]], [["B-X"]]) == (0.0, {"X": 0.0})


@pytest.mark.parametrize(
    ("tags", "place"),
    [
        ("B-PER I-PER O", None),
        ("O I-PER", 1),
        ("B-PER I-LOC", 1),
        ("B-PER PER", 1),
        ("S-PER", 0),
        ("B-", 0),
        ("I-PER", 0),
    ],
)
def test_what_is_no_iob2(tags, place):
    found = not_iob2(tags.split())
    assert (found and found[0]) == place
