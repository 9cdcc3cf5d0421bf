"""What `benchmarks/gpu.sh` runs and in which order, and that no part costs more than itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from benchmarks import gpu, kernels, throughput

ROOT = Path(__file__).resolve().parents[2]
FULL = gpu.parts(gpu.FULL, Path("results"), "data/books")
WORTH = ["machine", "loss", "kernels-base", "step-128", "step-512"]


def code(name: str, text: str, limit_s: float = 600, **others) -> gpu.Part:
    return gpu.Part(name, limit_s, ["-c", text], **others)


def kept(out: Path) -> dict[str, str]:
    with tarfile.open(out / "results.tar.gz") as archive:
        return {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers() if m.isfile()}


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_S", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return gpu.Run(tmp_path / "out", 6000)


def test_parts_stand_in_the_order_of_their_worth_and_the_first_fit_the_limit():
    names = [part.name for part in FULL]
    assert names[: len(WORTH)] == WORTH and len(set(names)) == len(names)
    assert sum(part.limit_s for part in FULL if part.name in WORTH) <= gpu.LIMIT_S - gpu.COPYING_S
    small = [part.name for part in gpu.parts(gpu.SMALL, Path("results"), "data/books")]
    assert small == [part.name for part in FULL if "streaming" not in part.needs], (
        "a rehearsal has all but the trainer's"
    )
    outputs = [word for part in FULL for word in part.words if "results/" in word]
    assert len(outputs) == len(set(outputs)) == len(FULL) - 1, "each has a file of its own"


@pytest.mark.parametrize("sizes", [gpu.FULL, gpu.SMALL], ids=["full", "small"])
def test_every_part_s_words_are_understood(sizes, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for part in gpu.parts(sizes, Path("results"), "data/books"):
        module, words = part.words[1], part.words[2:]
        if module == "benchmarks.kernels":
            asked = kernels.arguments(words)
            chosen = [case.kernel for case in kernels.chosen(asked, "cuda")]
            assert chosen and (asked.part != "base" or len(set(chosen)) == len(chosen) == (1 if asked.check else 5))
            assert asked.check or asked.seconds + 25 <= part.limit_s, "time is left to measure in"
        elif module == "benchmarks.throughput":
            asked = throughput.arguments(words)
            assert asked.out.parent == Path("results")
            assert part.needs or asked.patience <= part.limit_s
    checked = kernels.arguments(FULL[1].words[2:])
    assert checked.check and 0.3 * checked.tokens * 30_528 * 2 > 512 << 20, "more than one chunk of the loss"


def test_tests_that_a_gpu_need_not_run_are_left_out(monkeypatch):
    found = {Path(file).name for file in gpu.kernel_tests()}
    elsewhere = {"test_budget.py", "test_compile.py", "test_cpu.py", "test_cpu_build.py"}
    assert "test_attention_triton.py" in found and not found & elsewhere
    monkeypatch.setattr(gpu, "has", lambda package: False)
    assert found - {Path(file).name for file in gpu.kernel_tests()} == {"test_attention_properties.py"}


def test_a_part_that_fails_or_hangs_costs_only_itself(run, tmp_path, capsys):
    alive = tmp_path / "pid"
    hangs = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen(['sleep', '600']); open({str(alive)!r}, 'w').write(str(child.pid))\n"
        f"open({str(run.results / 'half.txt')!r}, 'w').write('half a table'); print('begun', flush=True); time.sleep(600)"
    )
    assert not run.part(code("fails", "raise SystemExit('what went wrong')"))
    assert "what went wrong" in kept(tmp_path / "out")["logs/fails.log"]
    assert not run.part(code("hangs", hangs, limit_s=5))
    assert run.part(code("right", f"open({str(run.results / 'a.json')!r}, 'w').write('1')")) and run.failed
    files = kept(tmp_path / "out")
    assert files["results/a.json"] == "1" and files["results/half.txt"] == "half a table"
    assert "begun" in files["logs/hangs.log"]
    while is_running(int(alive.read_text())):  # it was killed, which may take a moment
        time.sleep(0.05)
    summary = (tmp_path / "out/summary.txt").read_text()
    assert "fails          FAILED (exit 1)" in summary and "hangs          FAILED (cut after 5 s)" in summary
    assert "right          done" in summary and "half a table" in summary
    assert "    what went wrong" in capsys.readouterr().out


def test_what_cannot_run_here_is_left_out(run, tmp_path):
    assert run.part(code("lacks", "raise SystemExit(1)", needs=("json", "no_such_package")))
    assert run.part(code("without data", "raise SystemExit(1)", dataset="data/none"))
    assert run.part(gpu.Part("no tests", 600, ["-c", "raise SystemExit(5)", "pytest"]))
    late = gpu.Run(tmp_path / "late", 0)
    assert late.part(code("late", "raise SystemExit(1)")) and not late.failed
    late.keep()
    assert "late           not begun: no time was left" in (tmp_path / "late/summary.txt").read_text()
    run.keep()
    summary = (tmp_path / "out/summary.txt").read_text()
    assert "left out: no_such_package not installed" in summary and "data/none is no prepared dataset" in summary
    assert not run.failed


def test_without_a_gpu_nothing_else_is_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    for name, value in {"OUT": str(tmp_path / "out"), "LIMIT": "", "SMALL": "", "PARTS": ""}.items():
        monkeypatch.setenv(name, value)
    first, second = code("machine", "raise SystemExit(2)"), code("loss", "raise SystemExit(0)")
    monkeypatch.setattr(gpu, "parts", lambda *_: [first, second])
    assert gpu.main([]) == 2 and "loss" not in capsys.readouterr().out
    monkeypatch.setenv("PARTS", "loss")
    assert gpu.main([]) == 0 and "machine" not in capsys.readouterr().out


def test_stopped_it_leaves_what_it_has(tmp_path):
    """As where the machine is taken away at a limit of its own."""
    text = (
        "from benchmarks import gpu\n"
        "gpu.parts = lambda *_: [gpu.Part('first', 600, ['-c', 'print(1234)']),\n"
        "    gpu.Part('second', 600, ['-c', 'import time; open(\"begun\", \"w\"); time.sleep(600)'])]\n"
        f"gpu.ROOT = {str(tmp_path)!r}\n"
        "raise SystemExit(gpu.main([]))\n"
    )
    environment = {**os.environ, "OUT": str(tmp_path / "out"), "TMPDIR": str(tmp_path), "PARTS": "", "LIMIT": "6000"}
    process = subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert "1234" in kept(tmp_path / "out")["logs/first.log"]
    assert "stopped by signal 15" in (tmp_path / "out/summary.txt").read_text()
