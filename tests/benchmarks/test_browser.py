"""The page in a real browser: it runs without an error, and what it shows is what the CSV holds."""

import csv
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.pareto import draw
from tests.benchmarks.test_pareto import run

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--dump-dom")  # fmt: skip
# Runs after the page's own scripts and writes down what they drew; an error of theirs leaves it unwritten, or is in it.
PROBE = """
<pre id="probe"></pre>
<script>
const plot = document.querySelector('.js-plotly-plot');
const traces = plot.data.filter(trace => trace.mode === 'markers').map(trace => ({
  name: trace.name, x: [...trace.x], y: [...trace.y], half: [...trace.error_y.array], text: [...trace.text]}));
const rows = [...document.querySelectorAll('table tr')].map(row => [...row.cells].map(cell => cell.textContent));
const drawn = plot.querySelectorAll('.scatterlayer .point').length;
document.getElementById('probe').textContent = JSON.stringify({traces, rows, drawn, errors: window.errors});
</script>
"""
WATCH = "<script>window.errors = []; window.onerror = (message) => { window.errors.push(message); };</script>"


@pytest.mark.skipif(not CHROMIUM.exists(), reason="needs /usr/bin/chromium, which is not installed")
def test_the_page_runs_in_chromium_and_shows_what_the_csv_holds(tmp_path):
    for seed, score in enumerate((50.0, 52.5)):
        changes = {"config": {"seed": seed, "duration": "2ba", "model": {"name": "mosaic_bert"}}}
        run(tmp_path / "runs", f"mosaic-s{seed}", "mosaic_bert", 2.0, {"CoLA": score}, **changes)
    run(tmp_path / "runs", "slow <b>&", "mosaic_bert", 3.0, {"CoLA": 45.0}, name="slow <b>&")
    run(tmp_path / "runs", "bert", "hf_bert", 0.7, {"CoLA": 38.123456789})
    files = {file.suffix: file for file in draw([tmp_path / "runs"], tmp_path / "out")}
    page = files[".html"].read_text(encoding="utf-8")
    assert page.count("<style>") == 1 and page.rstrip().endswith("</html>")
    copy = tmp_path / "page.html"
    copy.write_text(page.replace("<style>", WATCH + "<style>").replace("</html>", PROBE + "</html>"), encoding="utf-8")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    probe = json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert probe["errors"] == []

    with files[".csv"].open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    plotted = sorted((trace["name"], x, y, half) for trace in probe["traces"]
                     for x, y, half in zip(trace["x"], trace["y"], trace["half"], strict=True))  # fmt: skip
    held = [(row["model"], float(row["usd"]), float(row["score"]), float(row["ci95"] or "nan")) for row in rows]
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
    assert any(row[0] == "slow <b>&" for row in body)
