"""How the CPU's loops are compiled: for other processors, and what is said where they cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kernels.backends import Requirements, resolve
from kernels.cpu import build
from tests.kernels import test_cpu

needs_compiler = pytest.mark.skipif(build.refusal() is not None, reason=str(build.refusal()))


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """The loops are looked for as in a new process with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for function in (build._library, build.refusal):
        function.cache_clear()
    yield tmp_path
    for function in (build._library, build.refusal):
        function.cache_clear()


@needs_compiler
def test_for_a_processor_without_anything(monkeypatch, anew):
    """x86-64's least: no AMX, no AVX, and so the other engine for bfloat16's products."""
    monkeypatch.setattr(build, "FLAGS", tuple(x.replace("native", "x86-64") for x in build.FLAGS))
    monkeypatch.setattr(build, "WIDE", ())
    assert build.refusal() is None
    for dtype in test_cpu.DTYPES:
        test_cpu.test_attention([1, 3, 63, 0, 127, 128, 129], dtype, 5, True)
        test_cpu.test_glu(dtype, "gelu", 129)
        test_cpu.test_layer_norm(dtype, 129, True)
    test_cpu.test_dropout(0.1)


@needs_compiler
def test_compiled_once(anew):
    assert build.refusal() is None
    (file,) = (anew / "cache" / "bert_kernels").iterdir()
    before = file.stat().st_mtime_ns
    build._library.cache_clear()
    build._library()
    assert file.stat().st_mtime_ns == before and [file] == list(file.parent.iterdir())


def test_no_compiler(monkeypatch, anew):
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    needs = Requirements("cpu", torch.float32, 64)
    for kind, instead in (("kernels", "reference"), ("attention", "sdpa")):
        chosen = resolve(kind, "auto", needs)
        assert chosen.name == instead and chosen.why.startswith("not cpu: no C++ compiler found")
        assert chosen.in_short == f"{instead} ({chosen.why})", "what the user can mend is said"
    with pytest.raises(ValueError, match=r"model.kernels=cpu cannot run: no C\+\+ compiler found .*; install one"):
        resolve("kernels", "cpu", needs)


@needs_compiler
def test_what_a_compiler_says(monkeypatch, anew):
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-fno-such-flag"))
    assert "cannot compile the loops" in build.refusal() and "-fno-such-flag" in build.refusal()
    assert not list((anew / "cache" / "bert_kernels").iterdir())


@needs_compiler
def test_a_cache_that_cannot_be_written(monkeypatch, anew):
    (anew / "cache").write_text("a file where the folder should be")
    assert build.refusal() is None


@needs_compiler
def test_a_damaged_library(monkeypatch, anew):
    monkeypatch.setattr(build, "_compile", lambda command, file: file.write_bytes(b"half"))
    reason = build.refusal()
    (file,) = (anew / "cache" / "bert_kernels").iterdir()
    assert f"{file} cannot be loaded" in reason and "remove it" in reason


@needs_compiler
def test_several_processes_at_once(anew):
    """Each may compile; none loads half a library."""
    code = "from kernels.cpu import build; assert build.refusal() is None"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait(100) for process in processes] == [0, 0]
    assert len(list((anew / "cache" / "bert_kernels").iterdir())) == 1


@needs_compiler
def test_one_set_of_threads():
    """The loops run on the OpenMP that torch brings: two of them would wait for each other's processors."""
    code = """
from kernels.cpu import build
build._library()
with open("/proc/self/maps") as maps:
    print(len({line.split()[-1] for line in maps if "libgomp" in line or "libomp" in line}))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert found.stdout.strip() == "1", found
