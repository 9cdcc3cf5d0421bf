"""Each kernel's speed beside its rivals', on the GPU at hand or the CPU: first whether it is right, then how fast.

    python -m benchmarks.kernels                      everything, into benchmarks/results/kernels/
    python -m benchmarks.kernels --only attention     cases whose kernel or name holds a word
    python -m benchmarks.kernels --check              correctness alone, small; with TRITON_INTERPRET=1 Triton's on a CPU
    python -m benchmarks.kernels --processes 6        a process for each case, so many compiling at a time (kernel_processes.py)

All implementations of a case are timed in turns within one run, with the cache emptied before each call and a GPU kept busy
while the host prepares it, so that what is measured is the GPU's time, as in a training step whose host runs ahead. Needs
torch, triton, numpy and, for the plot, matplotlib; rivals are measured where they are installed.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import kernel_cases, kernel_processes, machine, measurement
from benchmarks import kernel_report as report
from benchmarks.kernel_cases import CHECK_TOKENS, COMPILED, TOKENS, Case, Implementation, Problem, ours
from kernels.checks import interpreting
from recipe.errors import class_and_line, end

OUT = Path("benchmarks/results/kernels")
ROUNDS = 40
SMALL_TOKENS = 24
SECONDS_PER_CASE = 3.0  # of timing, split among a case's implementations
PATIENCE_S = {False: 30.0, True: 900.0}  # with a process that times its case; in a rehearsal, on whatever processor
CACHE_BYTES = 256 << 20  # more than any GPU's second-level cache, or a core's
HEAD_START_CYCLES = 2_000_000  # about a millisecond in which the host gets ahead


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 1 for a kernel that is wrong."""
    words = arguments(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cases = chosen(words, device)
    if words.check:
        return check_all(cases, device, words.tokens, words.out)
    if words.small:
        measurement.small_ceilings()
    return measure_all(cases, words.seconds, words.out or OUT, device, words.tokens, words.processes, words.small)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="cases whose kernel or name holds a word")
    parser.add_argument("--part", choices=("base", "rest"), help="each kernel once at its shape in Base, or all others")
    parser.add_argument("--check", action="store_true", help="check small problems for correctness, time nothing")
    parser.add_argument("--tokens", type=int, help="of a problem that is timed, or checked; default: this device's")
    parser.add_argument(
        "--processes", type=int, default=0, help="that compile at a time, one for each case; 0: none but this"
    )
    parser.add_argument("--seconds", type=float, default=300, help="start no case after so many (%(default)s)")
    parser.add_argument("--out", type=Path, help=f"folder of results ({OUT}); of a check, only where it is given")
    parser.add_argument("--small", action="store_true", help="narrow problems, measured once or twice: a rehearsal")
    words = parser.parse_args(argv)
    if interpreting() and not (words.check or words.small):
        parser.error("an interpreter's speed is nobody's: unset TRITON_INTERPRET, or say --check")
    return words


def chosen(words: argparse.Namespace, device: str) -> list[Case]:
    cases = kernel_cases.all_cases(device, words.small)
    if words.part:
        base = kernel_cases.base_cases(cases)
        cases = base if words.part == "base" else [case for case in cases if case not in base]
    return [c for c in cases if not words.only or any(w in f"{c.kernel} {c.name}" for w in words.only)]


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


def check_tokens() -> int:
    return SMALL_TOKENS if interpreting() else CHECK_TOKENS


def check_all(cases: list[Case], device: str, tokens: int | None = None, out: Path | None = None) -> int:
    """Print whether our kernels are right on small problems, or on one of `tokens`; 1 if one is not."""
    rows: list[dict[str, Any]] = []
    tokens = tokens or check_tokens()
    for case in cases:
        if interpreting() and case.kernel == "attention" and not case.name.startswith("128"):
            continue  # hours in the interpreter
        found = case.implementations(case.problem(device, tokens))
        for name, run in found.items():
            if name.startswith(ours(device)):
                problem = run if isinstance(run, str) else fault(case, name, run, tokens, device)
                print(f"{case.kernel:<14} {case.name:<28} {name:<16} {problem or 'right'}", flush=True)
                rows.append({"kernel": case.kernel, "case": case.name, "implementation": name, "problem": problem})
                if out:
                    measurement.write(out / "check.json", {"tokens": tokens, "rows": rows})
    return int(any(row["problem"] for row in rows))


# Speed.


