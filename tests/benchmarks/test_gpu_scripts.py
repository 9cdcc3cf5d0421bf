"""The two commands for a GPU's machine, with an interpreter that only says what it is asked for: order, words, limits."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = """#!/usr/bin/env bash
[ "$1" = -c ] && exit 0
echo "$*" >> said
case "$*" in
    *recipe.glue*) mkdir -p runs/base-books/{glue,pareto}
        touch runs/base-books/{run.json,glue/scores.md,pareto/pareto.png,pareto/pareto.csv};;
    *benchmarks.kernels*) exit 3;;
    *benchmarks.throughput*) sleep 60;;
esac
"""


@pytest.fixture
def call(tmp_path):
    """A function that runs a script of benchmarks/ on its own, with settings replaced; gives (status, output, calls)."""
    (tmp_path / "benchmarks").mkdir()
    python = tmp_path / "python"
    python.write_text(INTERPRETER)
    python.chmod(0o755)

    def run(script: str, *words: str, **replaced: str) -> tuple[int, str, list[str]]:
        target = tmp_path / "benchmarks" / script
        shutil.copy(ROOT / "benchmarks" / script, target)
        for old, new in replaced.items():
            text = target.read_text()
            assert text.count(f"\n{old}=") == 1
            target.write_text("\n".join(f"{old}={new}" if x.startswith(f"{old}=") else x for x in text.split("\n")))
        done = subprocess.run(
            ["bash", str(target), str(python), *words], capture_output=True, text=True, check=False, timeout=60
        )
        said = (tmp_path / "said").read_text().splitlines() if (tmp_path / "said").exists() else []
        return done.returncode, done.stdout + done.stderr, said

    return run


def test_a_point_is_trained_scored_and_drawn(call, tmp_path):
    status, output, said = call("gpu_point.sh", "data/mine", "my glue", "duration=1ba", "seed=3", "--", "seeds=2")
    assert status == 0, output
    assert said == [
        "-m recipe.train benchmarks/books/base.yaml data.path=data/mine duration=1ba seed=3 out=runs/base-books "
        "autoresume=true",
        "-m recipe.glue benchmarks/books/glue-base.yaml data=my glue seeds=2 checkpoint=runs/base-books",
        "-m recipe.pareto plot benchmarks/results/base-books --out runs/base-books/pareto",
    ]
    kept = {path.name for path in (tmp_path / "benchmarks/results/base-books").iterdir()}
    assert kept == {"run.json", "scores.md", "pareto.png", "pareto.csv"}, "records, and no weights"


def test_a_point_without_words_has_the_yamls_own(call):
    _, _, said = call("gpu_point.sh", "data/books", "glue")
    assert said[0] == (
        "-m recipe.train benchmarks/books/base.yaml data.path=data/books out=runs/base-books autoresume=true"
    )
    assert said[1] == "-m recipe.glue benchmarks/books/glue-base.yaml data=glue checkpoint=runs/base-books"


def test_a_point_without_its_folders_is_refused(call):
    status, output, said = call("gpu_point.sh", "data/books")
    assert status == 2 and "usage: bash benchmarks/gpu_point.sh PYTHON DATASET GLUE_FOLDER" in output and not said


def test_the_books_get_their_folders_as_arguments(call, tmp_path):
    """Each command line reaches recipe.pareto in whole words, the fine-tuning's with its own folder of tasks."""
    done = subprocess.run(["bash", str(ROOT / "benchmarks/books.sh"), "corpus"], capture_output=True, text=True)
    assert done.returncode == 2 and "CORPUS_FOLDER GLUE_FOLDER VOCAB" in done.stderr
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(tmp_path / "python", tmp_path / ".venv/bin/python")
    for place in ("corpus", "glue", "vocab.txt"):
        (tmp_path / place).mkdir()
    shutil.copy(ROOT / "benchmarks/books.sh", tmp_path / "benchmarks")
    words = [str(tmp_path / place) for place in ("corpus", "glue", "vocab.txt")]
    subprocess.run(["bash", "benchmarks/books.sh", *words], cwd=tmp_path, capture_output=True, timeout=60)
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0] == (
        f"-m recipe.prepare benchmarks/books/data.yaml train.files=[{tmp_path}/corpus/books-train*.json.gz] "
        f"validation.files=[{tmp_path}/corpus/books-validation*.json.gz] tokenizer.vocab_file={tmp_path}/vocab.txt"
    )
    runs = [line for line in said if " sweep " in line or " trunk " in line]
    assert len(runs) == 9 and all(f"glue=benchmarks/books/glue-tiny.yaml data={tmp_path}/glue" in line for line in runs)
    assert any(
        "trunk benchmarks/books/sweep-tiny.yaml out=runs/books-seeds/trunk-19 seeds=[19]" in line for line in runs
    )


def test_the_frontier_gets_its_folders_and_measures_its_reference_once(call, tmp_path):
    done = subprocess.run(["bash", str(ROOT / "benchmarks/frontier.sh"), "glue"], capture_output=True, text=True)
    assert done.returncode == 2 and "GLUE_FOLDER CORPUS_FOLDER [BLIMP_FOLDER]" in done.stderr
    (tmp_path / ".venv/bin").mkdir(parents=True)
    shutil.copy(tmp_path / "python", tmp_path / ".venv/bin/python")
    shutil.copy(ROOT / "benchmarks/frontier.sh", tmp_path / "benchmarks")
    for place in ("corpus", "my glue", "blimp"):
        (tmp_path / place).mkdir()

    def said(*words: str) -> list[str]:
        command = ["bash", "benchmarks/frontier.sh", *(str(tmp_path / word) for word in words)]
        subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=True)
        lines = (tmp_path / "said").read_text().splitlines()
        (tmp_path / "said").unlink()
        return lines

    words = f"benchmarks/frontier/campaign.yaml glue='yamls/glue/glue5.yaml data={tmp_path}/my glue'"
    first = said("my glue", "corpus")
    assert first[0] == (
        f"-m recipe.prepare benchmarks/frontier/data.yaml train.files=[{tmp_path}/corpus/books-train*.json.gz] "
        f"validation.files=[{tmp_path}/corpus/books-validation*.json.gz]"
    )
    assert first[1:3] == [f"-m benchmarks.campaign {way} {words}" for way in ("reference", "run")]
    assert [line.split("--measure ")[1].split()[0] for line in first[3:]] == ["score", "loss"]
    for place in ("data/frontier/dataset.json", "benchmarks/results/frontier/campaign/reference.json"):
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).touch()
    again = said("my glue", "corpus", "blimp")
    assert again[0] == f"-m benchmarks.campaign run {words} pairs='yamls/pairs/blimp.yaml data={tmp_path}/blimp'"
    assert [line.split("--measure ")[1].split()[0] for line in again[1:]] == ["score", "loss", "pairs"]


def test_every_part_runs_whatever_came_of_the_last_and_none_beyond_the_time(call):
    status, output, said = call("gpu.sh", "data/none", ALL="3", LEAST="1")
    assert status == 1
    asked = [line.split()[1] for line in said if "pytest" not in line]
    assert asked == ["kernels.backends", "benchmarks.kernels", "benchmarks.throughput"]
    assert "kernels beside their rivals (exit 3)" in output and "(exit 124)" in output, (
        "the one failed, the other was cut"
    )
    assert "left out: the trainer's own figures need a dataset" in output
