"""The kernel benchmark where there is no GPU: its cases, its judgement of right and wrong, its table, its files, its refusal."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import kernel_cases, kernels, machine, measurement
from benchmarks import kernel_report as report
from kernels.cpu import build
from recipe import records

ROOT = Path(__file__).resolve().parents[2]
CASES = {case.kernel: case for case in reversed(kernel_cases.all_cases())}  # the first of each kernel


def rows() -> list[dict]:
    """A case with a rival, one that is wrong and one that is absent."""
    made = [
        report.row("glu", "F 3072", "triton", mode, None, times, rate, "GB/s", 4000.0)
        for mode, times, rate in (("forward", [0.9, 1.0, 1.2], 3200.0), ("both", [2.4, 2.5, 2.6], 3000.0))
    ]
    made += [
        report.row("glu", "F 3072", "eager", mode, None, times, rate, "GB/s", 4000.0)
        for mode, times, rate in (("forward", [2.0, 2.5, 2.6], 1280.0), ("both", [7.4, 7.5, 7.6], 1000.0))
    ]
    made += [
        report.row("glu", "F 3072", "torch.compile", "", "wrong: output is off by 0.1"),
        report.row("glu", "F 3072", "liger", "", "liger_kernel is not installed"),
    ]
    report.add_ratios(made, "triton")
    return made


def record() -> dict:
    made = {"device": "NVIDIA H200", "torch": "2.10.0", "triton": "3.6.0"}
    return {
        "provenance": {**records.provenance(), **made},
        "ceilings": {"GB/s": 4000.0, "TFLOP/s": 700.0},
        "lengths": kernel_cases.LENGTH_MODEL,
        "tokens": 65536,
        "rows": rows(),
    }


def test_ratios_and_shares():
    ratio = {(r["implementation"], r["mode"]): r["ours_is"] for r in rows()}
    assert ratio["eager", "forward"] == 2.5 and ratio["eager", "both"] == 3.0
    assert ratio["triton", "both"] is None and ratio["torch.compile", ""] is None and ratio["liger", ""] is None
    assert [r["of_ceiling"] for r in rows()[:2]] == [0.8, 0.75]


def test_no_ratio_to_a_kernel_that_is_wrong():
    ours = report.row("glu", "F 3072", "triton", "", "wrong: dx is off by 0.1, 0.001 allowed")
    made = [ours, *rows()[2:4]]
    for r in made:
        r["ours_is"] = None
    report.add_ratios(made, "triton")
    assert [r["ours_is"] for r in made] == [None] * 3
    assert " x" not in report.table(made).replace("F 3072", "") and "wrong: dx is off by 0.1" in report.table(made)


def test_table():
    lines = report.table(rows()).splitlines()
    assert lines[1] == "glu: F 3072" and len(lines) == 9
    assert lines[2].split("  ")[1] == "implementation" and lines[2].endswith("ours is")
    assert lines[4].split() == ["triton", "forward", "+", "backward", "2.400", "2.500", "2.600", "3000", "GB/s", "75%"]
    assert lines[5].split() == ["eager", "forward", "2.000", "2.500", "2.600", "1280", "GB/s", "32%", "2.50", "x"]
    assert lines[7].endswith("wrong: output is off by 0.1") and lines[8].endswith("liger_kernel is not installed")


def test_files(tmp_path):
    data, text, plot = report.write(record(), tmp_path / "kernels")
    stored = json.loads(data.read_text())
    assert (
        data.name.startswith("h200-2") and stored["rows"] == rows() and stored["lengths"] == kernel_cases.LENGTH_MODEL
    )
    assert {"commit", "dirty", "started", "device", "torch", "triton"} <= set(stored["provenance"])
    assert "NVIDIA H200, torch 2.10.0, triton 3.6.0, commit " in text.read_text() and "3.00 x" in text.read_text()
    assert plot.read_bytes().startswith(b"\x89PNG")
    only_wrong = {**record(), "rows": [r for r in rows() if r["problem"]]}
    assert len(report.write(only_wrong, tmp_path)) == 3


def test_lengths():
    lengths = kernel_cases.c4_lengths(65536, 128)
    assert sum(lengths) == 65536 and max(lengths) == 128 and min(lengths[:-1]) >= 3
    assert lengths == kernel_cases.c4_lengths(65536, 128)
    assert 0.6 < sum(length == 128 for length in lengths) / len(lengths) < 0.9
    many = kernel_cases.c4_lengths(10_000_000, 10**6)
    assert sum(many) / len(many) == pytest.approx(kernel_cases.C4_MEAN_TOKENS, rel=0.03)


@pytest.mark.parametrize("kernel", CASES)
def test_right_and_wrong(kernel):
    """What plain torch computes is right, as is what a CPU's loops do; something else is not."""
    case = CASES[kernel]
    found = case.implementations(case.problem("cpu", 24))
    eager = found["eager"]
    assert kernels.fault(case, "eager", eager, 24, "cpu") is None
    own = kernel_cases.ours("cpu")
    assert isinstance(found[own], str) or kernels.fault(case, own, found[own], 24, "cpu") is None

    def bent(problem):
        out = eager(problem)
        return tuple(x * 1.3 for x in out) if isinstance(out, tuple) else out * 1.3

    for name in ("eager", own):
        assert " is off by " in kernels.fault(case, name, bent, 24, "cpu")


