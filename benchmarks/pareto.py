"""What a dollar of pretraining bought: points of cost and score, each model's frontier, as PNG, CSV and HTML.

    python -m benchmarks.pareto runs/ --out runs/pareto --axis usd --tasks CoLA,RTE

Reads run.json records only; needs neither a GPU nor torch.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from benchmarks import report, study
from benchmarks.study import Study
from recipe.cost.frontier import AXES
from recipe.errors import UserError

TERMINAL_COLUMNS = ("run", "model", "score", "usd", "device_hours", "seconds", "tokens", "frontier")
WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 5.2, 160
MARKER_POINTS = 7


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pareto", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="run folders, folders that hold run folders, or globs")
    parser.add_argument("--out", default="runs/pareto", help="folder for pareto.png, .csv and .html (%(default)s)")
    parser.add_argument("--axis", default="usd", choices=AXES, help="what the x axis counts (%(default)s)")
    parser.add_argument("--tasks", default="", help="score on these tasks only, such as CoLA,RTE")
    words = parser.parse_args(argv)
    tasks = [task.strip() for task in words.tasks.split(",") if task.strip()]
    try:
        for path in draw(words.runs, words.out, words.axis, tasks):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(runs: Sequence[str | Path], out: str | Path, axis: str = "usd", tasks: Sequence[str] = ()) -> list[Path]:
    """Print the table of `runs` and write pareto.png, pareto.csv and pareto.html into the folder `out`.

    Args:
        runs: run folders, folders that hold run folders, or globs.
        axis: one of usd, gpu_hours (device-hours), tokens, seconds.
        tasks: score on these only; empty: on all, which must then be the same in every run.

    Returns:
        The files written.

    Raises:
        UserError: see `benchmarks.study.gather`; nothing is written then.
    """
    found = study.gather(runs, axis, list(dict.fromkeys(tasks)))
    print_table(found)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror}); choose another with --out") from None
    return [write_png(found, folder), write_csv(found, folder), report.write_html(found, folder)]


def print_table(found: Study) -> None:
    """The points, what follows from them, and the runs left out, on standard output."""
    print(" - ".join(study.title(found)))
    rows = [[_cell(name, row[name]) for name in TERMINAL_COLUMNS] for row in study.table(found)]
    lines = [list(TERMINAL_COLUMNS), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TERMINAL_COLUMNS))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    for sentence in (*study.findings(found), *study.notes(found)[:2]):
        print(sentence)
    for path, reason in found.left_out.items():
        print(f"left out: {path}: {reason}")


def _cell(column: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    texts = {"score": f"{value:.2f}", "usd": study.amount(value, "usd"), "tokens": study.big(value)}
    return texts.get(column, study.number(value))


def write_csv(found: Study, folder: Path) -> Path:
    """Every number of every point at full precision; runs that scored other tasks too have those columns as well."""
    rows = study.table(found)
    file = folder / "pareto.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader()
        writer.writerows(rows)
    return file


def write_png(found: Study, folder: Path) -> Path:
    """The figure: a colour a model, its frontier as a line, dominated runs hollow."""
    footnote = "\n".join(line for note in study.notes(found) for line in textwrap.wrap(note, 150))
    below = 0.62 + 0.15 * (footnote.count("\n") + 1)  # inches: the axis' own labels, then the footnote
    figure = Figure((WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.09, below / HEIGHT_INCHES, 0.88, 1 - (below + 0.75) / HEIGHT_INCHES))
    for model, (color, marker) in study.styles(found).items():
        _draw_model(axes, found, model, color, marker)
    _style_axes(axes, found)
    _label_scores(figure, axes, found)
    headline, subtitle = study.title(found)
    figure.text(0.09, 1 - 0.32 / HEIGHT_INCHES, headline, fontsize=13, fontweight="bold", parse_math=False)
    figure.text(0.09, 1 - 0.56 / HEIGHT_INCHES, subtitle, fontsize=9.5, color="#444444", parse_math=False)
    figure.text(0.012, 0.1 / HEIGHT_INCHES, footnote, fontsize=7.5, color="#555555", linespacing=1.35, parse_math=False)
    file = folder / "pareto.png"
    figure.savefig(file)
    return file


def _draw_model(axes: Axes, found: Study, model: str, color: str, marker: str) -> None:
    front = found.fronts[model]
    axes.plot(*study.line_of(front, found.axis), color=color, linewidth=1.8, zorder=2)
    hollow = [point for point in found.points if point.model == model and point not in front]
    for points, fill, label in ((front, color, model), (hollow, "white", None)):
        if not points:
            continue
        axes.plot(
            [point.cost(found.axis) for point in points],
            [point.score for point in points],
            linestyle="",
            marker=marker,
            markersize=MARKER_POINTS,
            color=color,
            markerfacecolor=fill,
            label=label,
            zorder=3,
        )


def _style_axes(axes: Axes, found: Study) -> None:
    xs = [point.cost(found.axis) for point in found.points]
    if study.is_logarithmic(xs):
        axes.set_xscale("log")
        room = 10 ** (0.06 * math.log10(max(xs) / min(xs)))
        axes.set_xlim(min(xs) / room, max(xs) * room)
        axes.xaxis.set_major_locator(FixedLocator(study.ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: study.tick_text(x, found.axis)))
    axes.margins(y=0.14)
    axes.set_xlabel(study.axis_label(found))
    axes.set_ylabel(
        f"score, 0 to 100 ({len(found.tasks)} tasks)" if len(found.tasks) > 1 else f"{found.tasks[0]} score"
    )
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="#DDDDDD")


def _label_scores(figure: Figure, axes: Axes, found: Study) -> None:
    """Write each frontier point's score beside it where that hides nothing; else it is left to the table."""
    figure.draw_without_rendering()  # settles the limits, on which every position depends
    taken = [axes.get_legend().get_window_extent()]
    obstacles = _ink(axes)
    inside = axes.get_window_extent()
    for model, (color, _) in study.styles(found).items():
        for point in found.fronts[model]:
            for dx, dy, across in ((-6, 7, "right"), (6, -14, "left"), (-6, -14, "right"), (6, 7, "left")):
                label = axes.annotate(
                    f"{point.score:.1f}",
                    (point.cost(found.axis), point.score),
                    (dx, dy),
                    textcoords="offset points",
                    ha=across,
                    fontsize=8.5,
                    color=color,
                )
                box = label.get_window_extent()
                fits = inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
                if fits and not box.count_overlaps(taken) and not box.count_contains(obstacles):
                    taken.append(box)
                    break
                label.remove()


def _ink(axes: Axes) -> np.ndarray:
    """Pixels (n, 2) that the drawn lines and markers cover, densely enough that no label passes between them."""
    pixels = []
    for line in axes.lines:
        path = axes.transData.transform_path(line.get_path())
        if line.get_linestyle() == "None":
            reach = MARKER_POINTS * DPI / 72 / 2
            corners = np.array([(x, y) for x in (-reach, 0, reach) for y in (-reach, 0, reach)])
            pixels.append((path.vertices[:, None] + corners).reshape(-1, 2))
        else:
            pixels.append(path.interpolated(100).vertices)
    return np.concatenate(pixels)


if __name__ == "__main__":
    sys.exit(main())
