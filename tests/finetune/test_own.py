"""A user's task from its config and files: labels, splits, and mistakes in one line with file and row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from recipe.errors import UserError
from recipe.finetune.own import OwnTask, check
from recipe.finetune.tasks import TaskData
from tests.mistakes import refused
from tests.tiny.own import own_config, write_csv, write_own


def read(folder: Path, *rows: tuple, dev: list[tuple] = (), **settings) -> TaskData:
    """A task of these rows of a CSV file."""
    data = folder / "own"
    data.mkdir(exist_ok=True)
    header = ("text", "label")
    if rows:
        write_csv(data / "train.csv", [header, *rows])
    if dev:
        write_csv(data / "dev.csv", [header, *dev])
        settings["dev"] = ["dev.csv"]
    config = own_config(folder, **{"train": ["train.csv"], "test": [], **settings})
    check(config)
    return OwnTask(config).data


def many(count: int = 60) -> list[tuple]:
    return [(f"text number {i}", "ab"[i % 3 == 0]) for i in range(count)]


def test_labels_are_found_or_stated(tmp_path):
    rows = [("a", "10"), ("b", "9"), ("c", "10"), ("d", "9")]
    assert read(tmp_path, *rows, dev=rows).labels == ("9", "10"), "numbers in their order"
    words = [("a", "no"), ("b", "maybe"), ("c", "no")]
    found = read(tmp_path, *words, dev=words)
    assert found.labels == ("maybe", "no") and found.train.labels == [1, 0, 1] and found.dev["dev"].labels == [1, 0, 1]
    stated = read(tmp_path, *words, dev=words, labels=["yes", "no", "maybe"])
    assert stated.labels == ("yes", "no", "maybe") and stated.train.labels == [1, 2, 1]
    assert any("label `yes` is in no row of train" in note for note in stated.notes)


def test_a_split_is_drawn_stratified_seeded_and_equal_texts_stay_together(tmp_path):
    rows = many(300) + [(text.upper(), label) for text, label in many(90)]
    found = read(tmp_path, *rows, dev_share=0.2)
    assert len(found.train) + len(found.dev["dev"]) == 390 and 70 <= len(found.dev["dev"]) <= 78
    share = Counter(found.dev["dev"].labels)[1] / len(found.dev["dev"])
    assert share == pytest.approx(Counter(found.train.labels)[1] / len(found.train), abs=0.05)
    sides = [{text.casefold() for (text,) in side.sentences} for side in (found.train, found.dev["dev"])]
    assert not sides[0] & sides[1]
    again, other = read(tmp_path, dev_share=0.2), read(tmp_path, dev_share=0.2, split_seed=1)
    assert again.dev == found.dev and other.dev != found.dev
    lines = [int(place.rpartition(":")[2]) for place in found.places["dev"]]
    assert lines[0] == int(found.dev["dev"].sentences[0][0].split()[-1]) + 2 and len(lines) == len(found.dev["dev"])


def test_which_sets_there_are(tmp_path):
    write_own(tmp_path / "own", 40)
    usual = OwnTask(own_config(tmp_path)).data
    assert list(usual.dev) == ["test"] and usual.choosing is None and len(usual.train) == 40
    stopping = OwnTask(own_config(tmp_path, early_stopping=1)).data
    assert list(stopping.dev) == ["test"] and len(stopping.choosing) == 4 and len(stopping.train) == 36
    drawn = OwnTask(own_config(tmp_path, test=[])).data
    assert list(drawn.dev) == ["dev"] and len(drawn.dev["dev"]) == 4 and len(drawn.train) == 36


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([("a", "x"), ("", "y")], {}, "train.csv:3: column `text` is empty; repair or remove the row"),
        ([("a", "x"), ("b", " ")], {}, "train.csv:3: column `label` is empty"),
        ([("a", "x"), ("b", "x")], {}, "train.csv:2: every row of train has the label `x`"),
        ([("a", "x"), ("b", "y", "z")], {}, "train.csv:3: 3 cells instead of 2"),
        ([], {"label": "lable"}, "train.csv:1: no column `lable`; did you mean `label`?"),
        ([("a", "x"), ("b", "y")], {"labels": ["x"]}, "train.csv:3: label `y`; known are x"),
        ([("a", "x"), ("b", "y")], {"labels": ["x", "x"]}, "labels: one of them stands there twice"),
        (
            [("a", "1"), ("b", "much")],
            {"kind": "regression", "text": ["text"], "metrics": []},
            "train.csv:3: score `much`",
        ),
        ([("a", "x"), ("b", "y")], {}, "dev_share=0.1: 2 examples, or their texts in common, are too few"),
        ([("a", "x"), ("b", "y")], {"dev_share": 0.0}, "nothing is left to score on"),
        ([], {"kind": "clasification"}, "kind: no kind `clasification`; did you mean `classification`?"),
        ([], {"metrics": ["acuracy"]}, "has no `acuracy`; did you mean `accuracy`?"),
        ([], {"text": ["a", "b", "c"]}, "kind=classification reads 1 or 2 columns"),
        (
            [("a", "x"), ("b", "y"), ("c", "z")],
            {"metrics": ["f1"]},
            "f1 is that of the second of two labels, and there are 3",
        ),
        ([], {"kind": "entities", "metrics": [], "labels": ["B-A", "O"]}, "labels: `O` must be the first of them"),
        ([], {"seeds": [1, 1]}, "one of them stands there twice"),
        ([], {"seeds": []}, "seeds: empty"),
        ([], {"train": []}, "train: empty"),
        ([], {"train": ["none.csv"]}, "none.csv: no such file"),
        ([], {"kind": "regression", "metrics": [], "class_weights": "balanced"}, "kind=regression has no classes"),
        ([], {"class_weights": "balanced", "encoding": "utf-99"}, "encoding=utf-99: no such encoding"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_row(tmp_path, rows, settings, message):
    if not rows:
        write_csv((tmp_path / "own").mkdir() or tmp_path / "own" / "train.csv", [("text", "label"), *many()])
    kind = settings.pop("kind", "classification")
    base = {"kind": kind} if kind not in ("regression",) else {"kind": kind, "text": ["text"]}
    assert message in refused(read, tmp_path, *rows, **{**base, **settings})


def test_a_label_that_the_training_split_lacks(tmp_path):
    message = refused(read, tmp_path, *many(), dev=[("new", "a"), ("newer", "aa")])
    assert message.endswith("dev.csv:3: label `aa` is in no row of train; did you mean `a`?")


def test_a_class_seen_once_is_said(tmp_path):
    found = read(tmp_path, *many(), ("rare", "c"), dev=[("new", "a")])
    assert [note.split("own/")[1] for note in found.notes] == [
        "train.csv:62: label `c` is seen once, too rarely to be learnt"
    ]


def test_tags(tmp_path):
    write_own(tmp_path / "own", 40)
    found = OwnTask(own_config(tmp_path, "entities")).data
    assert found.labels == ("O", "B-ANIMAL") and sum(map(sum, found.train.labels)) == 40
    file = tmp_path / "own" / "train.txt"
    file.write_text("the O 0\nold B-X 0\n\nred O 0\nhorse I-ANIMAL 0\n")
    with pytest.raises(
        UserError, match=r"train.txt:5: tag `I-ANIMAL` behind `O` is no IOB2: an entity begins with `B-ANIM"
    ):
        OwnTask(own_config(tmp_path, "entities")).data  # noqa: B018 - the property reads
    file.write_text("the O 0\nold O\n")
    assert "train.txt:1: line 2 has 2 cells instead of 3" in refused(
        getattr, OwnTask(own_config(tmp_path, "entities")), "data"
    )
    file.write_text("the O 0\nold O 0\n")
    assert "has the label `O`" in refused(getattr, OwnTask(own_config(tmp_path, "entities")), "data")


def test_words_and_tags_in_one_cell(tmp_path):
    rows = [("the horse", "O B-A"), ("a house", "O O")]
    found = read(tmp_path, *rows, dev=rows, kind="entities", columns=[], format="auto", text=["text"], label="label")
    assert found.train.labels == [[0, 1], [0, 0]]
    message = refused(
        read, tmp_path, ("the horse", "O"), kind="entities", columns=[], format="auto", text=["text"], label="label"
    )
    assert "train.csv:2: 1 tags for 2 words" in message


def test_several_labels_in_a_cell_or_a_list(tmp_path):
    rows = [("a", "x, y"), ("b", ""), ("c", "y")]
    found = read(tmp_path, *rows, dev=rows, kind="multilabel", label="label")
    assert found.labels == ("x", "y") and found.train.labels == [(1, 1), (0, 0), (0, 1)]
    write_own(tmp_path / "own", 40)
    found = OwnTask(own_config(tmp_path, "multilabel")).data
    assert found.labels == ("animal", "colour") and {*found.train.labels} == {(0, 0), (0, 1), (1, 0), (1, 1)}
