"""README and docs/ promise nothing that is not in the tree: files exist, links lead somewhere, every measured number stands in a
result. Their commands are tests/test_first_minutes.py's."""

from __future__ import annotations

import csv
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev

import pytest

from benchmarks import data, demo, soak
from recipe.corpus import doc_pairs
from recipe.cost import seeds
from recipe.records import read_record

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    file: file.read_text("utf-8")
    for file in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
}
RESULTS = PAGES[ROOT / "docs/results.md"]
COLUMNS = {
    "pairs right": "pairs",
    "evaluation loss": "mlm_loss",
    "dollars": "usd",
    "seconds": "seconds",
    "tokens": "tokens",
}
MOST_LINES = 90  # of README: it answers what this is and what to type; all else is a page


def table_after(marker: str, page: str = RESULTS) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of the Markdown table that follows `<!-- marker -->` in a page."""
    lines = page.split(f"<!-- {marker} -->")[1].strip().split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return head, rows


@pytest.mark.parametrize(("study", "file"), [("demo", "pairs.csv"), ("books-seeds", "loss.csv")])
def test_measured_numbers_are_those_of_the_results(study, file):
    with (ROOT / "benchmarks/results" / study / file).open(newline="", encoding="utf-8") as file:
        measured = {row["run"]: row for row in csv.DictReader(file)}
    (_, *columns), rows = table_after(study)
    assert {"evaluation loss", "dollars"} <= set(columns)
    shown = {run.strip("`"): cells for run, *cells in rows}
    assert set(shown) == set(measured)
    for run, cells in shown.items():
        for column, cell in zip(columns, cells, strict=True):
            digits = cell.replace(",", "").strip("$")
            decimals = len(digits.partition(".")[2])
            assert float(digits) == round(float(measured[run][COLUMNS[column]]), decimals), (run, column)


def test_both_kinds_of_the_demo_s_pairs_rise_with_pretraining_and_what_is_said_of_them_is_measured():
    folder = ROOT / "benchmarks/results/demo"

    def of(pattern: str, paradigm: str) -> tuple[float, float]:
        found = [
            read_record(run)["pairs"]["paradigms"][paradigm]["score"] for run in folder.glob(f"{pattern}-s*/run.json")
        ]
        assert len(found) == 3
        return fmean(found), seeds.interval(found)

    said = " ".join(RESULTS.split())
    for paradigm in doc_pairs.PARADIGMS:
        floor = of("floor/mosaic_bert-1ba", paradigm)
        curve = [of(f"runs/mosaic_bert-{budget}", paradigm) for budget in demo.BUDGETS[demo.TRAIN]]
        dearest = curve[-1]
        assert all(one < other for (one, _), (other, _) in pairwise(curve)), paradigm
        assert dearest[0] - floor[0] > math.hypot(dearest[1], floor[1]), f"{paradigm} is not told from its floor"
        for mean, half in (dearest, floor):
            assert f"{mean:.1f} ± {half:.1f}" in said, paradigm


def test_measured_rows_of_the_data_side_are_those_of_the_result():
    record = json.loads((ROOT / "benchmarks/results/data.json").read_text())
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in data.table(record).splitlines()]
    _, shown = table_after("data")
    assert len(shown) >= 8 and all(row in rows for row in shown)


def test_measured_ratios_of_the_whole_step_are_those_of_the_result():
    cases = json.loads((ROOT / "benchmarks/results/throughput-cpu.json").read_text())["cases"]
    measured = {(str(case["length"]), row["name"]): row for case in cases for row in case["rows"]}
    _, shown = table_after("throughput")
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
    assert f"intervals of {min(halves):.0f} to {math.ceil(max(halves))} points" in " ".join(RESULTS.split())
    one_by_one = sum(float(row["usd"]) for row in rows if (row["model"], row["way"]) == ("mosaic_bert", "run"))
    branches = [row for row in rows if row["way"] == "branch"]
    dearest = max(branches, key=lambda row: float(row["usd"]))
    trunk = float(dearest["usd"]) - float(dearest["own_usd"]) + sum(float(row["own_usd"]) for row in branches)
    assert f"for {trunk / one_by_one:.0%}".replace("%", " %") in " ".join(RESULTS.split())
    beside = json.loads((ROOT / "benchmarks/results/trainer.json").read_text())["trainer"]["trainer_of_bare"]
    assert f"at {beside['p50']:.0%}".replace("%", " %") + " of a bare loop's speed" in " ".join(RESULTS.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_and_path_exists(page):
    links = [page.parent / name for name in re.findall(r"\]\(([^)#\s]+)\)", PAGES[page]) if "://" not in name]
    paths = re.findall(r"`((?:yamls|benchmarks|tests|recipe|kernels|docs)/[\w./-]+)`", PAGES[page])
    for target in [*links, *(ROOT / name for name in paths if "NAME" not in name)]:
        assert target.exists(), target


def test_readme_is_short_and_leads_to_every_page():
    readme = PAGES[ROOT / "README.md"]
    assert len(readme.splitlines()) <= MOST_LINES
    pages = {file.relative_to(ROOT).as_posix() for file in PAGES if file.parent.name == "docs"}
    assert len(pages) >= 9 and pages <= set(re.findall(r"\]\(([^)#]+)\)", readme))


def test_every_row_of_a_table_has_all_its_cells():
    for page, text in PAGES.items():
        tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        for table in tables:
            bars = {len(re.sub(r"\\\||`[^`]*`", "", line).split("|")) for line in table.splitlines()}
            assert len(bars) == 1, (page.name, table[:200])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {
        name for text in PAGES.values() for name in re.findall(r"(?:^ {4}|`)make ([a-z][\w-]*)", text, re.MULTILINE)
    }
    assert {"demo", "test", "setup"} <= named
    for target in named:
        assert f"\n{target}:" in makefile, target
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_the_page_on_fine_tuning_has_the_recorded_retrieval():
    found = json.loads((ROOT / "benchmarks/results/retrieval/cranfield-all-minilm-l6-v2.json").read_text())
    ours, theirs, floor = (found[name]["ndcg@10"] for name in ("recipe.retrieve", "sentence_transformers", "tfidf"))
    page = " ".join((ROOT / "docs/finetune.md").read_text("utf-8").split())
    assert f"nDCG@10 of {ours:.2f}, by `recipe.retrieve` and by sentence-transformers; TF-IDF has {floor:.2f}" in page
    assert f"{ours:.2f}" == f"{theirs:.2f}"


def test_the_page_on_fine_tuning_has_the_recorded_comparison():
    tasks = json.loads((ROOT / "benchmarks/results/reach/minilm.json").read_text())["tasks"]
    _, rows = table_after("reach", PAGES[ROOT / "docs/finetune.md"])
    assert [name for name, *_ in rows] == list(tasks)
    for name, metric, *figures in rows:
        task = tasks[name]
        means = [fmean(task[side]) for side in ("recipe", "transformers")]
        assert metric in task["metrics"] and len(task["recipe"]) == len(task["transformers"]) == 3
        assert figures == [f"{figure:.2f}" for figure in (*means, task["difference"], task["standard_error"])]
        assert abs(task["difference"]) <= 1


def test_the_page_on_fine_tuning_has_our_encoder_beside_none():
    found = json.loads((ROOT / "benchmarks/results/reach/small.json").read_text())
    page = PAGES[ROOT / "docs/finetune.md"]
    _, rows = table_after("reach-small", page)
    assert [name for name, *_ in rows] == list(found["tasks"])
    for name, metric, *shown, tfidf, constant in rows:
        task = found["tasks"][name]
        assert metric in task["metrics"] and tfidf == f"{task['tfidf']:.2f}"
        assert constant == (f"{task['constant']:.2f}" if "constant" in task else "none")
        for cell, scores in zip(shown, (task["pretrained"], task["floor"]), strict=True):
            spread = f" ± {stdev(scores):.2f}" if len(scores) == 3 else ""
            assert cell == f"{fmean(scores):.2f}{spread}"
    encoder = found["encoder"]
    assert f"{encoder['tokens'] / 1e6:.2f} million tokens" in page and f"{encoder['seconds'] / 60:.0f} minutes" in page


def test_the_page_on_fine_tuning_has_the_recorded_speed_of_prediction():
    page = PAGES[ROOT / "docs/finetune.md"]
    _, rows = table_after("predict", page)
    files = sorted((ROOT / "benchmarks/results/predict").glob("*.json"))
    assert len(rows) == len(files)
    for (name, texts, ours, theirs, sorted_, unsorted), file in zip(rows, files, strict=True):
        found = json.loads(file.read_text())
        by_speed = sorted(found["rows"], key=lambda row: -row["rows_per_s"])
        best = {side: next(row for row in by_speed if row["name"] == side) for side in ("recipe.predict", "pipeline")}
        assert name.strip("`") == file.stem and texts == f"{found['texts']:,}"
        assert [ours, theirs] == [f"{best[side]['rows_per_s']:,.0f}" for side in ("recipe.predict", "pipeline")]
        ratios = (found["times_the_fastest_pipeline"], found["times_the_fastest_pipeline_unsorted"])
        assert [sorted_, unsorted] == [f"{ratio:.2f}" for ratio in ratios]


def test_the_page_of_results_has_the_recorded_overlap():
    found = json.loads((ROOT / "benchmarks/results/frontier/overlap.json").read_text())
    _, rows = table_after("overlap", RESULTS)
    keys = ("texts", "searched", "found")
    assert rows == [[name, *(f"{row[key]:,}" for key in keys)] for name, row in found["sets"].items()]
    assert f"The books' {found['words_of_text']:,} words" in RESULTS


def test_the_page_on_experiments_has_every_trial_of_the_campaign_s_settings():
    trials = json.loads((ROOT / "benchmarks/results/frontier/tuning.json").read_text())["trials"]
    _, rows = table_after("tuning", PAGES[ROOT / "docs/experiments.md"])
    shown = [[cell.strip("`").replace(",", "") for cell in row] for row in rows]
    keys = ("model", "batch_size", "lr", "batches", "tokens")
    assert shown == [[*(f"{one[key]}" for key in keys), f"{one['loss_15']:.3f}"] for one in trials]


def test_the_page_on_experiments_has_the_recorded_starts_of_the_words():
    found = json.loads((ROOT / "benchmarks/results/frontier/initial-words.json").read_text())
    _, (none, *rows) = table_after("initial-words", PAGES[ROOT / "docs/experiments.md"])
    scores = {f"at {name}": found["banking77"]["accuracy"][f"pilot-{key}"] for name, key in
              (("random", "random"), ("their frequencies", "frequencies"), ("counts", "counts"))}  # fmt: skip
    assert none[-1] == f"{found['banking77']['accuracy']['floor']:.2f}"
    assert len(rows) == len(found["runs"])
    for (model, begin, losses, score), run in zip(rows, found["runs"], strict=True):
        assert model.strip("`") == run["model"] and begin.endswith(run["initial_words"])
        assert losses == ", ".join(f"{loss:.3f}" for _, _, loss, _ in run["loss_15"])
        assert score == (f"{scores[begin]:.2f}" if run["model"] == "mosaic_bert" else "not run")
    cosines = found["mean_cosine_of_last_hidden_states"].values()
    page = " ".join(PAGES[ROOT / "docs/experiments.md"].split())
    first, plateau, frequencies, counts = (f"{value:.2f}" for value in cosines)
    assert f"is {first} in the random initialisation, **{plateau}** after 400 batches" in page
    assert f"{frequencies} from frequencies and {counts} from counts" in page


def test_the_page_on_scale_has_the_recorded_times_of_a_cut_link():
    record = json.loads((ROOT / "benchmarks/results/cut-link.json").read_text())
    page = " ".join((ROOT / "docs/scale.md").read_text("utf-8").split())
    settings = record["settings"]
    line, end, first = (f"{record[key]:.0f} s" for key in ("line_s", "end_s", "first_batch_s"))
    with_timeout = f"With `rank_timeout={settings['rank_timeout_s']}` the other rank"
    assert f"{with_timeout} said who is gone after {line}, its process had ended after {end}" in page
    assert f"the first batch of the next start, from the store's checkpoint, after {first}" in page
    assert f"(load {settings['load_before']:.1f})" in page


def test_the_page_of_results_has_the_damaged_files_that_were_read():
    lines = (ROOT / "benchmarks/results/fuzz.jsonl").read_text().splitlines()
    found = list(map(json.loads, lines))
    assert all(one["failed"] is None and one["dirty"] is False for one in found)
    _, rows = table_after("fuzz")
    assert rows == [
        [one["reader"], *(f"{one.get(key, 0):,}" for key in ("examples", "read", "refused")), f"`{one['commit'][:7]}`"]
        for one in found
    ]


def test_the_page_of_results_has_the_recorded_faults():
    files = ("soak-prepare-train.json", "soak-own.json")
    records = [json.loads((ROOT / "benchmarks/results" / file).read_text()) for file in files]
    assert records[0]["settings"]["commit"] == records[1]["settings"]["commit"], "one code"
    rows = [row for record in records for row in record["rows"]]
    *table, said = soak.table({"rows": rows})
    page = " ".join(RESULTS.split())
    assert "\n".join(table) in RESULTS and f"{said.capitalize()}, on one core" in page
    assert f"{sum(row['traceback'] for row in rows)} commands that were struck ended in a traceback" in page
    for name in ("prepare", "train-2"):
        seconds = fmean(row["cpu_s"] for row in rows if row["subject"] == name)
        assert f"{seconds:.0f} seconds of a core in {name}" in page
