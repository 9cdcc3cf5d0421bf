"""The part of a training set that settings are chosen by."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recipe.errors import UserError
from recipe.finetune.examples import Examples
from recipe.finetune.tasks import TASKS, read_task
from recipe.finetune.tuning_split import tuning_split
from tests.tiny.tasks import write_tsv

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "glue"
SST2 = TASKS["SST-2"]


def rows(examples: Examples) -> list[tuple]:
    return list(zip(examples.sentences, examples.labels, strict=True))


def test_a_tenth_stratified_and_nothing_lost():
    train = Examples([(f"text {i}",) for i in range(1000)], [int(i % 10 == 0) for i in range(1000)])
    left, tuning = tuning_split(train)
    assert len(tuning) == 100 and Counter(tuning.labels) == {0: 90, 1: 10}
    assert sorted(rows(left) + rows(tuning)) == sorted(rows(train))
    scores = Examples([(f"a {i}", f"b {i}") for i in range(400)], list(np.linspace(0.0, 5.0, 400)))
    tuned = np.sort(tuning_split(scores)[1].labels)
    assert len(tuned) == 40 and np.abs(tuned - np.linspace(0.0, 5.0, 40)).max() < 0.15


def test_at_most_two_thousand():
    assert len(tuning_split(Examples([(f"t {i}",) for i in range(25_000)], [i % 2 for i in range(25_000)]))[1]) == 2000


def test_no_text_is_on_both_sides():
    """A third of the pairs share a sentence with others, spelt in another case or with other spaces."""
    chance = random.Random(1)
    pairs = []
    for i in range(900):
        first = f"Shared {chance.randrange(60)}" if i % 3 == 0 else f"first {i}"
        pair = (first, f"second {i}") if i % 2 else (f"second {i}", first.upper().replace(" ", "  "))
        pairs.append(pair)
    left, tuning = tuning_split(Examples(pairs, [i % 2 for i in range(900)]))
    texts = [{" ".join(text.lower().split()) for pair in side.sentences for text in pair} for side in (left, tuning)]
    assert 80 <= len(tuning) <= 90 and not texts[0] & texts[1]
    assert any("hared" in text for text in texts[1])  # connected ones are drawn too


def test_the_order_of_the_file_moves_nothing_across():
    train = Examples([(f"text {i}",) for i in range(500)], [i % 2 for i in range(500)])
    mixed = train.only(random.Random(2).sample(range(500), 500))
    assert set(rows(tuning_split(train)[1])) == set(rows(tuning_split(mixed)[1]))
    # pinned, as settings that were chosen on another split would have been chosen on what is now trained on
    assert sorted(tuning_split(train)[1].sentences)[:3] == [("text 125",), ("text 126",), ("text 146",)]


def test_a_task_reads_its_tuning_set_without_the_development_set(tmp_path):
    write_tsv(tmp_path / "SST-2" / "train.tsv", [("sentence", "label"), *((f"text {i}", i % 2) for i in range(60))])
    data = read_task(str(tmp_path), SST2, split="tuning")  # there is no dev.tsv
    assert list(data.dev) == ["tuning"] and (len(data.dev["tuning"]), len(data.train)) == (6, 54)
    fewer = read_task(str(tmp_path), SST2, 20, split="tuning")
    assert rows(fewer.dev["tuning"]) == rows(data.dev["tuning"]) and len(fewer.train) == 20
    assert not set(rows(fewer.train)) & set(rows(data.dev["tuning"]))
    write_tsv(tmp_path / "SST-2" / "train.tsv", [("sentence", "label"), *((f"text {i}", i % 2) for i in range(9))])
    with pytest.raises(UserError, match="SST-2: 9 training examples are too few for a tuning split; set split=dev"):
        read_task(str(tmp_path), SST2, split="tuning")


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/glue is not there")
@pytest.mark.parametrize(("name", "size"), [("CoLA", 855), ("RTE", 249), ("STS-B", 574)])
def test_of_real_tasks(name, size):
    data = read_task(str(REAL), TASKS[name], split="tuning")
    tuning = data.dev["tuning"]
    texts = [{text.casefold() for pair in side.sentences for text in pair} for side in (data.train, tuning)]
    assert len(tuning) == size and not texts[0] & texts[1]
    assert np.mean(tuning.labels) == pytest.approx(np.mean(data.train.labels), abs=0.02)
