"""What a score is called, and what stands beside it: no pretraining, and the constant answer."""

import pytest

from recipe.errors import UserError
from recipe.pareto import draw, main
from recipe.records import write_record
from tests.tiny.records import record_run


def test_a_score_without_the_start_from_mnli_is_never_called_glue(tmp_path, capsys):
    tasks = {"CoLA": 10.0, "SST-2": 80.0, "MRPC": 70.0, "STS-B": 20.0, "RTE": 50.0}
    made = record_run(tmp_path / "runs", "a", "mosaic_bert", 1.0, tasks)
    made["glue"]["protocol"]["from_mnli"] = False
    write_record(tmp_path / "runs" / "a", made)
    page = draw([tmp_path / "runs"], tmp_path / "out")[2].read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert printed.startswith(
        "Score on GLUE-5, no MNLI start, dev against dollars of pretraining - mean of 5 tasks: GLUE-5,"
    )
    assert "Score on GLUE-5, no MNLI start, dev" in page and "GLUE tasks" not in page + printed
    with pytest.raises(
        UserError, match="mean of 8 GLUE tasks, these runs' of 5 tasks: GLUE-5, no MNLI start, dev; say"
    ):
        draw([tmp_path / "runs"], tmp_path / "out", published=True)


def test_scores_are_drawn_beside_no_pretraining_and_the_constant_answer(runs, tmp_path, capsys):
    """The floor has a learning rate of its own, and nothing else."""
    folder, made = runs
    for record in made.values():
        record["glue"]["constant"] = {"CoLA": 0.0, "RTE": 52.5}
        place = folder / "old" if record["model"] == "hf_bert" else folder
        write_record(place / record["name"], record)
    for seed, score in ((17, 50.0), (18, 52.0)):
        start = record_run(tmp_path / "floor", f"start-s{seed}", "mosaic_bert", 0.01, {"CoLA": 1.0, "RTE": score})
        start["config"] |= {"seed": seed}
        start["glue"]["protocol"]["lr_scale"] = 2.0
        write_record(tmp_path / "floor" / f"start-s{seed}", start)
    for record in made.values():
        record["glue"]["protocol"]["lr_scale"] = 5.0
        write_record((folder / "old" if record["model"] == "hf_bert" else folder) / record["name"], record)
    out = tmp_path / "out"
    assert main([str(folder), "--out", str(out), "--floor", str(tmp_path / "floor")]) == 0
    printed, page = capsys.readouterr().out, (out / "pareto.html").read_text("utf-8")
    # The means are 25.5 and 26.5; Student's t with one degree, 12.706, times 0.7071 / sqrt(2)
    assert "each at the learning rate that was chosen for it: mosaic_bert 26.00 ± 6.35." in printed
    assert "most common answer to every example, 26.25." in printed and '"dash":"dashdot"' in page
    assert "constant answer" in (out / "pareto.svg").read_text("utf-8")
    start["glue"]["protocol"]["epochs"] = 9
    write_record(tmp_path / "floor" / "start-s18", start)
    assert main([str(folder), "--out", str(out), "--floor", str(tmp_path / "floor")]) == 2
    assert "differ in protocol.epochs" in capsys.readouterr().err
