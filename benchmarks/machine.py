"""What machine this is and which code runs on it: what a result must say, so that it can be compared with another's.

    python -m benchmarks.machine [--gpu] [--out FILE]      prints it, and what can run here; --gpu: an error where there is none

Whatever cannot be asked, because a tool or a package is not there, is null. Needs torch.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from kernels import backends
from recipe import records
from recipe.errors import end
from recipe.system.files import write_whole
from recipe.system.hardware import cpu_name

SMI = ("driver_version", "power.limit", "clocks.max.sm", "clocks.max.mem", "temperature.gpu")
SMI_LIMIT_S = 20
DRIVER = Path("/proc/driver/nvidia/version")
COMPILERS = ("cc", "gcc", "clang")  # Triton's, for what starts its kernels


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 2 where a GPU is asked for and torch sees none."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true", help="an error where torch sees no CUDA GPU")
    parser.add_argument("--out", type=Path, help="write it as JSON, too")
    words = parser.parse_args(argv)
    if words.gpu and not torch.cuda.is_available():
        print("error: torch sees no CUDA GPU here")
        return 2
    found = provenance()
    print("\n".join(f"{key:<20} {value}" for key, value in found.items() if not isinstance(value, dict)))
    if words.out:
        words.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(words.out, json.dumps(found, indent=1) + "\n")
    backends.main()
    return 0


def provenance() -> dict[str, Any]:
    """A run's provenance, and this machine's: `device`, the GPU or the processor, and what its speed depends on."""
    return {**records.provenance(), **(gpu() if torch.cuda.is_available() else cpu())}


def cpu() -> dict[str, Any]:
    return {"device": cpu_name(), "threads": torch.get_num_threads(), **_versions()}


def gpu() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    asked = nvidia_smi()
    return {
        "device": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": asked.get("driver_version") or driver_here(),
        "power_limit_w": _number(asked.get("power.limit")),
        "sm_mhz_at_most": _number(asked.get("clocks.max.sm")),
        "memory_mhz_at_most": _number(asked.get("clocks.max.mem")),
        "temperature_c": _number(asked.get("temperature.gpu")),
        "cuda": torch.version.cuda,
        "host": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "compiler": next((path for name in COMPILERS if (path := shutil.which(name))), None),
        **_versions(),
    }


def nvidia_smi() -> dict[str, str]:
    """What nvidia-smi says of the first GPU, by the names in SMI; empty where it is not there or does not answer."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_LIMIT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")] if done.stdout.strip() else []
    return dict(zip(SMI, values, strict=True)) if len(values) == len(SMI) else {}


def driver_here() -> str | None:
    """The driver's version as its kernel module says it, where there is no nvidia-smi."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", DRIVER.read_text(errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:  # "[N/A]"
        return None


def _versions() -> dict[str, str | None]:
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        triton = None
    return {"torch": torch.__version__, "triton": triton}


if __name__ == "__main__":
    end(main)
