"""What a dollar of pretraining bought: points of cost and score or loss, each model's frontier, as PNG, SVG, CSV and HTML.

    python -m recipe.pareto plot runs/ --out runs/pareto --axis usd --tasks CoLA,RTE
    python -m recipe.pareto plot runs/ --out runs/pareto --measure loss
    python -m recipe.pareto sweep YAML --plan

Reads run.json records only; needs neither a GPU nor torch.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from recipe.config import SweepConfig, run_main
from recipe.cost.frontier import AXES
from recipe.cost.measures import LOSS, MEASURES, PAIRS, SCORE
from recipe.errors import UserError, end, exit_status
from recipe.report import figure, page, study, words
from recipe.report.study import Study
from recipe.system import inert

TERMINAL_COLUMNS = ("run", "model", "way", "protocol", SCORE.column, PAIRS.column, LOSS.column, "ci95", "usd", "device_hours",
                    "seconds", "tokens", "frontier")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for a user's mistake."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] in (["sweep"], ["trunk"]):
        return sweep(given[0], given[1:])
    return plot(given[1:] if given[:1] == ["plot"] else given)


def sweep(way: str, given: Sequence[str]) -> int:
    """`sweep YAML` or `trunk YAML`; with `--plan` what it will cost, and nothing else."""
    if "--plan" not in given:
        return run_main(SweepConfig, partial(many, way), given)
    from recipe.report import bill  # only this needs torch

    at = list(given).index("--plan")
    words = bill.options(f"python -m recipe.pareto {way} YAML [key=value ...]").parse_args(given[at + 1 :])
    return run_main(SweepConfig, lambda config: bill.show(way, config, words), given[:at])


def many(way: str, config: SweepConfig) -> None:
    """`sweep YAML` or `trunk YAML`: make the runs, then draw all that stand in the same folder."""
    from recipe.report import sweep as runs  # only this needs torch

    runs.run(getattr(runs, way), config)
    for measure in (SCORE.name,) * bool(config.glue) + (PAIRS.name,) * bool(config.pairs):
        for path in draw([Path(config.out) / "runs"], Path(config.out) / "pareto", measure=measure):
            print(path)


def plot(argv: Sequence[str]) -> int:
    """`plot RUNS...`, the word itself being optional."""
    parser = argparse.ArgumentParser(prog="python -m recipe.pareto plot", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", help="run folders, folders that hold run folders, or globs")
    parser.add_argument("--out", default="runs/pareto", help="folder for the .png, .svg, .csv and .html (%(default)s)")
    parser.add_argument(
        "--measure",
        default=SCORE.name,
        choices=MEASURES,
        help="what the y axis shows: the score of fine-tuning, in pareto.*, minimal pairs, in pairs.*, or the evaluation "
        "loss, in loss.* (%(default)s)",
    )
    parser.add_argument("--axis", default="usd", choices=AXES, help="what the x axis counts (%(default)s)")
    parser.add_argument("--tasks", default="", help="score on these tasks only, such as CoLA,RTE")
    parser.add_argument(
        "--mixed", action="store_true", help="draw runs of several protocols, labelled, never on one frontier"
    )
    parser.add_argument(
        "--floor", nargs="+", default=[], metavar="RUN", help="runs without pretraining, each model's drawn as a level"
    )
    parser.add_argument("--published", action="store_true", help="overlay the points of MosaicBERT's paper")
    given = parser.parse_args(argv)
    tasks = [task.strip() for task in given.tasks.split(",") if task.strip()]

    def draw_given() -> None:
        for path in draw(
            given.runs, given.out, given.axis, tasks, given.mixed, given.published, given.measure, given.floor
        ):
            print(path)

    return exit_status(draw_given)


def draw(
    runs: Sequence[str | Path],
    out: str | Path,
    axis: str = "usd",
    tasks: Sequence[str] = (),
    mixed: bool = False,
    published: bool = False,
    measure: str = SCORE.name,
    floor: Sequence[str | Path] = (),
) -> list[Path]:
    """Print the table of `runs` and write the figure as .png, .csv, .html and .svg, named by its measure, into the folder `out`.

    Args:
        runs: run folders, folders that hold run folders, or globs.
        axis: one of usd, gpu_hours (device-hours), tokens, seconds.
        tasks: score on these only; empty: on all, which must then be the same in every run.
        mixed: let runs of several protocols in, labelled, each protocol with frontiers of its own.
        published: the paper's points as an overlay.
        measure: `score`, of fine-tuning, `pairs`, minimal pairs, or `loss`, of the evaluation.
        floor: runs without pretraining, each model's drawn as a level.

    Returns:
        The files written.

    Raises:
        UserError: see `recipe.report.study.gather`; nothing is written then.
    """
    found = study.gather(runs, axis, list(dict.fromkeys(tasks)), mixed, published, measure, floor)
    print_table(found)
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made a folder ({error.strerror}); choose another with --out") from None
    picture, vector = figure.write(found, folder)
    return [picture, write_csv(found, folder), page.write_html(found, folder), vector]


def print_table(found: Study) -> None:
    """The points, what follows from them, and the runs left out, on standard output."""
    print(" - ".join(words.title(found)))
    rows = study.table(found)
    columns = [column for column in TERMINAL_COLUMNS if column in rows[0]]
    lines = [columns, *([_cell(column, row[column], found) for column in columns] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    for sentence in (*words.findings(found), *words.notes(found)[:-1]):
        print(sentence)
    for path, reason in found.left_out.items():
        print(f"left out: {path}: {reason}")


def _cell(column: str, value: float | str | None, found: Study) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return "-"
    texts = {
        SCORE.column: f"{value:.{SCORE.decimals}f}",
        PAIRS.column: f"{value:.{PAIRS.decimals}f}",
        LOSS.column: f"{value:.{LOSS.decimals}f}",
        "ci95": f"± {value:.{found.measure.decimals}f}",
        "usd": words.amount(value, "usd"),
        "tokens": words.big(value),
    }
    return texts.get(column, words.number(value))


def write_csv(found: Study, folder: Path) -> Path:
    """Every number of every point at full precision; runs that scored other tasks too have those columns as well."""
    rows = study.table(found)
    file = folder / f"{found.measure.file}.csv"
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, dict.fromkeys(key for row in rows for key in row))
        writer.writerow({key: inert.cell(key) for key in writer.fieldnames})
        writer.writerows({key: inert.cell(value) for key, value in row.items()} for row in rows)
    return file


if __name__ == "__main__":
    end(main)