def measure_all(
    cases: list[Case], seconds: float, out: Path, device: str, tokens: int | None = None, processes: int = 0,
    small: bool = False,
) -> int:  # fmt: skip
    own, tokens = ours(device), tokens or (SMALL_TOKENS if small else TOKENS[device])
    best, made = measurement.measure_ceilings(device, torch.bfloat16), machine.provenance()
    ceilings = {"GB/s": best.bytes_per_s / 1e9, "TFLOP/s": best.flops_per_s / 1e12}
    print(f"{made['device']}: {ceilings['GB/s']:.3g} GB/s copied, {ceilings['TFLOP/s']:.3g} TFLOP/s bf16")
    rows: list[dict[str, Any]] = []
    record = {
        "provenance": made, "ceilings": ceilings, "lengths": kernel_cases.LENGTH_MODEL, "tokens": tokens,
        "rows": rows,
    }  # fmt: skip
    written: list[Path] = []
    prepare_one = partial(prepare, device=device, tokens=tokens, small=small)
    limit = time.perf_counter() + seconds
    for case, times in kernel_processes.measured(cases, prepare_one, limit, processes, device, PATIENCE_S[small]):
        if isinstance(times, str):
            found = [report.row(case.kernel, case.name, own, "", times)]
        else:
            found = rows_of(case, times, ceilings, device)
        rows += found
        print(report.table(found), flush=True)
        written = report.write(record, out)  # after each case, so that a run cut short leaves what it measured
    for path in written:
        print(path)
    problems = [r["problem"] for r in rows if r["implementation"].startswith(own) and r["problem"]]
    return int(any(not problem.startswith(kernel_processes.NOT_MEASURED) for problem in problems))


@dataclass(frozen=True)
class Times:
    """What was measured of a case: milliseconds by implementation and mode, and for whom there are none, the reason."""

    milliseconds: dict[tuple[str, str], list[float]]
    problems: dict[str, str]
    work: dict[str, float]  # of each mode


def prepare(case: Case, device: str, tokens: int, small: bool = False) -> Callable[[], Times]:
    """Compiles, checks and warms up all of a case's implementations; what it returns measures them."""
    torch.manual_seed(0)
    problem = case.problem(device, tokens)
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
    work = {"forward": problem.forward_work, "both": problem.total_work}

    def measure() -> Times:
        times = time_in_turns(calls, 0.0 if small else SECONDS_PER_CASE, device, 1 if small else ROUNDS)
        torch._dynamo.reset()
        return Times(times, problems, work)

    return measure


def rows_of(case: Case, times: Times, ceilings: dict[str, float], device: str) -> list[dict[str, Any]]:
    """A row for each implementation and mode; without figures, and with the reason, where it is wrong or cannot run."""
    rows = [report.row(case.kernel, case.name, name, "", reason) for name, reason in times.problems.items()]
    for (name, mode), values in times.milliseconds.items():
        figures = list(measurement.spread(values).values())
        rate = times.work[mode] / figures[1] / (1e6 if case.unit == "GB/s" else 1e9)
        rows.append(report.row(case.kernel, case.name, name, mode, None, figures, rate, case.unit, ceilings[case.unit]))
    report.add_ratios(rows, ours(device))
    return sorted(rows, key=lambda r: (r["mode"], r["p50_ms"] or 0))


def case_output(case: Case, problem: Problem) -> Tensor:
    """A tensor shaped as each result: of the case's first leaf in all but the three cases that say otherwise."""
    first = next(iter(problem.leaves.values())).detach()
    if case.kernel == "cross_entropy":
        return first.new_zeros((), dtype=torch.float32)
    if case.kernel == "take_rows":
        return first[: len(problem.rest["rows"])]
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
        if name != COMPILED and (found := fault(case, name, run, check_tokens(), device)):
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


def time_in_turns(calls: dict[Any, Any], seconds: float, device: str, rounds: int = ROUNDS) -> dict[Any, list[float]]:
    """Milliseconds of each call, one of each a round."""
    cache = torch.empty(CACHE_BYTES if seconds else 1 << 20, dtype=torch.int8, device=device)

    def time_one(call: Any) -> float:
        cache.zero_()
        if device == "cuda":
            torch.cuda._sleep(HEAD_START_CYCLES)
        return 1e3 * measurement.timed(call, device)[0]

    return measurement.in_turns({name: partial(time_one, call) for name, call in calls.items()}, rounds, seconds)


if __name__ == "__main__":
    end(main)
