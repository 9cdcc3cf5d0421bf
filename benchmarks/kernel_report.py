"""The kernel benchmark's rows as a table, a JSON file with provenance, and a plot. Needs no GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks import measurement

COLUMNS = ("implementation", "mode", "p20 ms", "p50 ms", "p80 ms", "rate", "of ceiling", "ours is")
MODES = {"forward": "forward", "both": "forward + backward", "": ""}


def row(
    kernel: str, case: str, implementation: str, mode: str, problem: str | None, milliseconds: list[float] | None = None,
    rate: float | None = None, unit: str = "", ceiling: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One implementation's figures in one mode, or the `problem` for which it has none."""
    p20, p50, p80 = milliseconds or (None, None, None)
    return {
        "kernel": kernel, "case": case, "implementation": implementation, "mode": mode, "problem": problem,
        "p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "rate": rate, "unit": unit,
        "of_ceiling": rate / ceiling if rate and ceiling else None, "ours_is": None,
    }  # fmt: skip


def add_ratios(rows: list[dict[str, Any]], ours: str) -> None:
    """How many times faster ours is, beside each rival; nothing where ours or the rival has no figure, being wrong or absent."""
    own = {r["mode"]: r["p50_ms"] for r in rows if r["implementation"] == ours and r["problem"] is None}
    for r in rows:
        if r["implementation"] != ours and r["problem"] is None and own.get(r["mode"]):
            r["ours_is"] = r["p50_ms"] / own[r["mode"]]


def table(rows: list[dict[str, Any]]) -> str:
    """Text: a heading for each case, a line for each row."""
    lines: list[str] = []
    heading = None
    for r in rows:
        if heading != (heading := f"{r['kernel']}: {r['case']}"):
            lines += ["", heading, _line(COLUMNS)]
        if r["problem"]:
            lines.append(f"  {r['implementation']:<18} {r['problem']}")
            continue
        times = [f"{r[name]:.3f}" for name in ("p20_ms", "p50_ms", "p80_ms")]
        share = f"{r['of_ceiling']:.0%}" if r["of_ceiling"] else ""
        ratio = f"{r['ours_is']:.2f} x" if r["ours_is"] else ""
        lines.append(
            _line(
                (r["implementation"], MODES[r["mode"]], *times, f"{_three_digits(r['rate'])} {r['unit']}", share, ratio)
            )
        )
    return "\n".join(lines)


def _three_digits(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _line(cells: tuple[str, ...]) -> str:
    name, mode, *rest = cells
    return f"  {name:<18} {mode:<20}" + "".join(f"{cell:>15}" for cell in rest)


def write(record: dict[str, Any], out: Path) -> list[Path]:
    """The record as JSON, its table as text and its plot, named after the device and the day."""
    made = record["provenance"]
    day = made["started"][:10]
    name = "-".join([*re.sub(r"nvidia|\(\w+\)", "", made["device"].lower()).split(), day])
    data, text, plot = (out / f"{name}.{ending}" for ending in ("json", "txt", "png"))
    measurement.write(data, record)
    copied, multiplied = (_three_digits(record["ceilings"][unit]) for unit in ("GB/s", "TFLOP/s"))
    about = (
        f"{made['device']}, torch {made['torch']}, triton {made['triton']}, commit {made['commit']}"
        f"{' with changes' if made['dirty'] else ''}, {made['started']}\n"
        f"ceilings: {copied} GB/s copied, {multiplied} TFLOP/s bf16 product\n"
        f"{record['tokens']} tokens a case; C4-like lengths: {record['lengths']}\n"
    )
    text.write_text(about + table(record["rows"]) + "\n")
    return [data, text, *([plot] if draw(record, plot) else [])]


def draw(record: dict[str, Any], path: Path) -> bool:
    """Bars: how many times faster than each rival, forward and backward together. False where matplotlib is not installed."""
    bars = [r for r in record["rows"] if r["ours_is"] and r["mode"] == "both"]
    figure = measurement.figure(9, 1.2 + 0.24 * len(bars))
    if figure is None:
        return False
    axes = figure.add_subplot()
    labels = [f"{r['kernel']} {r['case']}: {r['implementation']}" for r in bars]
    axes.barh(range(len(bars)), [r["ours_is"] for r in bars], color="#3b6ea5")
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.invert_yaxis()
    if bars:
        axes.set_xscale("log")
    axes.set_xlabel("times faster than the rival, forward + backward (right of the line: ours is faster)")
    axes.set_title(f"{record['provenance']['device']}, {record['provenance']['started'][:10]}", fontsize=9)
    figure.savefig(path)
    return True
