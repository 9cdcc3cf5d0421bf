import html
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from recipe.cost.frontier import BRANCH, Curve, value_at
from recipe.cost.prices import bill
from recipe.errors import UserError
from recipe.pareto import draw, main
from recipe.records import write_record
from recipe.report import published, study, words
from tests.tiny.records import DEVICES, PRICE, record_run, rows_of

ROOT = Path(__file__).resolve().parents[2]


def test_the_csv_holds_the_records_numbers(runs, tmp_path, capsys):
    folder, made = runs
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out" / "pareto.csv")
    assert set(rows) == set(made)
    for name, record in made.items():
        row = rows[name]
        for column in ("usd", "gpu_hours", "device_hours", "seconds"):
            assert float(row[column]) == record["cost"][column]
        tasks = record["glue"]["tasks"]
        assert {task: float(row[task]) for task in tasks} == {task: tasks[task]["score"] for task in tasks}
        assert float(row["score"]) == pytest.approx((tasks["CoLA"]["score"] + tasks["RTE"]["score"]) / 2)
        assert int(row["tokens"]) == record["tokens"] and int(row["parameters"]) == 137_000_001
        assert float(row["mlm_loss"]) == 2.125 and float(row["glue_usd"]) == record["glue"]["cost"]["usd"]
        assert row["frontier"] == ("no" if name == "mosaic-slow" else "yes")
    printed = capsys.readouterr().out
    assert all(name in printed for name in made)
    assert "mean of 2 of 8 GLUE tasks (CoLA, RTE; not in it: QQP)" in printed
    assert "At score 57.00, the highest that both reach: mosaic_bert" in printed and "(interpolated)" in printed


def test_the_figure_is_a_picture_of_a_readmes_width_with_each_models_colour(runs, tmp_path):
    png = draw([runs[0]], tmp_path / "out")[0]
    with Image.open(png) as image:
        image.load()
        assert image.size == (1280, 832)
        seen = {color for _, color in image.convert("RGB").getcolors(1 << 20)}
    found = study.gather([runs[0]])
    for color, _ in study.styles(found).values():
        assert tuple(bytes.fromhex(color[1:])) in seen


@pytest.mark.parametrize("axis", ["usd", "gpu_hours", "tokens", "seconds"])
def test_the_page_is_self_contained_and_holds_the_same_numbers(runs, tmp_path, axis):
    folder, made = runs
    page = draw([folder], tmp_path / "out", axis)[2].read_text(encoding="utf-8")
    assert not re.search(r"<(script|link|img|iframe|source)\b[^>]*\b(src|href)\s*=", page)
    assert "Plotly.newPlot" in page and "@import" not in page.split("</style>")[0]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    for name, record in made.items():
        assert name in cells
        for value in (record["cost"]["usd"], record["cost"]["seconds"], record["glue"]["tasks"]["RTE"]["score"]):
            assert f"{value:,.6g}" in cells
        assert f"{record['tokens']:,}" in cells
        assert f"<summary>{name}</summary>" in page
    plotted = {point.cost(axis): point.value for point in study.gather([folder], axis).points}
    for cost, score in plotted.items():
        assert re.search(rf'"x":\[[^\]]*\b{re.escape(repr(cost).removesuffix(".0"))}\b', page), cost
        assert re.search(rf'"y":\[[^\]]*\b{re.escape(repr(score).removesuffix(".0"))}\b', page), score


def test_names_cannot_inject_markup(tmp_path):
    record_run(tmp_path / "runs", "a", "mosaic_bert", 1.0, {"CoLA": 40.0}, name="<script>alert(1)</script>")
    page = draw([tmp_path / "runs"], tmp_path / "out")[2].read_text(encoding="utf-8")
    assert "<script>alert" not in page and html.escape("<script>alert(1)</script>") in page


def test_runs_are_found_by_folder_glob_and_file_and_counted_once(runs):
    folder, made = runs
    words = [folder, f"{folder}/mosaic-*", folder / "old" / "bert-1" / "run.json", folder / "mosaic-1"]
    assert sorted(one.name for one in study.gather(words).runs) == sorted(made)


