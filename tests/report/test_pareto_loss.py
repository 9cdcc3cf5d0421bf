"""The evaluation loss against cost, of runs that nobody fine-tuned; tests/report/test_pareto.py has all that measures share."""

from __future__ import annotations

import html

import pytest

from recipe.errors import UserError
from recipe.pareto import draw, main
from recipe.records import write_record
from tests.tiny.records import record_run, rows_of

EVALUATION = {"path": "data/x", "eval_split": "validation", "eval_mask_rate": 0.15, "eval_documents": 1000,
              "sequence_length": 128}  # fmt: skip


def evaluated(folder, label, model, hours, loss, seed=0):
    """A run that was never fine-tuned; what it cost is its duration, so seeds of one duration belong together."""
    config = {"seed": seed, "duration": f"{hours}", "data": dict(EVALUATION)}
    last = {"loss": loss, "masked_accuracy": 0.25, "batch": 9, "tokens": 5}
    return record_run(folder, label, model, hours, config=config, eval=last, batches=9)


def test_losses_are_drawn_of_runs_that_have_no_scores(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for seed, more in enumerate((-0.1, 0.0, 0.1)):
        evaluated(runs, f"short-s{seed}", "mosaic_bert", 1.0, 5.0 + more, seed)
        evaluated(runs, f"long-s{seed}", "mosaic_bert", 4.0, 3.0 + more, seed)
        evaluated(runs, f"bert-s{seed}", "hf_bert", 8.0, 4.0 + more, seed)
        evaluated(runs, f"cheap-s{seed}", "hf_bert", 2.0, 5.5 + more, seed)
    evaluated(runs, "worse", "mosaic_bert", 6.0, 3.5)
    evaluated(runs, "unmasked", "mosaic_bert", 2.0, None)
    record_run(runs, "unmeasured", "mosaic_bert", 2.0, eval=None)
    assert main(["plot", str(runs), "--out", str(out), "--measure", "loss"]) == 0
    assert sorted(file.name for file in out.iterdir()) == ["loss.csv", "loss.html", "loss.png", "loss.svg"]
    rows = rows_of(out / "loss.csv")
    assert {name: row["frontier"] for name, row in rows.items()} == {
        "short (3 seeds)": "yes", "long (3 seeds)": "yes", "worse": "no", "bert (3 seeds)": "yes",
        "cheap (3 seeds)": "yes",
    }  # fmt: skip
    assert float(rows["long (3 seeds)"]["mlm_loss"]) == pytest.approx(3.0)
    assert float(rows["long (3 seeds)"]["ci95"]) == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert "score" not in rows["worse"] and "glue_usd" not in rows["worse"]
    printed = capsys.readouterr().out
    page = html.unescape((out / "loss.html").read_text(encoding="utf-8"))
    # Half way from 5 to 3 nats is half way from $20 to $80 in the logarithm.
    says = "At loss 4.00 nats, the lowest that both reach: mosaic_bert $40.00, hf_bert $160.00, 4.00 times as much; "
    assert says + "mosaic_bert saves 75% (interpolated); beyond chance" in printed and says in page
    for text in (
        "unmasked: no evaluation loss",
        "unmeasured: no evaluation loss",
        "1,000 held-out documents, 15 % of the",
    ):
        assert text in printed and text in page
    assert "evaluation loss (nats, lower is better)" in page and r"loss 3.00 \u00b1 0.25 (95 %, 3 seeds) nats" in page
    assert "score" not in printed and "GLUE" not in printed


def test_a_loss_is_never_mixed_with_another_evaluations(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    evaluated(runs, "a", "mosaic_bert", 1.0, 5.0)
    other = evaluated(runs, "b", "mosaic_bert", 2.0, 4.0)
    other["config"]["data"]["eval_mask_rate"] = 0.3
    write_record(runs / "b", other)
    command = [str(runs), "--out", str(out), "--measure", "loss"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "differ in data.eval_mask_rate: 0.15 in a; 0.3 in b" in error and error.count("\n") == 1 and not out.exists()
    assert main([*command, "--mixed"]) == 0
    assert [row["protocol"] for row in rows_of(out / "loss.csv").values()] == [
        "data.eval_mask_rate 0.15",
        "data.eval_mask_rate 0.3",
    ]
    for more, says in (("--tasks=RTE", "an evaluation loss has no tasks"), ("--published", "those points are scores")):
        assert main([*command, "--mixed", more]) == 2
        assert says in capsys.readouterr().err
    with pytest.raises(UserError, match="measure `perplexity`: expected one of score, pairs, loss"):
        draw([runs], out, measure="perplexity")


def test_a_law_of_four_budgets_foretells_and_is_held_to_account(tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "out"
    for budget in (1.0, 3.0, 10.0, 30.0):
        for seed, more in enumerate((-0.01, 0.0, 0.01)):
            evaluated(runs, f"m{budget:g}-s{seed}", "mosaic_bert", budget, 2.0 + 3.0 * budget**-0.5 + more, seed)
    for budget in (1.0, 3.0, 10.0):
        evaluated(runs, f"b{budget:g}", "hf_bert", budget, 2.5 + 3.0 * budget**-0.5)
    assert main(["plot", str(runs), "--out", str(out), "--measure", "loss"]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if "fitted to" in line and "loss = " in line]
    # $20 an hour: 30 hours are $600, and three times that is as far as it goes
    assert line.startswith("mosaic_bert, loss = 2.0") and "fitted to 12 runs" in line
    assert "$600.00, the law foretold 2.5" in line and "measured is 2.55 nats, inside" in line
    assert "; $1,800.00 should give 2.3" in line and line.endswith("nats (not measured).")
    page = html.unescape((out / "loss.html").read_text(encoding="utf-8"))
    assert line in page and "toself" in page
    # a score follows no such law
    assert "fitted to" not in (out / "loss.csv").read_text()
