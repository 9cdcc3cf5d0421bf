"""The HTML page of a study: figure, findings, every number, every configuration; one file that needs no network.

What stands in it is made here; the HTML around it is page.html, beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from html import escape as html_escape
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go

from recipe.cost.frontier import Point
from recipe.report import study, words
from recipe.report.published import SOURCE
from recipe.report.study import Run, Study

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
}
# Of plotly's labels, which are HTML but for quotation marks; the template escapes all other text.
escape = partial(html_escape, quote=False)
CONFIG = {"displaylogo": False, "responsive": True}
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    keep_trailing_newline=True,
)


def write_html(found: Study, folder: Path) -> Path:
    """Write the page into `folder` and return its path."""
    headline, subtitle = words.title(found)
    rows = study.table(found)
    columns = dict.fromkeys(key for row in rows for key in row)
    page = TEMPLATES.get_template("page.html").render(
        headline=headline,
        subtitle=subtitle,
        curves=_html(_curves(found), plotlyjs=True),
        notes=words.notes(found),
        findings=words.findings(found),
        columns={column: any(isinstance(row.get(column), str) for row in rows) for column in columns},
        rows=[{column: _cell(row.get(column)) for column in columns} for row in rows],
        left_out=[f"{path}: {reason}" for path, reason in found.left_out.items()],
        losses=_html(_losses(found)),
        runs=[(run.name, _details(run)) for run in found.runs],
    )
    file = folder / f"{found.measure.file}.html"
    file.write_text(page, encoding="utf-8")
    return file


def _html(figure: go.Figure, plotlyjs: bool = False) -> str:
    """The figure as a part of a page, plotly's script with it or not; nothing if nothing is drawn."""
    figure.update_layout(template="plotly_white", height=520, margin={"t": 30, "r": 20})
    return figure.to_html(full_html=False, include_plotlyjs=plotlyjs, config=CONFIG) if figure.data else ""


def _curves(found: Study) -> go.Figure:
    figure = go.Figure()
    for curve, (color, marker) in study.styles(found).items():
        name = escape(curve.label)
        xs, ys = study.line_of(found.fronts[curve], found.axis)
        figure.add_scatter(
            x=xs, y=ys, mode="lines", line={"color": color}, hoverinfo="skip", showlegend=False, legendgroup=name
        )
        points = [point for point in found.points if point.curve == curve]
        symbols = [SYMBOLS[marker] + ("" if found.on_frontier(point) else "-open") for point in points]
        halves = [point.half_width for point in points]
        bars = {"array": halves, "color": color, "thickness": 1.2} if any(half is not None for half in halves) else None
        figure.add_scatter(
            x=[point.cost(found.axis) for point in points],
            y=[point.value for point in points],
            mode="markers",
            marker={"color": color, "size": 10, "symbol": symbols, "line": {"width": 2, "color": color}},
            error_y=bars,
            text=[_hover(found, point) for point in points],
            hovertemplate="%{text}<extra></extra>",
            name=name,
            legendgroup=name,
        )
    colors = {curve.label: color for curve, (color, _) in study.styles(found).items()}
    for name, (value, _) in found.floors.items():
        line = {"color": colors.get(name, "#888888"), "dash": "dash", "width": 1.2}
        figure.add_hline(value, line=line)
    if found.constant is not None:
        figure.add_hline(found.constant, line={"color": "#888888", "dash": "dashdot", "width": 1.2})
    for curve, fitted in found.laws.items():
        color, line = study.styles(found)[curve][0], fitted.line()
        band = {
            "type": "scatter",
            "mode": "lines",
            "hoverinfo": "skip",
            "showlegend": False,
            "legendgroup": escape(curve.label),
        }
        xs = [one.cost for one in line]
        figure.add_trace({**band, "x": xs, "y": [one.loss for one in line], "line": {"color": color, "width": 1}})
        if fitted.law.variance is not None:
            low, high = ([one.loss + sign * one.half_width for one in line] for sign in (-1, 1))
            outline = {"x": [*xs, *reversed(xs)], "y": [*low, *reversed(high)], "fill": "toself", "line": {"width": 0}}
            figure.add_trace({**band, **outline, "fillcolor": color, "opacity": 0.12})
    if found.joint:
        xs, ys = study.line_of(found.joint, found.axis)
        line = {"color": "#888888", "dash": "dot", "width": 1.5}
        figure.add_scatter(x=xs, y=ys, mode="lines", line=line, hoverinfo="skip", name="all together")
    for paper in found.published:
        text = [f"<b>{paper.name}</b><br>score {score:.1f}<br>{SOURCE}" for score in paper.scores]
        marker = {"color": "#777777", "symbol": "x-thin-open", "size": 9}
        figure.add_scatter(x=paper.xs, y=paper.scores, mode="lines+markers", line={"width": 1}, marker=marker, text=text,
                           hovertemplate="%{text}<extra></extra>", name=paper.name)  # fmt: skip
    figure.update_xaxes(title=words.axis_label(found), tickprefix="$" if found.axis == "usd" else "")
    costs = found.xs
    if study.is_logarithmic(costs):
        marks = study.ticks(min(costs) / 2, max(costs) * 2)
        texts = [words.tick_text(mark, found.axis) for mark in marks]
        figure.update_xaxes(type="log", tickprefix="", tickvals=marks, ticktext=texts)
    figure.update_yaxes(title=escape(words.words_of(found).axis))
    return figure


def _hover(found: Study, point: Point) -> str:
    measure, record = found.measure, found.members[found.points.index(point)][0].record
    half = point.half_width
    spread = "" if half is None else f" ± {half:.{measure.decimals}f} (95 %, {point.seeds} seeds)"
    tasks = record["glue"]["tasks"] if found.tasks and point.seeds == 1 else {}
    lines = [
        f"<b>{escape(point.name)}</b>" + ("" if found.on_frontier(point) else " (dominated)"),
        f"{measure.name} {point.value:.{measure.decimals}f}{spread}{measure.unit}",
        *(f"{escape(task)} {_with_std(tasks[task])}" for task in found.tasks if task in tasks),
        f"{words.amount(point.usd, 'usd')}, {words.amount(point.device_hours, 'gpu_hours')} of device time, "
        f"{words.amount(point.seconds, 'seconds')}",
        words.amount(point.tokens, "tokens"),
    ]
    return "<br>".join(lines)


def _with_std(task: Mapping[str, Any]) -> str:
    spread = task.get("std")
    return f"{task['score']:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:,.6g}"


def _losses(found: Study) -> go.Figure:
    """Loss against tokens of every run whose record holds a curve."""
    figure = go.Figure()
    styles = study.styles(found)
    drawn = [(run, styles[p.curve][0]) for p, runs in zip(found.points, found.members, strict=True) for run in runs]
    for run, color in drawn:
        entries = [entry for entry in run.record["loss_curve"] if entry.get("loss") is not None]
        if entries:
            figure.add_scatter(
                x=[entry["tokens"] for entry in entries],
                y=[entry["loss"] for entry in entries],
                mode="lines",
                line={"color": color, "width": 1.2},
                name=escape(run.name),
            )
    figure.update_xaxes(title="tokens (padding not counted)")
    figure.update_yaxes(title="masked-language-model loss (nats)")
    return figure


def _details(run: Run) -> str:
    keys = ("config", "provenance", "device", "backends", "cost", "eval", "glue", "pairs")
    return json.dumps({key: run.record.get(key) for key in keys}, indent=1, ensure_ascii=False)
