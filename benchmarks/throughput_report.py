"""`benchmarks.throughput`'s figures: derived from seconds and losses, as a table, a JSON file with provenance, and a plot."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from benchmarks import measurement
from recipe.model.flops import training_flops
from recipe.system.hardware import cpu_name

OURS = "this"
COLUMNS = ("", "tokens/s", "MFU", "p20 ms", "p50 ms", "p80 ms", "GiB", "first s", "loss", "this is")


def device_name(on_gpu: bool) -> str:
    return torch.cuda.get_device_name() if on_gpu else f"{cpu_name()}, {torch.get_num_threads()} threads"


def counts(batch: dict[str, Any]) -> dict[str, int]:
    _, tokens, squared, masked = batch["counts"].sum(axis=0).tolist()
    return {"tokens": tokens, "squared": squared, "masked": masked}


def finish(case: dict[str, Any], ceiling: float) -> float:
    """Adds to each row its rate, MFU, percentiles, whether its loss fell, and how many times faster than it ours is. Returns the
    ceiling, raised to what the fastest row reached if that is more."""
    work = case["work"]
    for row in case["rows"]:
        row.update(tokens_per_s=None, mfu=None, step_ms=None, this_is=None, this_is_by_turn=None, fell=None)
        if row["problem"]:
            continue
        seconds = row["seconds"]
        done = work[: len(seconds)]
        row["tokens_per_s"] = sum(w["tokens"] for w in done) / sum(seconds)
        row["flops_per_s"] = sum(flops(case, row, w) for w in done) / sum(seconds)
        row["step_ms"] = measurement.spread(seconds, 1e3)
        third = max(1, len(row["loss"]) // 3)
        row["fell"] = bool(mean(row["loss"][-third:]) < mean(row["loss"][:third]))
    measured = [row for row in case["rows"] if not row["problem"]]
    ceiling = max([ceiling, *(row["flops_per_s"] for row in measured)])
    for row in measured:
        row["mfu"] = row["flops_per_s"] / ceiling
    ours = next((row for row in measured if row["name"] == OURS), None)
    for row in measured:
        if ours and row is not ours:
            row["this_is_by_turn"] = measurement.ratios(row["seconds"], ours["seconds"], case["turns"])
            row["this_is"] = median(row["this_is_by_turn"])
    return ceiling


def flops(case: dict[str, Any], row: dict[str, Any], work: dict[str, int]) -> float:
    """What the row's model needs for a batch: Hugging Face's is not gated, and its head is on every token."""
    sizes = {"vocab_size": 30522, **case["sizes"]}
    baseline = row["model"] == "hf"
    return training_flops(
        sizes, not baseline, work["tokens"], work["squared"], work["tokens"] if baseline else work["masked"]
    )


def table(case: dict[str, Any]) -> str:
    slots = case["sequences"] * case["length"]
    real = mean(w["tokens"] for w in case["work"])
    lines = [
        f"\n{case['model']}, sequence {case['length']}: {case['sequences']} sequences a step, {real:.0f} real tokens in "
        f"{slots} slots; {case['batches']}",
        _line(COLUMNS),
    ]
    for row in case["rows"]:
        if row["problem"]:
            lines.append(f"  {row['name']:<20} not measured: {row['problem']}")
            continue
        step, third = row["step_ms"], max(1, len(row["loss"]) // 3)
        loss = f"{mean(row['loss'][:third]):.2f}>{mean(row['loss'][-third:]):.2f}" + (
            "" if row["fell"] else " DID NOT FALL"
        )
        ratio = f"{row['this_is']:.2f} x" if row["this_is"] else ""
        lines.append(
            _line((
                row["name"], f"{row['tokens_per_s']:,.0f}", f"{row['mfu']:.1%}", *(f"{step[p]:.0f}" for p in step),
                f"{row['peak_mem_gib']:.2f}", f"{row['warm_up_s']:.0f}", loss, ratio,
            ))
        )  # fmt: skip
        if row["this_is_by_turn"]:
            lines.append(f"  {'':<20} by turn: " + " ".join(f"{x:.2f}" for x in row["this_is_by_turn"]))
    lines += [f"  {row['name']}: {row['note']}" for row in case["rows"] if row["note"]]
    return "\n".join(lines)


def _line(cells: tuple[str, ...]) -> str:
    name, *rest = cells
    return f"  {name:<20}" + "".join(f"{cell:>12}" for cell in rest)


def write(cases: list[dict[str, Any]], out: Path, ceiling: float, on_gpu: bool) -> None:
    """The JSON file, the tables as text and the plot beside it."""
    device, threads = device_name(on_gpu), torch.get_num_threads()
    record = {"device": device, "threads": threads, "matmul_ceiling_flops": ceiling, "cases": cases}
    record = measurement.write(out, record)
    head = f"{device}; ceiling {ceiling / 1e12:.3g} TFLOP/s bf16, measured; commit {record['provenance']['commit']}\n"
    out.with_suffix(".txt").write_text(head + "\n".join(table(case) for case in cases) + "\n")
    draw(cases, device, out.with_suffix(".png"))


def draw(cases: list[dict[str, Any]], device: str, path: Path) -> None:
    """Bars of real tokens a second, a panel for each case; nothing where matplotlib is not installed."""
    figure = measurement.figure(5 * len(cases), 3.6)
    if figure is None:
        return
    for axes, case in zip(np.atleast_1d(figure.subplots(1, len(cases))), cases, strict=True):
        shown = [row for row in case["rows"] if not row["problem"]]
        colors = ["#3b6ea5" if row["model"] in ("this", "trainer") else "#b0b0b0" for row in shown]
        axes.barh([row["name"] for row in shown], [row["tokens_per_s"] for row in shown], color=colors)
        for y, row in enumerate(shown):
            ratio = f"  this is {row['this_is']:.2f} x" if row["this_is"] else ""
            axes.text(row["tokens_per_s"], y, f" {row['tokens_per_s']:,.0f}{ratio}", va="center", fontsize=7)
        axes.invert_yaxis()
        axes.margins(x=0.45)
        axes.set_xlabel("real tokens a second")
        axes.set_title(f"{case['model']}, sequence {case['length']}", fontsize=9)
    figure.suptitle(device, fontsize=9)
    figure.savefig(path)
