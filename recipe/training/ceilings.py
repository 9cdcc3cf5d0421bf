"""How fast a matrix product is at best on this machine: what MFU on a CPU, and every floor in `benchmarks/`, is measured against.

One measurement tells more about what else the machine was doing than about the machine. So several sizes are measured each time,
and the best of all times is kept in the user's cache, by device, threads, precision and torch's version. A run that turns out to
be faster than the ceiling raises it.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kernels.cpu.build import cache_folder
from recipe.system.files import write_whole
from recipe.system.hardware import cpu_name

# Sides of square matrices; the larger ones of a CPU keep many threads busy, and would take one thread seconds.
SIDES = {"cpu": (512, 1024), "many threads": (1024, 2048, 4096), "cuda": (4096, 8192)}
MANY = 8
FILE = "ceilings.json"


def matmul_flops(device: str, dtype: torch.dtype, seconds: float = 0.1) -> float:
    """FLOP/s of one device's (`cpu` with torch's threads, or `cuda`) best square matrix product so far; each size is measured for
    `seconds`."""
    sides = SIDES["many threads" if device == "cpu" and torch.get_num_threads() >= MANY else device]
    measured = max(_measure(device, dtype, side, seconds) for side in sides)
    return keep(device, dtype, measured)


def keep(device: str, dtype: torch.dtype, flops_per_s: float) -> float:
    """Raise the kept ceiling to `flops_per_s` if that is more, and return it; where nothing can be kept, `flops_per_s`."""
    folder = cache_folder()
    if folder is None:
        return flops_per_s
    kept, key = _read(folder / FILE), _key(device, dtype)
    best = max(kept.get(key, 0.0), flops_per_s)
    if best > kept.get(key, 0.0):
        with contextlib.suppress(OSError):  # a full disk, for example: it is measured again next time
            write_whole(folder / FILE, json.dumps(kept | {key: best}, indent=1))
    return best


def best_seconds(action: Callable[[], Any], device: str, seconds: float) -> float:
    """The shortest of at least three calls within `seconds`, the device waited for."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    action()
    best, times, start = float("inf"), 0, time.perf_counter()
    while times < 3 or time.perf_counter() - start < seconds:
        wait()
        before = time.perf_counter()
        action()
        wait()
        best, times = min(best, time.perf_counter() - before), times + 1
    return best


def _measure(device: str, dtype: torch.dtype, side: int, seconds: float) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / best_seconds(lambda: a @ b, device, seconds)


def _key(device: str, dtype: torch.dtype) -> str:
    name = torch.cuda.get_device_name() if device == "cuda" else f"{cpu_name()}, {torch.get_num_threads()} threads"
    precision = str(dtype).removeprefix("torch.")
    if dtype == torch.float32:
        precision += f" ({torch.get_float32_matmul_precision()})"
    return f"{name}, {precision}, torch {torch.__version__}"


def _read(file: Path) -> dict[str, float]:
    try:
        kept = json.loads(file.read_text("utf-8"))
        return {key: float(value) for key, value in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # absent, or not ours: measured anew
        return {}
