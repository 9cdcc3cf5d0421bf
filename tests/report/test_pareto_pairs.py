"""Minimal pairs against cost: points, floors, what is refused; tests/report/test_pareto.py has all that measures share."""

from __future__ import annotations

import html

import pytest

from recipe.pareto import draw, main
from recipe.report import study
from tests.tiny.records import pair_scores, record_run, rows_of


def scored(folder, name, model, hours, scores, seed=17, **how):
    """A run with minimal pairs and without fine-tuning."""
    config = {"seed": seed, "duration": f"{hours}ba"}
    record_run(folder, name, model, hours, config=config, pairs=pair_scores(scores, **how))


@pytest.fixture
def runs(tmp_path):
    for seed, more in ((17, -1.0), (18, 0.0), (19, 1.0)):
        for name, hours, score in (("short", 1.0, 60.0), ("long", 4.0, 80.0)):
            scored(
                tmp_path / "runs", f"{name}-s{seed}", "mosaic_bert", hours, {"a": score + more, "b": score - more}, seed
            )
        scored(tmp_path / "runs", f"bert-s{seed}", "hf_bert", 4.0, {"a": 55 + more, "b": 55.0}, seed)
        scored(tmp_path / "floor", f"start-s{seed}", "mosaic_bert", 0.01, {"a": 50 + more, "b": 50.0}, seed)
    return tmp_path


def test_pairs_are_drawn_beside_what_no_pretraining_gives(runs, capsys):
    out = runs / "out"
    command = [str(runs / "runs"), "--out", str(out), "--measure", "pairs"]
    assert main([*command, "--floor", str(runs / "floor")]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["pairs.csv", "pairs.html", "pairs.png", "pairs.svg"]
    rows = rows_of(out / "pairs.csv")
    assert {name: float(row["pairs"]) for name, row in rows.items()} == pytest.approx(
        {"short (3 seeds)": 60.0, "long (3 seeds)": 80.0, "bert (3 seeds)": 55.0}
    )
    assert float(rows["bert (3 seeds)"]["a"]) == pytest.approx(55.0) and "score" not in rows["bert (3 seeds)"]
    printed, page = capsys.readouterr().out, html.unescape((out / "pairs.html").read_text("utf-8"))
    assert (
        "start" not in rows
        and "guessing scores 50" in printed
        and "800 pairs of 2 kinds, without fine-tuning" in printed
    )
    # The three means are 49.5, 50 and 50.5.
    assert "Dashed: without pretraining, measured alike: mosaic_bert 50.0 ± 1.2." in printed
    assert "Dashed: without pretraining" in page and '"dash":"dash"' in page.replace(" ", "")
    with_floor = (out / "pairs.svg").read_text()
    assert main(command) == 0
    assert "Dashed" not in capsys.readouterr().out and (out / "pairs.svg").read_text() != with_floor


def test_many_paradigms_are_columns_of_their_fields(tmp_path):
    scored(tmp_path, "a", "mosaic_bert", 1.0, {f"p{i}": 50.0 + i for i in range(9)}, field="morphology")
    (row,) = study.table(study.gather([tmp_path], measure="pairs"))
    assert row["morphology"] == 54.0 and "p0" not in row


@pytest.mark.parametrize("where", ["runs", "floor"])
def test_scores_on_other_pairs_are_refused(runs, where, capsys):
    scored(runs / where, "other", "mosaic_bert", 1.0, {"a": 60.0}, data="def")
    command = [str(runs / "runs"), "--measure", "pairs", "--out", str(runs / "out"), "--floor", str(runs / "floor")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "differ in pairs.data: abc in " in error and "def in other; score the same pairs of all" in error
    assert error.count("\n") == 1 and not (runs / "out").exists()


def test_what_has_no_pairs_says_so(runs, capsys):
    record_run(runs / "bare", "bare")
    found = study.gather([runs / "runs", runs / "bare"], measure="pairs")
    assert list(found.left_out.values()) == ["no minimal pairs; run recipe.pairs on its checkpoint"]
    command = [str(runs / "runs"), "--measure", "pairs", "--out", str(runs / "out")]
    for more, says in (
        (["--tasks", "RTE"], "--tasks RTE: minimal pairs have no tasks"),
        (["--floor", str(runs / "bare")], "no minimal pairs; run recipe.pairs"),
        (["--published"], "those points are scores"),
    ):
        assert main([*command, *more]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_a_floor_of_a_model_that_is_not_drawn_has_a_line_too(runs):
    scored(runs / "floor", "other", "modern", 0.01, {"a": 49.0, "b": 50.0})
    found = study.gather([runs / "runs"], measure="pairs", floor=[runs / "floor"])
    assert set(found.floors) == {"mosaic_bert", "modern"} and found.floors["modern"] == (49.5, None)
    assert all(
        file.stat().st_size for file in draw([runs / "runs"], runs / "out", measure="pairs", floor=[runs / "floor"])
    )
