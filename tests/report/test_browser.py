"""The page in a real browser: it runs without an error, and what it shows is what the CSV and the records hold."""

import csv
import html
import json
import re
import shutil
import subprocess

import pytest

from recipe.cost.measures import MEASURES
from recipe.pareto import draw
from tests.tiny.records import pair_scores, record_run

CHROMIUM = shutil.which("chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=5000",
         "--dump-dom")  # fmt: skip
# Runs after the page's own scripts and writes down what they drew, and what a pointer on each marker brings up; an error of
# theirs leaves it unwritten, or is in it.
PROBE = """
<pre id="probe"></pre>
<script>
const plot = document.querySelector('.js-plotly-plot');
const markers = plot.data.map((trace, curve) => [trace, curve]).filter(([trace]) => trace.mode === 'markers');
const traces = markers.map(([trace]) => ({
  name: trace.name, x: [...trace.x], y: [...trace.y], text: [...trace.text],
  half: [...trace.x].map((_, i) => trace.error_y && trace.error_y.array ? trace.error_y.array[i] : null)}));
const rows = [...document.querySelectorAll('table tr')].map(row => [...row.cells].map(cell => cell.textContent));
const drawn = plot.querySelectorAll('.scatterlayer .point').length;
const configs = [...document.querySelectorAll('details')].map(
  one => [one.querySelector('summary').textContent, JSON.parse(one.querySelector('pre').textContent).config]);
const points = markers.flatMap(([trace, curve]) => [...trace.x].map((_, point) => [curve, point]));
const hovers = [];
(async () => {
  for (const [curveNumber, pointNumber] of points) {
    Plotly.Fx.hover(plot, [{curveNumber, pointNumber}]);
    await new Promise(done => setTimeout(done, 50));
    const lines = [...plot.querySelectorAll('.hoverlayer .hovertext text tspan')].map(line => line.textContent);
    hovers.push(lines.length ? lines : [...plot.querySelectorAll('.hoverlayer .hovertext')].map(one => one.textContent));
  }
  document.getElementById('probe').textContent =
    JSON.stringify({traces, rows, drawn, configs, hovers, errors: window.errors});
})();
</script>
"""
# What a stranger may call a run: HTML that would run where a page or a figure's label took it for its own.
HOSTILE = 'slow <b>&</b></script><script>errors.push(1)</script><img src=x onerror="errors.push(2)">'
WATCH = "<script>window.errors = []; window.onerror = (message) => { window.errors.push(message); };</script>"


@pytest.fixture(scope="module", params=MEASURES.values(), ids=MEASURES)
def opened(request, tmp_path_factory):
    """Of each measure: the folder, the CSV's rows, what a browser found on the page, and the measure."""
    folder = tmp_path_factory.mktemp("page")
    runs = folder / "runs"
    for seed, score in enumerate((50.0, 52.5)):
        changes = {"eval": {"loss": 9 - seed / 8}, "pairs": pair_scores({"a": 60.0 + seed})}
        config = {"seed": seed, "duration": "2ba"}
        record_run(runs, f"mosaic-s{seed}", "mosaic_bert", 2.0, {"CoLA": score}, config=config, **changes)
    changes = {"name": HOSTILE, "eval": {"loss": 9.25}, "pairs": pair_scores({"a": 55.0}), "config": {"out": HOSTILE}}
    record_run(runs, "slow", "mosaic_bert", 3.0, {"CoLA": 45.0}, **changes)
    changes = {"eval": {"loss": 9.123456789}, "pairs": pair_scores({"a": 51.123456789})}
    record_run(runs, "bert", "hf_bert", 0.7, {"CoLA": 38.123456789}, **changes)
    files = {file.suffix: file for file in draw([folder / "runs"], folder / "out", measure=request.param.name)}
    page = files[".html"].read_text(encoding="utf-8")
    assert page.count("<style>") == 1 and page.rstrip().endswith("</html>")
    copy = folder / "page.html"
    copy.write_text(page.replace("<style>", WATCH + "<style>").replace("</html>", PROBE + "</html>"), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    shutil.rmtree(folder / "profile", ignore_errors=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    probe = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert probe["errors"] == []
    with files[".csv"].open(newline="", encoding="utf-8") as stream:
        return folder, list(csv.DictReader(stream)), probe, request.param


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, which is not installed")


@needs_chromium
def test_points_and_table_are_what_the_csv_holds(opened):
    _, rows, probe, measure = opened
    plotted = sorted((trace["name"], x, y, half) for trace in probe["traces"]
                     for x, y, half in zip(trace["x"], trace["y"], trace["half"], strict=True))  # fmt: skip
    held = [(row["model"], float(row["usd"]), float(row[measure.column]), float(row["ci95"] or "nan")) for row in rows]
    assert [point[:3] for point in plotted] == sorted(point[:3] for point in held) and len(held) == 3
    assert [point[3] for point in plotted if point[3] is not None] == [
        point[3] for point in held if point[3] == point[3]
    ]
    assert probe["drawn"] == len(held)
    head, *body = probe["rows"]
    assert head == list(rows[0]) and len(body) == len(rows)
    for shown, row in zip(body, rows, strict=True):
        for column, cell in zip(head, shown, strict=True):
            assert cell == row[column] or float(cell.replace(",", "")) == pytest.approx(float(row[column]), rel=1e-5)
    assert any(row[0] == HOSTILE for row in body)


@needs_chromium
def test_every_runs_config_is_on_the_page(opened):
    folder, _, probe, _ = opened
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((folder / "runs").rglob("run.json"))]
    assert len(records) == 4
    assert sorted(probe["configs"], key=str) == sorted([[r["name"], r["config"]] for r in records], key=str)


@needs_chromium
def test_a_pointer_on_a_marker_brings_up_its_run(opened):
    _, rows, probe, measure = opened
    shown = {lines[0].removesuffix(" (dominated)"): " ".join(lines) for lines in probe["hovers"]}
    assert sorted(shown) == sorted(row["run"] for row in rows)
    for row in rows:
        text, digits = shown[row["run"]], measure.decimals
        assert f"{measure.name} {float(row[measure.column]):.{digits}f}" in text and f"${float(row['usd']):.2f}" in text
        assert ("(dominated)" in text) == (row["frontier"] == "no")
        assert (f"± {float(row['ci95'] or 0):.{digits}f} (95 %, 2 seeds)" in text) == (row["seeds"] == "2")
