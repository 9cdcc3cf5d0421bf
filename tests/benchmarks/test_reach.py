"""Fine-tuning beside transformers' own loop, and beside what needs no encoder: tiny encoders, tasks of one word."""

from __future__ import annotations

import json
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import reach, reach_small, reach_tasks
from benchmarks.reach_tasks import ReachTask
from recipe.config import FinetuneConfig
from recipe.config.loading import load
from recipe.finetune.__main__ import finetune
from tests.mistakes import refused
from tests.tiny.models import write_encoder
from tests.tiny.own import write_csv
from tests.tiny.tasks import ANIMALS, FILLERS

QUICK = ("lr=5e-3", "epochs=3", "batch_size=8", "precision=fp32", "device=cpu")
ENTITIES = ANIMALS[:3]


def sentence(chance: random.Random, first: str) -> str:
    return " ".join([first, *chance.choices(FILLERS, k=4)])


def write_data(data: Path) -> None:
    """Intents that the first word is, and entities that a few words always are."""
    chance = random.Random(0)
    for folder in ("intents", "ner"):
        (data / folder).mkdir(parents=True)
    for split, count in (("train", 96), ("test", 24)):
        rows = [(sentence(chance, word), word) for word in (ENTITIES[i % 3] for i in range(count))]
        write_csv(data / f"intents/banking77-{split}.csv", [("text", "category"), *rows])
    for split, count in (("train", 60), ("valid", 12), ("test", 12)):
        texts = [chance.choices([*ENTITIES, *FILLERS], k=6) for _ in range(count)]
        lines = ["\n".join(f"{word} {'B-PER' if word in ENTITIES else 'O'} 0" for word in text) for text in texts]
        (data / f"ner/conll2003-{split}.txt").write_text("\n\n".join(lines) + "\n")


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    write_data(tmp_path / "data")
    # In this process: one of its own takes seconds to start.
    monkeypatch.setattr(reach_tasks, "fine_tune", lambda yaml, words: finetune(load(FinetuneConfig, yaml, words)))
    monkeypatch.setattr(reach_tasks, "SEEDS", (1, 2))
    return tmp_path / "data"


def quick(task: ReachTask) -> ReachTask:
    return replace(task, words=(*QUICK, *(word for word in task.words if word.startswith("kind="))))


@pytest.mark.parametrize("name", ["banking77", "conll2003"])
def test_both_loops_learn_the_same_task(name, data, tmp_path, capsys):
    write_encoder(tmp_path / "encoder", "hf_bert", positions=128)
    row = reach.measure(quick(reach_tasks.TASKS[name]), str(tmp_path / "encoder"), data, tmp_path / "work")
    assert len(row["recipe"]) == len(row["transformers"]) == 2
    assert row["difference"] == statistics.fmean(row["recipe"]) - statistics.fmean(row["transformers"])
    assert row["scored_examples"] in (12, 24) and row["settings"]["lr"] == 5e-3
    # Without training a third of the intents is right, and hardly an entity.
    assert min(*row["recipe"], *row["transformers"]) > 60, row
    before = [file.stat().st_mtime_ns for file in sorted((tmp_path / "work/theirs").glob("*.json"))]
    assert reach.measure(quick(reach_tasks.TASKS[name]), str(tmp_path / "encoder"), data, tmp_path / "work") == row
    assert [file.stat().st_mtime_ns for file in sorted((tmp_path / "work/theirs").glob("*.json"))] == before


@pytest.mark.parametrize("name", ["banking77", "conll2003"])
def test_what_needs_no_encoder_learns_words(name, data, tmp_path):
    task = quick(reach_small.TASKS[name])
    config = task.config(data, tmp_path / "work", "nowhere")
    examples = reach_tasks.read(config)
    (scored,) = examples.dev.values()
    answers = reach_small.answers_without_an_encoder(examples)
    assert [len(one) for one in answers] == [len(one) for one in scored.labels] if name == "conll2003" else True
    (score,) = examples.kind.measure(examples.task.metrics, scored.labels, answers, examples.labels).values()
    assert score > 90


def test_features_of_a_pair_are_those_of_siamese_kinds():
    from sklearn.feature_extraction.text import TfidfVectorizer

    from recipe.finetune.examples import Examples

    pairs = Examples([("a b", "a b"), ("a b", "c d")], [1.0, 0.0])
    vectorizer = TfidfVectorizer(token_pattern=r"\w").fit(["a b", "c d"])
    found = reach_small.features(vectorizer, pairs).toarray()
    width = len(vectorizer.get_feature_names_out())
    assert found.shape == (2, 4 * width + 1)
    assert found[0, -1] == pytest.approx(1) and found[1, -1] == 0 and not found[0, 2 * width : 3 * width].any()


def test_results_are_kept_task_by_task_and_of_one_subject(tmp_path):
    file = tmp_path / "result.json"
    found = reach_tasks.start(file, {"encoder": "one"})
    reach_tasks.keep(file, found, "a", {"score": 1.0})
    again = reach_tasks.start(file, {"encoder": "one"})
    reach_tasks.keep(file, again, "b", {"score": 2.0})
    tasks = json.loads(file.read_text())["tasks"]
    assert [tasks[name]["score"] for name in ("a", "b")] == [1.0, 2.0]
    assert all("commit" in row["provenance"] and "threads" in row["device"] for row in tasks.values())
    assert "is of another encoder" in refused(reach_tasks.start, file, {"encoder": "two"})


def test_unknown_task():
    assert "known are banking77" in refused(reach_tasks.chosen, ["bank"], reach_tasks.TASKS)
