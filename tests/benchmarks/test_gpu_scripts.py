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


def test_a_point_is_prepared_trained_scored_and_drawn(call, tmp_path):
    status, output, said = call("gpu_point.sh", "data/mine", "duration=1ba", "seed=3", "--", "seeds=2")
    assert status == 0, output
    assert said == [
        "-m recipe.prepare yamls/data/books.yaml out=data/mine",
        "-m recipe.train yamls/pretrain/books-base.yaml data.path=data/mine duration=1ba seed=3 out=runs/base-books "
        "autoresume=true",
        "-m recipe.glue yamls/glue/books-base.yaml seeds=2 checkpoint=runs/base-books",
        "-m benchmarks.pareto plot benchmarks/results/base-books --out runs/base-books/pareto",
    ]
    kept = {path.name for path in (tmp_path / "benchmarks/results/base-books").iterdir()}
    assert kept == {"run.json", "scores.md", "pareto.png", "pareto.csv"}, "records, and no weights"


def test_a_point_without_words_has_the_yamls_own(call):
    _, _, said = call("gpu_point.sh")
    assert said[1] == (
        "-m recipe.train yamls/pretrain/books-base.yaml data.path=data/books out=runs/base-books autoresume=true"
    )
    assert said[2] == "-m recipe.glue yamls/glue/books-base.yaml checkpoint=runs/base-books"


def test_every_part_runs_whatever_came_of_the_last_and_none_beyond_the_time(call):
    status, output, said = call("gpu.sh", "data/none", ALL="3", LEAST="1")
    assert status == 1
    asked = [line.split()[1] for line in said if "pytest" not in line]
    assert asked == ["kernels.backends", "benchmarks.kernels", "benchmarks.throughput"]
    assert "kernels beside their rivals (exit 3)" in output and "(exit 124)" in output, (
        "the one failed, the other was cut"
    )
    assert "left out: the trainer's own figures need a dataset" in output