def test_a_fine_tuning_inside_a_runs_folder_is_no_second_run(runs):
    folder, made = runs
    write_record(folder / "mosaic-1" / "glue", {**made["mosaic-1"], "kind": "glue", "name": "glue"})
    found = study.gather([folder])
    assert len(found.runs) == len(made) and not found.left_out


def test_runs_of_one_name_are_told_apart(tmp_path):
    for parent in ("x", "y"):
        record_run(tmp_path / parent, "same", "mosaic_bert", 1.0, {"CoLA": 40.0})
    names = {point.name for point in study.gather([tmp_path]).points}
    assert names == {str(tmp_path / "x" / "same"), str(tmp_path / "y" / "same")}


def test_what_is_no_point_is_named_with_its_reason(runs, tmp_path, capsys):
    folder, made = runs
    record_run(folder, "going", "mosaic_bert", 1.0, {"CoLA": 1.0}, status="running")
    record_run(folder, "unscored", "mosaic_bert", 1.0)
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    assert main([str(folder), str(tmp_path / "empty"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "going: not finished" in printed and "unscored: no scores" in printed and "empty: no run.json" in printed
    assert set(rows_of(out / "pareto.csv")) == set(made)
    page = (out / "pareto.html").read_text(encoding="utf-8")
    assert "going: not finished" in page and "unscored: no scores" in page


def test_tasks_choose_what_is_scored(runs, tmp_path, capsys):
    folder, _ = runs
    record_run(folder, "one-task", "mosaic_bert", 5.0, {"RTE": 71.0})
    out = tmp_path / "out"
    assert main([str(folder), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "--tasks RTE" in error and "one-task" in error and not out.exists()
    assert main([str(folder), "--out", str(out), "--tasks", "RTE"]) == 0
    rows = rows_of(out / "pareto.csv")
    assert all(float(row["score"]) == float(row["RTE"]) for row in rows.values())
    assert rows["one-task"]["CoLA"] == ""
    assert "mean of 1 of 8 GLUE tasks (RTE; not in it: QQP, CoLA)" in capsys.readouterr().out


def test_demo_tasks_are_never_called_glue(tmp_path, capsys):
    record_run(tmp_path / "runs", "a", "mosaic_bert", 0.01, {"package": 40.0}, device=DEVICES["cpu"], benchmark="demo")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--axis", "gpu_hours"]) == 0
    printed = capsys.readouterr().out
    assert "demo tasks, not GLUE" in printed and not re.search(r"(?<!not )GLUE", printed)
    assert "CPU core-hours" in (tmp_path / "out" / "pareto.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no runs given"),
        (["no/such/folder"], "no/such/folder: no such file"),
        (["no-*-match"], "no-*-match: no such file"),
    ],
)
def test_no_runs_is_a_users_mistake(words, says, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_without_a_single_point_nothing_is_written(tmp_path, capsys):
    record_run(tmp_path / "runs", "going", "mosaic_bert", 1.0, {"CoLA": 1.0}, status="running")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 2
    assert "going: not finished" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_broken_record_an_unknown_axis_and_an_out_that_is_a_file_are_users_mistakes(runs, tmp_path, capsys):
    folder, _ = runs
    (tmp_path / "file").write_text("")
    assert main([str(folder), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be made a folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="expected one of usd"):
        draw([folder], tmp_path / "out", "euro")
    with pytest.raises(SystemExit) as stop:
        main([str(folder), "--axis", "euro"])
    assert stop.value.code == 2
    (folder / "mosaic-1" / "run.json").write_text("{")
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "mosaic-1/run.json:1: not valid JSON" in capsys.readouterr().err


def test_a_lone_run_and_equal_runs_can_be_drawn(tmp_path):
    record_run(tmp_path / "runs", "a", "mosaic_bert", 1.0, {"CoLA": 0.0})
    assert all(path.stat().st_size for path in draw([tmp_path / "runs"], tmp_path / "out"))
    record_run(tmp_path / "runs", "b", "hf_bert", 1.0, {"CoLA": 0.0})
    assert all(path.stat().st_size for path in draw([tmp_path / "runs"], tmp_path / "out"))


def test_the_line_is_the_interpolation_on_a_linear_axis_too(tmp_path):
    record_run(tmp_path / "runs", "a", "mosaic_bert", 1.0, {"CoLA": 40.0})
    record_run(tmp_path / "runs", "b", "mosaic_bert", 2.0, {"CoLA": 60.0})
    front = study.gather([tmp_path / "runs"]).fronts[Curve("mosaic_bert")]
    xs, ys = study.line_of(front, "usd")
    assert len(xs) > 2 and ys == pytest.approx([value_at(front, "usd", min(x, front[-1].usd)) for x in xs])


@pytest.mark.parametrize(("low", "high"), [(0.0006, 0.0026), (8, 260), (1e6, 4e10), (39, 120)])
def test_a_logarithmic_axis_has_enough_round_ticks(low, high):
    marks = study.ticks(low, high)
    assert len(marks) >= 3 and marks == sorted(marks) and low <= marks[0] and marks[-1] <= high


def test_figures_are_redrawn_without_torch(runs, tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'composer', 'streaming', 'transformers'):\n"
        "    sys.modules[name] = None\n"
        "from recipe.pareto import main\n"
        f"sys.exit(main([{str(runs[0])!r}, '--out', {str(tmp_path / 'out')!r}]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "pareto.png").is_file()


def test_plot_is_the_same_command_and_writes_an_svg(runs, tmp_path, capsys):
    words = [str(runs[0]), "--out"]
    assert main([*words, str(tmp_path / "a")]) == 0 and main(["plot", *words, str(tmp_path / "b")]) == 0
    first, second = ((tmp_path / name / "pareto.svg").read_text(encoding="utf-8") for name in "ab")
    assert first == second and first.count("<svg") == 1 and "</svg>" in first
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        f"pareto.{kind}" for kind in ("csv", "html", "png", "svg")
    ]


def test_seeds_become_one_point_with_an_interval(tmp_path, capsys):
    for seed, score in ((1, 40.0), (2, 44.0), (3, 42.0)):
        config = {"seed": seed, "duration": "1ba"}
        record_run(tmp_path / "runs", f"a-s{seed}", "mosaic_bert", 1.0 + seed / 10, {"CoLA": score}, config=config)
    record_run(tmp_path / "runs", "b", "mosaic_bert", 5.0, {"CoLA": 43.0}, config={"seed": 1, "duration": "9ba"})
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out" / "pareto.csv")
    assert set(rows) == {"a (3 seeds)", "b"}
    row = rows["a (3 seeds)"]
    assert (float(row["score"]), row["seeds"], rows["b"]["ci95"]) == (42.0, "3", "")
    assert float(row["ci95"]) == pytest.approx(4.3027 * 2 / 3**0.5, rel=1e-4)
    assert float(row["usd"]) == pytest.approx(1.2 * 8 * PRICE.usd_per_hour) and float(row["CoLA_std"]) == 2.0
    assert "± 4.97" in capsys.readouterr().out
    page = (tmp_path / "out" / "pareto.html").read_text(encoding="utf-8")
    assert all(f"<summary>a-s{seed}</summary>" in page for seed in (1, 2, 3)) and "95 % confidence interval" in page


def test_the_joint_frontier_is_that_of_all_models(runs, tmp_path):
    draw([runs[0]], tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "pareto.csv")
    joint = {name for name, row in rows.items() if row["joint_frontier"] == "yes"}
    points = {name: (float(row["usd"]), float(row["score"])) for name, row in rows.items()}
    best = {
        n for n, (x, y) in points.items() if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    }
    assert joint == best and joint != {name for name, row in rows.items() if row["frontier"] == "yes"}


def test_several_protocols_are_refused_and_with_the_override_labelled(runs, tmp_path, capsys):
    folder, made = runs
    other = record_run(folder, "from-mnli", "mosaic_bert", 9.0, {"CoLA": 90.0, "RTE": 95.0})
    other["glue"]["tasks"]["RTE"]["init"] = "mnli"
    write_record(folder / "from-mnli", other)
    out = tmp_path / "out"
    assert main([str(folder), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "differ in init of RTE: mnli in from-mnli; pretrained in mosaic-1" in error and not out.exists()
    assert main([str(folder), "--out", str(out), "--mixed"]) == 0
    rows = rows_of(out / "pareto.csv")
    assert {name: (row["model"], row["protocol"]) for name, row in rows.items()} == {
        name: (record["model"], f"init of RTE {'mnli' if name == 'from-mnli' else 'pretrained'}")
        for name, record in (made | {"from-mnli": other}).items()
    }
    assert "joint_frontier" not in rows["from-mnli"]  # the dearest and best run takes nobody's place on a frontier
    assert [name for name, row in rows.items() if row["frontier"] == "no"] == ["mosaic-slow"]
    printed = capsys.readouterr().out
    assert (
        "several protocols, each labelled" in printed and "from-mnli" not in printed.split("At score")[1].split("\n")[0]
    )
    assert main([str(folder / "mosaic-1"), str(folder / "mosaic-2"), "--out", str(out), "--mixed"]) == 0
    assert {row["model"] for row in rows_of(out / "pareto.csv").values()} == {"mosaic_bert"}
    assert "protocol" not in next(iter(rows_of(out / "pareto.csv").values()))


def test_the_published_points_are_named_as_such_and_are_in_no_table(tmp_path, capsys):
    tasks = dict.fromkeys(("MNLI", "QQP", "QNLI", "SST-2", "CoLA", "RTE", "MRPC", "STS-B"), 80.0)
    record_run(tmp_path / "runs", "all", "mosaic_bert", 1.0, tasks)
    record_run(tmp_path / "few", "few", "mosaic_bert", 1.0, {"CoLA": 40.0})
    words = ["--out", str(tmp_path / "out"), "--published"]
    assert main([str(tmp_path / "few"), *words]) == 2
    assert "mean of 8 GLUE tasks, these runs' of 1 of 8 GLUE tasks; say --mixed" in capsys.readouterr().err
    assert main([str(tmp_path / "runs"), *words, "--axis", "tokens"]) == 2
    assert "no tokens" in capsys.readouterr().err
    assert main([str(tmp_path / "runs"), *words]) == 0
    assert set(rows_of(tmp_path / "out" / "pareto.csv")) == {"all"}
    assert "published, not measured here (read off" in capsys.readouterr().out
    page = (tmp_path / "out" / "pareto.html").read_text(encoding="utf-8")
    assert '"name":"MosaicBERT, published"' in page and '"name":"BERT, published"' in page
    assert re.search(r'"x":\[10\.0,29\.0,48\.0,68\.0,87\.0', page)  # hours x 8 devices x the table's price


@pytest.mark.parametrize(("axis", "x"), [("usd", 0.5 * 8 * 2.5), ("gpu_hours", 4.0), ("seconds", 1800.0)])
def test_the_published_hours_on_every_axis(axis, x):
    mosaic, bert = published.curves(axis, str(ROOT / "yamls/prices.yaml"))
    assert (mosaic.xs[0], mosaic.scores[0], bert.scores[-1]) == (x, 76.1, 83.5)
    assert len(mosaic.xs) == len(mosaic.scores) == 7 and len(bert.xs) == 5


@pytest.mark.parametrize(
    ("lead", "says"),
    [
        (0.5, "; not told from chance (95 % intervals, ± 3.51 on the difference)."),
        (9.0, "a gain of 9.00 (measured); beyond chance (95 % intervals, ± 3.51 on the difference)."),
    ],
)
def test_a_gain_is_held_against_the_intervals(tmp_path, capsys, lead, says):
    """Three seeds, a point apart: a half width of 4.303 / sqrt(3) each, and of the difference sqrt(2) times that."""
    for model, more in (("mosaic_bert", lead), ("hf_bert", 0.0)):
        for seed in range(3):
            scores = {"CoLA": 50.0 + more + seed}
            record_run(tmp_path / "runs", f"{model}-s{seed}", model, 1.0, scores, config={"seed": seed})
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    assert says in capsys.readouterr().out and html.escape(says) in (tmp_path / "out" / "pareto.html").read_text(
        "utf-8"
    )


def test_a_gain_of_single_runs_is_called_what_it_is(runs, tmp_path, capsys):
    folder, _ = runs
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "; one seed per point, so it cannot be told from chance." in capsys.readouterr().out


@pytest.mark.parametrize(("lead", "says"), [(0.5, "not told from chance"), (9.0, "beyond chance")])
def test_a_saving_against_runs_none_of_which_is_as_cheap(tmp_path, capsys, lead, says):
    """It is held against the cheapest of them, which scored what less money would not have bettered."""
    for model, usd, score in (("mosaic_bert", 1.0, 50.0), ("hf_bert", 2.0, 50.0 - lead), ("hf_bert", 8.0, 51.0)):
        for seed in range(3):
            config = {"seed": seed, "duration": f"{usd}"}
            record_run(
                tmp_path / "runs", f"{model}-{usd}-s{seed}", model, usd, {"CoLA": score - 1 + seed}, config=config
            )
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("At score"))
    assert "mosaic_bert saves" in line and says in line


def test_a_score_is_drawn_of_runs_whose_evaluation_has_no_loss(tmp_path):
    record_run(tmp_path / "runs", "a", "mosaic_bert", 1.0, {"CoLA": 40.0}, eval={"loss": None, "masked_accuracy": None})
    draw([tmp_path / "runs"], tmp_path / "out")
    assert rows_of(tmp_path / "out" / "pareto.csv")["a"]["mlm_loss"] == ""


def test_branches_of_a_trunk_are_a_curve_of_their_own(tmp_path):
    trunk = {"run": "t", "batch": 5, "tokens": 9, "cost": bill(1800.0, 8, PRICE, "gpu")}
    record_run(tmp_path / "runs", "a", "mosaic_bert", 1.0, {"CoLA": 40.0})
    record_run(tmp_path / "runs", "b", "mosaic_bert", 1.0, {"CoLA": 30.0}, trunk=trunk)
    found = study.gather([tmp_path / "runs"])
    assert set(found.fronts) == {Curve("mosaic_bert"), Curve("mosaic_bert", BRANCH)}
    draw([tmp_path / "runs"], tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "pareto.csv")
    assert [(row["model"], row["way"], row["frontier"]) for row in rows.values()] == [
        ("mosaic_bert", "run", "yes"),
        ("mosaic_bert", "branch", "yes"),
    ]
    assert float(rows["b"]["own_usd"]) == pytest.approx(float(rows["b"]["usd"]) / 2)


RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize(
    ("folders", "measure", "file"),
    [
        ("books-seeds/*/runs", "score", "books-seeds/pareto.csv"),
        ("books-seeds/*/runs", "loss", "books-seeds/loss.csv"),
        ("demo/runs", "loss", "demo/loss.csv"),
        ("demo/runs", "pairs", "demo/pairs.csv"),
    ],
)
def test_the_committed_tables_are_those_of_the_committed_records(folders, measure, file):
    expected = rows_of(RESULTS / file)
    found = {row["run"]: row for row in study.table(study.gather([RESULTS / folders], measure=measure))}
    assert set(found) == set(expected)
    for name, row in found.items():
        for column, value in row.items():
            if column == "path" or value is None:
                continue
            cell = expected[name][column]
            assert cell == value if isinstance(value, str) else float(cell) == pytest.approx(value, rel=1e-12), column


def test_what_ships_is_drawn_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = study.gather(["benchmarks/results/demo/runs"], measure="loss")
    assert len(found.points) == 5 and {point.seeds for point in found.points} == {3}


@pytest.mark.parametrize(
    ("value", "text"), [(0.0000527123, "$0.0000527"), (0.5, "$0.5"), (1234.5, "$1,234.50"), (0.0001, "$0.0001")]
)
def test_small_amounts_have_no_exponent(value, text):
    assert words.amount(value, "usd") == text
