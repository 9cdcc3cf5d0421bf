"""What tests/kernels/compiled.json says, as the tables of docs/kernels.md."""

from __future__ import annotations

import json
from typing import Any

from tests.kernels import aot, budget
from tests.kernels.ceilings import CEILINGS

GPU = 90
HEAD = (
    "kernel",
    "instructions per byte",
    "loads, bits",
    "stores, bits",
    "barriers, shuffles",
    "programs",
    "issue to memory",
    "predicted share",
)


def page() -> str:
    """Markdown: every kernel on an H200, why some issue more than they should, and the predicted shares on all GPUs."""
    table = json.loads(aot.TABLE.read_text())
    target = f"sm_{GPU}"
    h200 = [_row(name, row[target]) for name, row in table.items() if target in row]
    reasons = [(f"`{name}`", f"{ceiling:.2f}", because) for name, (ceiling, because) in CEILINGS.items()]
    targets = [f"sm_{gpu}" for gpu in budget.GPUS]
    shared = [(name, row) for name, row in table.items() if all("predicted_share" in row.get(t, {}) for t in targets)]
    everywhere = [(f"`{name}`", *(_share(row[t]) for t in targets)) for name, row in shared]
    limit = budget.WARPS_PER_CYCLE * 32 / budget.GPUS[GPU].bytes_per_cycle
    parts = (
        f"A multiprocessor of an {budget.GPUS[GPU].name} can issue {limit:.1f} instructions for each byte that it moves.",
        _table(HEAD, h200),
        f"Where issue takes more than {budget.CEILING:.0%} of memory's time, it may not grow:",
        _table(("kernel", "issue to memory, at most", "because"), reasons),
        "Predicted share of the reachable bandwidth, where all six are predicted:",
        _table(("kernel", *(gpu.name for gpu in budget.GPUS.values())), everywhere),
    )
    return "\n\n".join(parts)


def _row(name: str, figures: dict[str, Any]) -> tuple[str, ...]:
    hottest = max(range(len(figures["instructions"])), key=lambda i: (i > 0, figures["instructions"][i]))
    loads, stores = (
        ", ".join(f"{count} x {bits}" for bits, count in figures[kind].items()) for kind in ("loads", "stores")
    )
    ratio = figures.get("issue_to_memory")
    return (
        f"`{name}`",
        f"{figures['per_byte']:.2f}",
        loads,
        stores,
        f"{figures['barriers'][hottest]}, {figures['shuffles'][hottest]}",
        str(figures["programs"]),
        "" if ratio is None else f"{ratio:.2f}",
        _share(figures),
    )


def _share(figures: dict[str, Any]) -> str:
    return f"{figures['predicted_share']:.0%}" if "predicted_share" in figures else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ("---",) * len(head), *rows))