def test_every_kernel_is_measured():
    assert set(CASES) == {
        "attention",
        "glu",
        "layer_norm",
        "layer_norm_twice",
        "add_layer_norm",
        "cross_entropy",
        "padding",
        "rotary",
        "take_rows",
    }
    lengths = {case.name.split(",")[0] for case in kernel_cases.all_cases() if case.kernel == "attention"}
    assert lengths == {"128", "512", "1024", "8192"}
    for case in CASES.values():
        problem = case.problem("cpu", 24)
        shape = kernels.case_output(case, problem).shape
        out = case.implementations(problem)["eager"](problem)
        assert {shape} == {x.shape for x in (out if isinstance(out, tuple) else (out,))}


def test_local_attention_is_right_and_counts_what_it_meets():
    case = next(case for case in kernel_cases.all_cases("cpu") if "local 128" in case.name)
    assert case.name == "1024, full, local 128, 12 x 64"
    found = case.implementations(case.problem("cpu", 24))
    for name in ("eager", kernel_cases.ours("cpu")):
        assert isinstance(found[name], str) or kernels.fault(case, name, found[name], 24, "cpu") is None
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    for window in (None, 0, 3, 8, 20):
        assert kernel_cases.pairs(9, window) == (distance <= (99 if window is None else window)).sum()


@pytest.mark.parametrize("kernel", CASES)
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_measuring(kernel, device, monkeypatch, tmp_path):
    """All of a run but the clock and the GPU: every implementation is called in both modes, and one that fails is a line."""
    case = CASES[kernel]
    own = "triton" if device == "cuda" else "cpu"
    on_cpu = dataclasses.replace(case, problem=lambda _, tokens: case.problem("cpu", tokens))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(kernel_cases, "ours", lambda _: own)
    monkeypatch.setattr(kernels, "TOKENS", {device: 24})
    monkeypatch.setattr(kernels, "CHECK_TOKENS", 24)
    monkeypatch.setattr(torch, "compile", lambda function, **_: "not here")  # a minute each
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(measurement, "measure_ceilings", lambda *_: measurement.Ceilings(1e12, 1e10))
    monkeypatch.setattr(machine, "provenance", lambda: record()["provenance"])
    times = {"eager": 2.0, "reference": 4.0, "sdpa": 1.0, "cpu": 1.5}

    def in_turns(calls, seconds, device, rounds):
        return {(name, mode): [call() or times.get(name, 1.0)] * 5 for (name, mode), call in calls.items()}

    monkeypatch.setattr(kernels, "time_in_turns", in_turns)
    fails = build.refusal() is not None or own == "triton"
    assert kernels.measure_all([on_cpu], 60, tmp_path, device) == int(fails), "Triton's cannot run here"
    stored = json.loads(next(tmp_path.glob("*.json")).read_text())["rows"]
    eager = {r["mode"]: r for r in stored if r["implementation"] == "eager"}
    assert set(eager) == {"forward", "both"} and all(r["p50_ms"] == 2.0 for r in eager.values())
    assert all(r["ours_is"] == (None if fails else pytest.approx(2.0 / 1.5)) for r in eager.values())
    problem = case.problem("cpu", 24)
    per_second = problem.total_work / 2e-3 / (1e9 if case.unit == "GB/s" else 1e12)
    assert eager["both"]["rate"] == pytest.approx(per_second)
    if own == "triton":
        ours = [r for r in stored if r["implementation"] == "triton"]
        assert len(ours) == 1 and "needs a CUDA GPU" in ours[0]["problem"]
    # and when the time is over, a line says what was not measured, which is no failure
    assert kernels.measure_all([on_cpu], -1, tmp_path, device) == 0
    assert "not measured: no time was left" in next(tmp_path.glob("*.txt")).read_text()


def test_the_clock_of_a_cpu():
    times = kernels.time_in_turns({"short": lambda: time.sleep(0.001), "long": lambda: time.sleep(0.02)}, 0.0, "cpu")
    assert all(len(values) == measurement.LEAST_ROUNDS for values in times.values())
    assert 1 <= min(times["short"]) < 20 <= min(times["long"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_interpreter_is_not_timed(capsys, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as left:
        kernels.main(["--only", "glu"])
    assert left.value.code == 2 and "an interpreter's speed is nobody's" in capsys.readouterr().err


def test_needs_little():
    code = "import benchmarks.kernels, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {
        "composer",
        "streaming",
        "transformers",
        "omegaconf",
        "yaml",
        "matplotlib",
        "plotly",
        "liger_kernel",
    }
    assert not heavy & set(done.stdout.split())
