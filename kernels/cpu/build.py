"""The C++ loops of this folder, compiled here for this machine's processor when they are first wanted, and how they are called.

It takes a few seconds, once: the library is kept in the user's cache under a name made of the source, the compiler and the
processor. Python's and torch's headers are not needed. The threads are those of torch's own OpenMP.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++20", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
WIDE = ("-mprefer-vector-width=512",)  # where there are such: compilers would rather take half
TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LIMIT_S = 120


class Unbuilt(Exception):
    """The loops cannot be compiled here: why, in one line."""


@functools.cache
def refusal() -> str | None:
    """Why the loops cannot run on this machine, or None; the first call may compile them."""
    try:
        _library()
    except Unbuilt as reason:
        return str(reason)
    return None


def run(name: str, *arguments: Any) -> None:
    """Call a loop with tensors (their memory, None: null), integers and floats, and last the number of threads."""
    given = (*arguments, torch.get_num_threads())
    getattr(_library(), name)(*(_as_c(x) for x in given))


def _as_c(x: Any) -> Any:
    if isinstance(x, Tensor):
        return ctypes.c_void_p(x.data_ptr())
    if x is None:
        return ctypes.c_void_p()
    return ctypes.c_float(x) if isinstance(x, float) else ctypes.c_int64(x)


@functools.cache
def _library() -> ctypes.CDLL:
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        raise Unbuilt(f"no C++ compiler found ({', '.join(COMPILERS)}); install one, such as the package g++")
    flags = [*FLAGS, *(WIDE if "avx512f" in _processor() else ())]
    cache = cache_folder()
    folder = cache or Path(tempfile.mkdtemp(prefix="bert_kernels-"))
    file = folder / f"{_key(compiler, flags)}.so"
    try:
        if not file.exists():
            _compile([compiler, *flags], file)
        return ctypes.CDLL(str(file))
    except OSError as error:  # damaged, or where nothing may be run
        raise Unbuilt(
            f"{file} cannot be loaded ({error}); remove it, or set XDG_CACHE_HOME to another folder"
        ) from None
    finally:
        if cache is None:
            shutil.rmtree(folder)  # what is loaded stays


def _key(compiler: str, flags: list[str]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    known = "".join(file.read_text("utf-8") for file in _sources(headers=True))
    return hashlib.sha256("\n".join([known, version, *flags, _processor()]).encode()).hexdigest()[:24]


def _sources(headers: bool = False) -> list[Path]:
    return sorted([*HERE.glob("*.cpp"), *(HERE.glob("*.h") if headers else [])])


def _processor() -> str:
    """What the processor can do: code compiled for one may not run on another that shares the home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def cache_folder() -> Path | None:
    """Where compiled loops are kept; None where nothing can be."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bert_kernels"
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):  # the latter where there is no home
        return None
    return folder


def _compile(command: list[str], file: Path) -> None:
    """Under another name first, so that no process loads half a library."""
    part = file.with_suffix(f".{os.getpid()}.part")
    try:
        done = subprocess.run(
            [*command, *map(str, _sources()), "-o", str(part)], capture_output=True, text=True, timeout=LIMIT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unbuilt(f"{command[0]} failed: {error}") from None
    if done.returncode:
        lines = (
            [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no message"]
        )
        raise Unbuilt(f"{command[0]} cannot compile the loops: {lines[0].strip()[:200]}")
    part.replace(file)
