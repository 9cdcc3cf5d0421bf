"""What `benchmarks/gpu.sh` runs, which documents it: parts in the order of their worth, results kept after each.

Each part is a process group of its own with a limit, a log and a result file. This process imports nothing that could fail on a
GPU's machine, and starts the next part whatever came of the last.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipe.errors import end, say_error
from recipe.system.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 535
LEAST_S = 15  # that a part must have left to begin
COPYING_S = 5  # left for the last part's results
MACHINE = "machine"  # the part without which there is no other
NO_TESTS = 5  # pytest's exit status where it has found none


@dataclass(frozen=True)
class Sizes:
    """What the parts' commands are given."""

    words: str = ""  # of every benchmark
    rows: str = "--turns 4"  # of every step
    checked: int = (
        30_000  # tokens of the problem that the loss is checked on: more predictions than one chunk of logits has
    )
    model: str = "base"
    wide: str = "large"
    lengths: tuple[int, int, int] = (128, 512, 1024)
    slots: int = 32_768  # of a step that all rows share
    alone: int = 131_072  # of a step that has the GPU for itself
    tests: str = ""  # all
    test_processes: int = 6  # where pytest can have several
    times: int = 1  # what every limit is multiplied by


FULL = Sizes()
SMALL = Sizes(
    words="--small", rows="--turns 1 --only this 'hf eager'", checked=40, model="tiny", wide="tiny",
    lengths=(8, 16, 24), slots=24, alone=32, tests="tests/kernels/test_padding_triton.py -k nothing_there",
    test_processes=0, times=20,
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    name: str
    limit_s: int
    words: list[str]  # of PYTHON
    needs: tuple[str, ...] = ()  # packages
    dataset: str = ""  # that must be there


def parts(sizes: Sizes, results: Path, dataset: str) -> list[Part]:
    """In order of worth."""
    short, middle, long = sizes.lengths

    def benchmark(name: str, words: str, out: str) -> list[str]:
        return ["-m", f"benchmarks.{name}", *shlex.split(f"{sizes.words} {words}"), "--out", str(results / out)]

    def step(out: str, length: int, words: str = "", model: str = sizes.model, slots: int = sizes.slots) -> list[str]:
        words = (
            f"{sizes.rows} --patience {75 * sizes.times} --models {model} --lengths {length} --tokens {slots} {words}"
        )
        return benchmark("throughput", words, f"{out}.json")

    def kernels(part: str, processes: int, seconds: int) -> list[str]:
        words = f"--part {part} --processes {processes} --seconds {seconds * sizes.times}"
        return benchmark("kernels", words, f"kernels-{part}")

    checked = f"--check --part base --only cross_entropy --tokens {sizes.checked}"
    tests = ["-m", "pytest", "-v", "-p", "no:cacheprovider", "--confcutdir=tests/kernels"]
    tests += [f"--junitxml={results / 'tests.xml'}", *_in_parallel(sizes.test_processes)]
    tests += sizes.tests.split() or kernel_tests()
    found = [
        Part(MACHINE, 60, ["-m", "benchmarks.machine", "--gpu", "--out", str(results / "machine.json")]),
        Part("loss", 60, benchmark("kernels", checked, "loss")),
        Part("kernels-base", 150, kernels("base", 6, 110)),
        Part("step-128", 130, step("step-128", short)),
        Part("step-512", 110, step("step-512", middle)),
        Part("tests", 120, tests, ("pytest",)),
        Part("step-alone", 90, step("step-alone", short, "--only this", slots=sizes.alone)),
        Part("kernels-rest", 150, kernels("rest", 4, 100)),
        Part("step-large", 110, step("step-large", short, model=sizes.wide)),
        Part("step-1024", 100, step("step-1024", long)),
    ]
    if sizes is FULL:  # the trainer's have no small form
        found += trainer_parts(results, dataset)
    return [replace(part, limit_s=part.limit_s * sizes.times) for part in found]


def trainer_parts(results: Path, dataset: str) -> list[Part]:
    """What needs the whole lock, and then a dataset."""
    yaml, needs = "yamls/pretrain/mosaic-bert-base.yaml", ("composer", "streaming", "omegaconf")
    words = [f"data.path={dataset}", "autoresume=false"]
    short, middle, _ = FULL.lengths
    marked = ["-m", "pytest", "-v", "-p", "no:cacheprovider", "-m", "gpu", "--ignore=tests/kernels", "tests"]
    rows = ["--only", "this", "this, trainer", "--lengths", str(short), str(middle), "--turns", "4"]
    trainer = [
        "-m",
        "benchmarks.throughput",
        yaml,
        "--data",
        dataset,
        *rows,
        "--out",
        str(results / "trainer-step.json"),
    ]
    bare = [
        "-m",
        "benchmarks.trainer",
        yaml,
        *words,
        "batch_size=1024",
        "--rounds",
        "5",
        "--out",
        str(results / "trainer.json"),
    ]
    profiles = [
        Part(f"profile-{length}", 60, ["-m", "benchmarks.profile", yaml, *words, f"data.sequence_length={length}",
              f"batch_size={262_144 // length}", "--steps", "6", "--out", str(results / f"profile-{length}")], needs, dataset)
        for length in (short, middle)
    ]  # fmt: skip
    return [
        Part("tests-gpu", 80, marked, (*needs, "pytest")),
        Part("trainer-step", 60, trainer, needs, dataset),
        *profiles,
        Part("trainer", 80, bare, needs, dataset),
    ]


def kernel_tests() -> list[str]:
    """Files of the tests that run on a GPU; those that need a package that is not here are left out."""
    found = []
    for file in sorted((ROOT / "tests/kernels").glob("test_*.py")):
        of_others = file.stem.startswith(("test_budget", "test_compile", "test_cpu"))  # these need no GPU
        lacks = "\nfrom hypothesis" in file.read_text("utf-8") and not has("hypothesis")
        if not of_others and not lacks:
            found.append(str(file.relative_to(ROOT)))
    return found


def has(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _in_parallel(processes: int) -> list[str]:
    return ["-n", str(processes)] if processes and has("xdist") else []


class Run:
    """All parts of one call: what came of each, and the folder that keeps it."""

    def __init__(self, out: Path, limit_s: float) -> None:
        self._out, self._start, self._limit_s = out, time.monotonic(), limit_s
        self._work = Path(tempfile.mkdtemp(prefix="gpu-"))
        self.results, self.logs = self._work / "results", self._work / "logs"
        for folder in (out, self.results, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self._lines: list[str] = []
        self._process: subprocess.Popen[Any] | None = None
        self.failed = False

    @property
    def left_s(self) -> float:
        return self._limit_s - (time.monotonic() - self._start)

    def note(self, name: str, what: str) -> None:
        line = f"{time.monotonic() - self._start:6.0f} s  {name:<14} {what}"
        self._lines.append(line)
        print(line, flush=True)

    def part(self, part: Part) -> bool:
        """Whether it went well; one that is left out did."""
        problem = _left_out(part)
        if problem:
            self.note(part.name, f"left out: {problem}")
            return True
        room = min(part.limit_s, self.left_s - COPYING_S)
        if room < LEAST_S:
            self.note(part.name, "not begun: no time was left")
            return True
        begun = time.monotonic()
        status = self._run(part, room)
        well = status == 0 or (status == NO_TESTS and "pytest" in part.words)
        self.failed |= not well
        what = "done" if well else f"FAILED ({status if isinstance(status, str) else f'exit {status}'})"
        self.note(part.name, f"{what}, {time.monotonic() - begun:.0f} s")
        if not well:
            print("\n".join(self._tail(part.name, 25)), flush=True)
        self.keep()
        return well

    def _run(self, part: Part, room: float) -> int | str:
        with (self.logs / f"{part.name}.log").open("w", encoding="utf-8") as log:
            print(" ".join(part.words), file=log, flush=True)
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *part.words], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
                return self._process.wait(room)
            except subprocess.TimeoutExpired:
                return f"cut after {room:.0f} s"
            except OSError as error:
                return str(error)
            finally:
                self.kill()
                if self._process:
                    self._process.wait()
                self._process = None

    def kill(self) -> None:
        """The part's process with all that it has started, so that nothing is left on the GPU."""
        if self._process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _tail(self, name: str, lines: int) -> list[str]:
        text = (self.logs / f"{name}.log").read_text("utf-8", errors="replace")
        return [f"    {line[:200]}" for line in text.splitlines()[-lines:]]

    def keep(self) -> None:
        """Everything so far into the folder, each file whole or not there."""
        tables = [file.read_text("utf-8", errors="replace") for file in sorted(self.results.rglob("*.txt"))]
        text = "\n".join([*self._lines, "", *tables]) + "\n"

        def pack(draft: Path) -> None:
            with tarfile.open(draft, "w:gz") as archive:
                for folder in (self.results, self.logs):
                    archive.add(folder, folder.name)

        try:
            write_whole(self._out / "summary.txt", text)
            write_whole(self._out / "results.tar.gz", pack)
        except OSError as error:  # a full disk, for one: the next part's may fit
            say_error(f"{self._out}: {error}")


def _left_out(part: Part) -> str | None:
    if missing := [name for name in part.needs if not has(name)]:
        return f"{', '.join(missing)} not installed"
    if part.dataset and not (ROOT / part.dataset / "dataset.json").is_file():
        return f"{part.dataset} is no prepared dataset; see benchmarks/books/data.yaml"
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Status 1 where a part failed, 2 where torch sees no GPU."""
    dataset = (list(argv if argv is not None else sys.argv[1:]) or ["data/books"])[0]
    out = Path(os.environ.get("OUT") or "gpu-results").absolute()
    sizes = SMALL if os.environ.get("SMALL") == "1" else FULL
    run = Run(out, float(os.environ.get("LIMIT") or LIMIT_S * sizes.times))
    only = os.environ.get("PARTS", "").split()

    def stop(number: int, _: Any) -> None:
        run.note("", f"stopped by signal {number}")
        run.kill()  # and waits for nothing: the main program may be waiting for the same process
        run.keep()
        os._exit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    for part in parts(sizes, run.results, dataset):
        if only and part.name not in only:
            continue
        if not run.part(part) and part.name == MACHINE:
            return 2
    run.keep()
    print(f"{out}: summary.txt, results.tar.gz", flush=True)
    return int(run.failed)


if __name__ == "__main__":
    end(main)
