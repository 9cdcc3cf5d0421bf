"""The README promises nothing that is not in the tree: files exist, commands parse, every measured number stands in a result."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest

from benchmarks import data

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COLUMNS = ("score", "mlm_loss", "usd", "seconds", "tokens")


def table_after(marker: str) -> list[list[str]]:
    """The cells of the Markdown table that follows `<!-- marker -->`, without its head."""
    lines = README.split(f"<!-- {marker} -->")[1].strip().splitlines()
    rows = [line for line in lines[: lines.index("") if "" in lines else None] if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@pytest.mark.parametrize("study", ["demo", "books-seeds"])
def test_measured_numbers_are_those_of_the_results(study):
    with (ROOT / "benchmarks/results" / study / "pareto.csv").open(newline="", encoding="utf-8") as file:
        measured = {row["run"]: row for row in csv.DictReader(file)}
    shown = {run.strip("`"): cells for run, *cells in table_after(study)}
    assert set(shown) == set(measured)
    for run, cells in shown.items():
        for column, cell in zip(COLUMNS, cells, strict=True):
            digits = cell.replace(",", "").strip("$")
            decimals = len(digits.partition(".")[2])
            assert float(digits) == round(float(measured[run][column]), decimals), (run, column)


def test_measured_rows_of_the_data_side_are_those_of_the_result():
    record = json.loads((ROOT / "benchmarks/results/data.json").read_text())
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in data.table(record).splitlines()]
    shown = table_after("data")
    assert len(shown) >= 8 and all(row in rows for row in shown)


def test_measured_ratios_of_the_whole_step_are_those_of_the_result():
    cases = json.loads((ROOT / "benchmarks/results/throughput-cpu.json").read_text())["cases"]
    measured = {(str(case["length"]), row["name"]): row for case in cases for row in case["rows"]}
    shown = table_after("throughput")
    assert len(shown) >= 8
    for length, name, rate, ratio in shown:
        row = measured[length, name.strip("`")]
        assert rate == f"{row['tokens_per_s']:,.0f}" and ratio == (
            f"{row['this_is']:.2f} x" if row.get("this_is") else ""
        )


def test_what_is_said_of_the_trunk_the_intervals_and_the_trainer_is_measured():
    with (ROOT / "benchmarks/results/books-seeds/pareto.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    halves = [float(row["ci95"]) for row in rows]
    assert f"intervals of {min(halves):.0f} to {math.ceil(max(halves))} points" in README
    one_by_one = sum(float(row["usd"]) for row in rows if (row["model"], row["way"]) == ("mosaic_bert", "run"))
    branches = [row for row in rows if row["way"] == "branch"]
    dearest = max(branches, key=lambda row: float(row["usd"]))
    trunk = float(dearest["usd"]) - float(dearest["own_usd"]) + sum(float(row["own_usd"]) for row in branches)
    assert f"for {trunk / one_by_one:.0%}".replace("%", " %") in README
    beside = json.loads((ROOT / "benchmarks/results/trainer.json").read_text())["trainer"]["trainer_of_bare"]
    assert f"at {beside['p50']:.0%}".replace("%", " %") + " of a bare loop's speed" in README


def test_every_local_link_and_path_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    paths = re.findall(r"`((?:yamls|benchmarks|tests|recipe|kernels)/[\w./-]+)`", README)
    local = [name for name in [*links, *paths] if not name.startswith("http")]
    assert len(local) > 8
    for name in local:
        assert (ROOT / name).exists(), name


def test_every_command_names_a_module_and_a_file_that_exist():
    commands = re.findall(r"python -m ([\w.]+) ([\w./*-]+)", README)
    assert len(commands) >= 4
    for module, argument in commands:
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), module
        if argument.endswith(".yaml"):
            assert (ROOT / argument).is_file(), argument


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
