"""The static picture of a study, as PNG and as SVG."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from recipe.cost.frontier import Curve
from recipe.report import study, words
from recipe.report.study import Study
from recipe.system import inert

WIDTH_INCHES, HEIGHT_INCHES, DPI = 8.0, 5.2, 160
MARKER_POINTS = 7
# Where a point's label may stand, nearest first: points to the right, points up, and which of its edges is there.
PLACES = ((-6, 7, "right"), (6, -14, "left"), (-6, -14, "right"), (6, 7, "left"), (-6, -24, "right"), (6, -24, "left"))


def write(found: Study, folder: Path) -> tuple[Path, Path]:
    """The figure as .png and .svg: a colour per curve, its frontier as a line, dominated runs hollow, intervals as bars."""
    headline, subtitle = words.title(found)
    subtitle = textwrap.fill(subtitle, 95)
    footnote = "\n".join(line for note in words.notes(found) for line in textwrap.wrap(note, 150))
    below = 0.62 + 0.15 * (footnote.count("\n") + 1)  # inches: the axis' own labels, then the footnote
    above = 0.75 + 0.18 * subtitle.count("\n")
    figure = Figure((WIDTH_INCHES, HEIGHT_INCHES), dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.09, below / HEIGHT_INCHES, 0.88, 1 - (below + above) / HEIGHT_INCHES))
    for curve, (color, marker) in study.styles(found).items():
        _draw_curve(axes, found, curve, color, marker)
    _draw_floors(axes, found)
    _draw_laws(axes, found)
    _draw_others(axes, found)
    _style_axes(axes, found)
    _label_values(figure, axes, found)
    figure.text(0.09, 1 - 0.32 / HEIGHT_INCHES, headline, fontsize=13, fontweight="bold", parse_math=False)
    figure.text(0.09, 1 - 0.44 / HEIGHT_INCHES, subtitle, fontsize=9.5, color="#444444", va="top", parse_math=False)
    figure.text(0.012, 0.1 / HEIGHT_INCHES, footnote, fontsize=7.5, color="#555555", linespacing=1.35, parse_math=False)
    picture, vector = (folder / f"{found.measure.file}.{ending}" for ending in ("png", "svg"))
    figure.savefig(picture)
    # Names and dates of the machine's own would make every drawing of the same runs another file.
    with rc_context({"svg.hashsalt": "pareto"}):
        figure.savefig(vector, metadata={"Date": None})
    return picture, vector


def _draw_curve(axes: Axes, found: Study, curve: Curve, color: str, marker: str) -> None:
    front = found.fronts[curve]
    axes.plot(*study.line_of(front, found.axis), color=color, linewidth=1.8, zorder=2)
    hollow = [point for point in found.points if point.curve == curve and point not in front]
    for point in (point for point in (*front, *hollow) if point.half_width is not None):
        low, high, x = point.value - point.half_width, point.value + point.half_width, point.cost(found.axis)
        axes.plot([x, x], [low, high], color=color, linewidth=1.2, marker="_", markersize=MARKER_POINTS, zorder=2)
    for points, fill, label in ((front, color, inert.label(curve.label)), (hollow, "white", None)):
        if not points:
            continue
        axes.plot(
            [point.cost(found.axis) for point in points],
            [point.value for point in points],
            linestyle="",
            marker=marker,
            markersize=MARKER_POINTS,
            color=color,
            markerfacecolor=fill,
            label=label,
            zorder=3,
        )


def _draw_floors(axes: Axes, found: Study) -> None:
    """A level a model, what it gives without pretraining, and that of the constant answer."""
    if found.constant is not None:
        axes.axhline(found.constant, color="#888888", linewidth=1.1, linestyle="-.", zorder=1, label="constant answer")
    colors = {curve.label: color for curve, (color, _) in study.styles(found).items()}
    for name, (value, _) in found.floors.items():
        axes.axhline(
            value,
            color=colors.get(name, "#888888"),
            linewidth=1.1,
            linestyle="--",
            zorder=1,
            label=f"{inert.label(name)}, no pretraining",
        )


def _draw_laws(axes: Axes, found: Study) -> None:
    for curve, fitted in found.laws.items():
        color, line = study.styles(found)[curve][0], fitted.line()
        xs = [one.cost for one in line]
        axes.plot(xs, [one.loss for one in line], color=color, linewidth=0.8, zorder=1)
        if fitted.law.variance is not None:
            low, high = ([one.loss + sign * one.half_width for one in line] for sign in (-1, 1))
            axes.fill_between(xs, low, high, color=color, alpha=0.12, linewidth=0, zorder=0)


def _draw_others(axes: Axes, found: Study) -> None:
    """The joint frontier, and what others published."""
    if found.joint:
        xs, ys = study.line_of(found.joint, found.axis)
        axes.plot(xs, ys, color="#888888", linewidth=1.2, linestyle=":", label="all together", zorder=1)
    for curve, marker in zip(found.published, "x+", strict=False):
        axes.plot(curve.xs, curve.scores, color="#777777", linewidth=0.8, marker=marker, label=curve.name, zorder=1)


def _style_axes(axes: Axes, found: Study) -> None:
    xs = found.xs
    if study.is_logarithmic(xs):
        axes.set_xscale("log")
        room = 10 ** (0.06 * math.log10(max(xs) / min(xs)))
        axes.set_xlim(min(xs) / room, max(xs) * room)
        axes.xaxis.set_major_locator(FixedLocator(study.ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: words.tick_text(x, found.axis)))
    axes.margins(y=0.14)
    axes.set_xlabel(words.axis_label(found))
    axes.set_ylabel(inert.label(words.words_of(found).axis))
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="#DDDDDD")


def _label_values(figure: Figure, axes: Axes, found: Study) -> None:
    """Write each frontier point's value beside it where that hides nothing; else it is left to the table."""
    figure.draw_without_rendering()  # settles the limits, on which every position depends
    taken = [axes.get_legend().get_window_extent()]
    obstacles = _ink(axes)
    inside = axes.get_window_extent()
    for curve, (color, _) in study.styles(found).items():
        for point in found.fronts[curve]:
            for dx, dy, across in PLACES:
                label = axes.annotate(
                    f"{point.value:#.3g}".rstrip("."),
                    (point.cost(found.axis), point.value),
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
        path = line.get_transform().transform_path(line.get_path())
        if line.get_marker() != "None":
            reach = MARKER_POINTS * DPI / 72 / 2
            corners = np.array([(x, y) for x in (-reach, 0, reach) for y in (-reach, 0, reach)])
            pixels.append((path.vertices[:, None] + corners).reshape(-1, 2))
        if line.get_linestyle() != "None":
            pixels.append(path.interpolated(100).vertices)
    return np.concatenate(pixels)
