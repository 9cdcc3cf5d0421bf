"""The commands for other people's machines, with an interpreter that only says what it is asked for: order and words."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INTERPRETER = """#!/usr/bin/env bash
echo "$*" >> said
run=${RUN:-runs/base-books}
case "$*" in
    *recipe.train*) mkdir -p $run && touch $run/run.json;;
    *recipe.glue*) [ -z "${STOPS:-}" ] || exit 3; mkdir -p $run/glue $run/pareto
        touch $run/glue/scores.md $run/pareto/pareto.{png,csv};;
    *"-m pip"*) mkdir -p "$CACHE/site"; echo "$PYTHONPATH" >> paths;;
    *benchmarks.gpu*) echo "$XDG_CACHE_HOME $TRITON_CACHE_DIR $PYTHONPATH" >> paths;;
esac
"""


@pytest.fixture
def call(tmp_path):
    """A function that runs a script of benchmarks/ on its own, with settings; gives (status, output, calls)."""
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks/gpu_settings.sh", tmp_path / "benchmarks")
    python = tmp_path / "python"
    python.write_text(INTERPRETER)
    python.chmod(0o755)

    def run(script: str, *words: str, **settings: str) -> tuple[int, str, list[str]]:
        target = tmp_path / "benchmarks" / script
        shutil.copy(ROOT / "benchmarks" / script, target)
        done = subprocess.run(
            ["bash", str(target), str(python), *words], capture_output=True, text=True, check=False, timeout=60,
            env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": "mine", **settings},
        )  # fmt: skip
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


def test_a_point_that_is_stopped_leaves_its_records_and_goes_on(call, tmp_path):
    folders = {"OUT": "kept", "RUN": "elsewhere/run"}
    status, _, said = call("gpu_point.sh", "data/books", "glue", STOPS="1", **folders)
    assert status == 3 and len(said) == 2, "nothing is drawn of what has no scores"
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"run.json"}
    status, _, said = call("gpu_point.sh", "data/books", "glue", **folders)
    assert status == 0 and said[2] == said[0] and "out=elsewhere/run autoresume=true" in said[0]
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        "run.json",
        "scores.md",
        "pareto.png",
        "pareto.csv",
    }


def test_nothing_is_written_into_the_home_and_wheels_lie_before_other_packages(call, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/composer-1-py3-none-any.whl").touch()
    commit, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache"
    for _ in range(2):
        status, output, said = call("gpu.sh", "data/mine", CACHE="cache", COMMIT=commit, HOME="/dev/null/home")
        assert status == 0, output
    pip = (
        "-m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir "
        f"--target {cache}/site wheels/composer-1-py3-none-any.whl"
    )
    assert said == [pip, "-m benchmarks.gpu data/mine", "-m benchmarks.gpu data/mine"], "installed once"
    assert (tmp_path / "paths").read_text().splitlines()[1:] == [f"{cache} {cache}/triton {cache}/site:mine"] * 2
    assert (tmp_path / "COMMIT").read_text() == commit + "\n"
