"""What the run stands on: which device, in which precision, and how fast it could be at most."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from recipe.errors import UserError

# Dense bf16 TFLOP/s that the makers state in their data sheets, by words of the device's name, the longest match first.
_PEAK_TFLOPS = {
    "A100": 312,
    "A10G": 70,
    "A40": 150,
    "A6000": 155,
    "L40S": 362,
    "L4": 121,
    "4090": 165,
    "H100": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "GH200": 989,
    "H200": 989,
    "B200": 2250,
    "B300": 2250,
}


# mallopt's parameters in glibc's malloc.h, and its defaults.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MALLOC = {True: {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}, False: {_M_MMAP_MAX: 65536, _M_TRIM_THRESHOLD: 128 << 10}}


@dataclass(frozen=True)
class Hardware:
    """The devices of the whole run, all ranks together."""

    kind: str  # gpu | cpu
    name: str
    count: int  # GPUs, or CPU cores
    peak_flops: float | None  # per second, of all of them; None where it is not known
    autocast: torch.dtype | None  # None: float32

    @property
    def device(self) -> str:
        return "cuda" if self.kind == "gpu" else "cpu"

    @property
    def unit(self) -> str:
        """What there is a `count` of."""
        return "GPU" if self.kind == "gpu" else "core"

    @property
    def devices(self) -> str:
        return f"{self.count} {self.unit}{'s' if self.count != 1 else ''}, {self.name}"

    @property
    def activation_dtype(self) -> torch.dtype:
        return self.autocast or torch.float32


def keep_freed_memory(keep: bool = True) -> None:
    """Let the C library keep what large CPU tensors leave behind for the next ones, and not give it back to the system, which
    clears every page of it again at each step. Does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, value in _MALLOC[keep].items():
            mallopt(parameter, value)


def find_hardware(device: str, precision: str, ranks: int, nodes: int = 1) -> Hardware:
    """Resolve `device` (auto, gpu, cpu) and `precision` (auto, amp_bf16, fp32) on this machine, which is one of equal `nodes`
    with `ranks` processes in all. A GPU is counted for each rank, and on CPUs each core that a node may use.

    Raises:
        UserError: no such value, no GPU, or bf16 where it cannot run.
    """
    _one_of("device", device, ("auto", "gpu", "cpu"))
    _one_of("precision", precision, ("auto", "amp_bf16", "fp32"))
    has_gpu = torch.cuda.is_available()
    if device == "gpu" and not has_gpu:
        raise UserError("device=gpu: torch sees no CUDA GPU here; set device=cpu or auto")
    kind = "gpu" if has_gpu and device != "cpu" else "cpu"
    bf16_problem = _bf16_problem(kind)
    if precision == "amp_bf16" and bf16_problem:
        raise UserError(f"precision=amp_bf16: {bf16_problem}; set precision=fp32 or auto")
    autocast = torch.bfloat16 if precision != "fp32" and not bf16_problem else None
    if kind == "gpu":
        name = torch.cuda.get_device_name()
        peak = data_sheet_flops(name) if autocast else None
        return Hardware(kind, name, ranks, peak and peak * ranks, autocast)
    return Hardware(kind, cpu_name(), nodes * len(os.sched_getaffinity(0)), None, autocast)


def data_sheet_flops(name: str) -> float | None:
    """Dense bf16 FLOP/s of one GPU of this name, or None where it is not in the table."""
    key = max((key for key in _PEAK_TFLOPS if re.search(rf"\b{key}\b", name)), key=len, default=None)
    return _PEAK_TFLOPS[key] * 1e12 if key else None


def _bf16_problem(kind: str) -> str | None:
    if kind == "gpu":
        major, minor = torch.cuda.get_device_capability()
        return None if major >= 8 else f"this GPU (sm_{major}{minor}) has no bf16 tensor cores"
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        return None
    return "this CPU has no bf16 instructions (AVX512-BF16 or AMX)"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown CPU"


def _one_of(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{key}={value}: known are {', '.join(known)}")
