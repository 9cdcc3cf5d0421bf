"""Each kernel's speed beside its rivals', on the GPU at hand or the CPU: first whether it is right, then how fast.

    python -m benchmarks.kernels                      everything, into benchmarks/results/kernels/
    python -m benchmarks.kernels --only attention     cases whose kernel or name holds a word
    python -m benchmarks.kernels --check              correctness alone, small; with TRITON_INTERPRET=1 Triton's on a CPU

All implementations of a case are timed in turns within one run, with the cache emptied before each call and a GPU kept busy
while the host prepares it, so that what is measured is the GPU's time, as in a training step whose host runs ahead. Needs
torch, triton, numpy and, for the plot, matplotlib; rivals are measured where they are installed.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import kernel_cases, measurement
from benchmarks import kernel_report as report
from benchmarks.kernel_cases import CHECK_TOKENS, COMPILED, TOKENS, Case, Implementation, Problem, ours
from kernels.checks import interpreting
from recipe import records
from recipe.errors import class_and_line
from recipe.system.hardware import cpu_name

OUT = Path("benchmarks/results/kernels")
ROUNDS = 40
SECONDS_PER_CASE = 3.0  # of timing, split among a case's implementations
CACHE_BYTES = 256 << 20  # more than any GPU's second-level cache, or a core's
NOT_MEASURED = "not measured"
HEAD_START_CYCLES = 2_000_000  # about a millisecond in which the host gets ahead


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 for a kernel that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="cases whose kernel or name holds a word")
    parser.add_argument("--check", action="store_true", help="check small problems for correctness, time nothing")
    parser.add_argument("--seconds", type=float, default=300, help="start no case after so many (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of results (%(default)s)")
    words = parser.parse_args(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = [
        c
        for c in kernel_cases.all_cases(device)
        if not words.only or any(w in f"{c.kernel} {c.name}" for w in words.only)
    ]
    if words.check:
        return check_all(cases, device)
    if device == "cpu" and interpreting():
        parser.error("an interpreter's speed is nobody's: unset TRITON_INTERPRET, or say --check")
    return measure_all(cases, words.seconds, words.out, device)


# Correctness.


def gradients(run: Implementation, problem: Problem) -> list[Tensor]:
    """The result, and the gradients that a fixed gradient of it brings; of two results, both in one tensor."""
    out = run(problem)
    outs = out if isinstance(out, tuple) else (out,)
    douts = [
        torch.linspace(-1, 1, x.numel(), device=x.device).view(x.shape).to(x.dtype) if x.dim() else None for x in outs
    ]
    together = torch.stack([x.detach() for x in outs])
    return [together, *torch.autograd.grad(outs, tuple(problem.leaves.values()), douts)]


def fault(case: Case, name: str, run: Implementation, tokens: int, device: str) -> str | None:
    """What is wrong with an implementation on a small problem, dropout off; None if nothing.

    Our errors against float64 may be twice those of the reference at the same precision, plus 4 roundings of the greatest
    value. Rivals, which round where they please, may have 8 times as much: they only must not compute something else.
    """
    slack = 1 if name.startswith(ours(device)) else 8
    torch.manual_seed(0)
    problem = case.problem(device, tokens)
    if interpreting():  # which multiplies bfloat16 as if it were integers
        problem = problem.to(torch.float32)
    if "dropout_p" in problem.rest:
        problem.rest["dropout_p"] = 0.0
    truth = gradients(lambda p: kernel_cases.exact(case, p, name), problem.to(torch.float64))
    plain = gradients(lambda p: kernel_cases.exact(case, p, name), problem)
    for what, x, p, e in zip(("output", *problem.leaves), gradients(run, problem), plain, truth, strict=True):
        error, allowed = ((y.double() - e).abs().max().item() for y in (x, p))
        precision = torch.finfo(next(iter(problem.leaves.values())).dtype).eps / 2
        bound = slack * (2 * allowed + 4 * precision * e.abs().max().item())
        if not error <= bound:
            return f"{what} is off by {error:.2g}, {bound:.2g} allowed"
    return None


def check_all(cases: list[Case], device: str) -> int:
    """Print whether our kernels are right on small problems; 1 if one is not."""
    wrong = 0
    tokens = 24 if interpreting() else CHECK_TOKENS
    for case in cases:
        if interpreting() and case.kernel == "attention" and not case.name.startswith("128"):
            continue  # hours in the interpreter
        found = case.implementations(case.problem(device, tokens))
        for name, run in found.items():
            if name.startswith(ours(device)):
                problem = run if isinstance(run, str) else fault(case, name, run, tokens, device)
                print(f"{case.kernel:<14} {case.name:<28} {name:<16} {problem or 'right'}", flush=True)
                wrong += problem is not None
    return int(wrong > 0)


# Speed.


def measure_all(cases: list[Case], seconds: float, out: Path, device: str) -> int:
    start, own = time.perf_counter(), ours(device)
    best, made = measurement.measure_ceilings(device, torch.bfloat16), provenance(device)
    ceilings = {"GB/s": best.bytes_per_s / 1e9, "TFLOP/s": best.flops_per_s / 1e12}
    print(f"{made['device']}: {ceilings['GB/s']:.3g} GB/s copied, {ceilings['TFLOP/s']:.3g} TFLOP/s bf16")
    rows: list[dict[str, Any]] = []
    record = {
        "provenance": made, "ceilings": ceilings, "lengths": kernel_cases.LENGTH_MODEL, "tokens": TOKENS[device],
        "rows": rows,
    }  # fmt: skip
    written: list[Path] = []
    for case in cases:
        if time.perf_counter() - start > seconds:
            found = [report.row(case.kernel, case.name, own, "", f"{NOT_MEASURED}: {seconds:.0f} s were over")]
        else:
            found = measure(case, ceilings, device)
        rows += found
        print(report.table(found), flush=True)
        written = report.write(record, out)  # after each case, so that a run cut short leaves what it measured
    for path in written:
        print(path)
    problems = [r["problem"] for r in rows if r["implementation"].startswith(own) and r["problem"]]
    return int(any(not problem.startswith(NOT_MEASURED) for problem in problems))


def provenance(device: str) -> dict[str, Any]:
    versions = {"torch": torch.__version__, "triton": metadata.version("triton")}
    if device == "cpu":
        return {**records.provenance(), "device": cpu_name(), "threads": torch.get_num_threads(), **versions}
    properties = torch.cuda.get_device_properties(0)
    return {
        **records.provenance(),
        "device": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        **versions,
    }


def measure(case: Case, ceilings: dict[str, float], device: str) -> list[dict[str, Any]]:
    """A row for each implementation and mode; without figures, and with the reason, where it is wrong or cannot run."""
    torch.manual_seed(0)
    problem = case.problem(device, TOKENS[device])
    dout = torch.randn_like(case_output(case, problem))
    calls: dict[tuple[str, str], Any] = {}
    problems: dict[str, str] = {}
    for name, run in case.implementations(problem).items():
        reason = run if isinstance(run, str) else why_not(case, name, run, problem, dout, device)
        if reason:
            problems[name] = reason
        else:
            calls[name, "forward"] = partial(forward, run, problem)
            calls[name, "both"] = partial(both, run, problem, dout)
    times = time_in_turns(calls, SECONDS_PER_CASE, device)
    rows = [report.row(case.kernel, case.name, name, "", reason) for name, reason in problems.items()]
    work = {"forward": problem.forward_work, "both": problem.total_work}
    for (name, mode), values in times.items():
        figures = list(measurement.spread(values).values())
        rate = work[mode] / figures[1] / (1e6 if case.unit == "GB/s" else 1e9)
        rows.append(report.row(case.kernel, case.name, name, mode, None, figures, rate, case.unit, ceilings[case.unit]))
    report.add_ratios(rows, ours(device))
    torch._dynamo.reset()
    return sorted(rows, key=lambda r: (r["mode"], r["p50_ms"] or 0))


def case_output(case: Case, problem: Problem) -> Tensor:
    """A tensor shaped as each result: of the case's first leaf in all but the two cases that say otherwise."""
    first = next(iter(problem.leaves.values())).detach()
    if case.kernel == "cross_entropy":
        return first.new_zeros((), dtype=torch.float32)
    return first[:, : first.shape[1] // 2] if case.kernel == "glu" else first


def forward(run: Implementation, problem: Problem) -> None:
    with torch.no_grad():
        run(problem)


def both(run: Implementation, problem: Problem, dout: Tensor) -> None:
    out = run(problem)
    douts = (dout,) * len(out) if isinstance(out, tuple) else dout
    torch.autograd.grad(out, tuple(problem.leaves.values()), douts)


def why_not(case: Case, name: str, run: Implementation, problem: Problem, dout: Tensor, device: str) -> str | None:
    """Why an implementation is not timed: it is wrong, or it fails at this size. Warms it up besides.

    What torch.compile makes is not checked: that would be another compilation, for the small problem's shapes.
    """
    try:
        if name != COMPILED and (found := fault(case, name, run, CHECK_TOKENS, device)):
            return f"wrong: {found}"
        for _ in range(2):
            forward(run, problem)
            both(run, problem, dout)
        if device == "cuda":
            torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    except Exception as error:  # a rival's failure is a line in the table, not the end of the run
        return f"failed: {class_and_line(error)}"
    finally:
        gc.collect()
        torch.cuda.empty_cache()  # which does nothing where there is none
    return None


def time_in_turns(calls: dict[Any, Any], seconds: float, device: str) -> dict[Any, list[float]]:
    """Milliseconds of each call, one of each a round."""
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device=device)

    def time_one(call: Any) -> float:
        cache.zero_()
        if device == "cuda":
            torch.cuda._sleep(HEAD_START_CYCLES)
        return 1e3 * measurement.timed(call, device)[0]

    return measurement.in_turns({name: partial(time_one, call) for name, call in calls.items()}, ROUNDS, seconds)


if __name__ == "__main__":
    raise SystemExit(main())
