"""What a dollar of pretraining bought: points of cost and score, each model's frontier, as PNG, SVG, CSV and HTML.

    python -m benchmarks.pareto plot runs/ --out runs/pareto --axis usd --tasks CoLA,RTE

Reads run.json records only; needs neither a GPU nor torch.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import figure, report, study
from benchmarks.study import Study
from recipe.config import SweepConfig, run_main
from recipe.cost.frontier import AXES
from recipe.errors import UserError

TERMINAL_COLUMNS = ("run", "model", "score", "ci95", "usd", "device_hours", "seconds", "tokens", "frontier")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for a user's mistake."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in (["sweep"], ["trunk"]):
        return run_main(SweepConfig, partial(many, words[0]), words[1:])
    return plot(words[1:] if words[:1] == ["plot"] else words)


def many(way: str, config: SweepConfig) -> None:
    """`sweep YAML` or `trunk YAML`: make the runs, then draw all that stand in the same folder."""
    from benchmarks import sweep  # only this needs torch

    sweep.run(getattr(sweep, way), config)
    for path in draw([Path(config.out) / "runs"], Path(config.out) / "pareto"):
        print(path)


def plot(argv: Sequence[str]) -> int:
    """`plot RUNS...`, the word itself being optional."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pareto plot", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="run folders, folders that hold run folders, or globs")
    parser.add_argument(
        "--out", default="runs/pareto", help="folder for pareto.png, .svg, .csv and .html (%(default)s)"
    )
    parser.add_argument("--axis", default="usd", choices=AXES, help="what the x axis counts (%(default)s)")
    parser.add_argument("--tasks", default="", help="score on these tasks only, such as CoLA,RTE")
    parser.add_argument(
        "--mixed", action="store_true", help="draw runs of several protocols, labelled, never on one frontier"
    )
    parser.add_argument("--published", action="store_true", help="overlay the points of MosaicBERT's paper")
    words = parser.parse_args(argv)
    tasks = [task.strip() for task in words.tasks.split(",") if task.strip()]
    try:
        for path in draw(words.runs, words.out, words.axis, tasks, words.mixed, words.published):
            print(path)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def draw(
    runs: Sequence[str | Path],
    out: str | Path,
    axis: str = "usd",
    tasks: Sequence[str] = (),
    mixed: bool = False,
    published: bool = False,
) -> list[Path]:
    """Print the table of `runs` and write pareto.png, .csv, .html and .svg into the folder `out`.

    Args:
        runs: run folders, folders that hold run folders, or globs.
        axis: one of usd, gpu_hours (device-hours), tokens, seconds.
        tasks: score on these only; empty: on all, which must then be the same in every run.
        mixed: let runs of several protocols in, labelled, each protocol with frontiers of its own.
        published: the paper's points as an overlay.

    Returns:
        The files written.

    Raises:
        UserError: see `benchmarks.study.gather`; nothing is written then.
    """
    found = study.gather(runs, axis, list(dict.fromkeys(tasks)), mixed, published)
    print_table(found)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror}); choose another with --out") from None
    picture, vector = figure.write(found, folder)
    return [picture, write_csv(found, folder), report.write_html(found, folder), vector]


def print_table(found: Study) -> None:
    """The points, what follows from them, and the runs left out, on standard output."""
    print(" - ".join(study.title(found)))
    rows = [[_cell(name, row[name]) for name in TERMINAL_COLUMNS] for row in study.table(found)]
    lines = [list(TERMINAL_COLUMNS), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TERMINAL_COLUMNS))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    for sentence in (*study.findings(found), *study.notes(found)[:-1]):
        print(sentence)
    for path, reason in found.left_out.items():
        print(f"left out: {path}: {reason}")


def _cell(column: str, value: float | str | None) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "-"
    texts = {
        "score": f"{value:.2f}",
        "ci95": f"± {value:.2f}",
        "usd": study.amount(value, "usd"),
        "tokens": study.big(value),
    }
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


if __name__ == "__main__":
    sys.exit(main())
