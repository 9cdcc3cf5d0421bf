"""`bash benchmarks/soak.sh`: commands that are broken off in every way, started again, and held against unbroken runs.

    python -m benchmarks.soak [--faults 100] [--minutes 60] [--subjects prepare train] [--out FILE] [--work FOLDER] [--seed N]

Each is a subject (soak_subjects.py), a fault (soak_faults.py) and a moment, all drawn from the seed and the fault's number. Then
the same command is started again until it ends with 0. Equal must be every file that is not measured: shards, batches, loss
curve, weights, predictions, scores; the bill must add up, and nothing be left of what the processes made. A fault whose moment
came too late is drawn once more, and counts only where it struck. The file of results has a row as soon as it is known; stopped
at any time, the same command goes on with the next one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measurement import write
from benchmarks.soak_faults import CLOCK, FAULTS, Command, Fault, own_disk, paths, permit, remount, unmount
from benchmarks.soak_subjects import SUBJECTS, UNBROKEN, Subject, differences, result_of, write_inputs, wrong_bills
from recipe import records
from recipe.errors import UserError, end, exit_status
from recipe.system.files import read_json, write_whole

OUT, WORK = Path("benchmarks/results/soak.json"), Path("runs/soak")
STARTS = 3  # of a command after its fault, of which the last must end with 0
DRAWS = 2  # of a moment, until one is not too late
EARLY = 0.2  # of all faults: before the command has written anything
SLACK_S = 120.0  # beside five times what the unbroken run took, for a command that was struck to end


@dataclass(frozen=True)
class Whole:
    """An unbroken run."""

    seconds: float
    first_s: float  # until it began to write
    last_s: float  # until it had written all
    cpu_s: float
    result: dict[str, Any]
    commit: str | None  # of the code that made it

    @property
    def limit_s(self) -> float:
        return 5 * self.seconds + SLACK_S


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--faults", type=int, default=100, help="that have struck, with those of the file (%(default)s)"
    )
    parser.add_argument("--minutes", type=float, default=60, help="after which no further fault begins (%(default)s)")
    parser.add_argument("--subjects", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=OUT, help="the file of results (%(default)s)")
    parser.add_argument(
        "--work", type=Path, default=WORK, help="the folder of unbroken runs and of failures (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=17, help="of what is drawn (%(default)s)")
    words = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its processes end with it
    return exit_status(lambda: soak(**vars(words)))


def soak(faults: int, minutes: float, subjects: Sequence[str], out: Path, work: Path, seed: int) -> dict[str, Any]:
    """Try faults until so many have struck or the time is over; returns what is in `out`.

    Raises:
        UserError: a fault after which something differed, named with its folder; results of other settings or code; an unbroken
            run that fails.
    """
    ends, work = time.monotonic() + 60 * minutes, work.absolute()
    record = begun(out, {"seed": seed, "subjects": list(subjects), "commit": records.provenance()["commit"]})
    refused = {fault.name: why for fault in FAULTS.values() if (why := fault.refused(work))}
    for name, why in refused.items():
        print(f"not tried: {name}, as {why}")
    usable = [fault for fault in FAULTS.values() if fault.name not in refused]
    while sum(map(counts, record["rows"])) < faults and time.monotonic() < ends:
        number = len(record["rows"])
        subject, fault = drawn(number, seed, [SUBJECTS[name] for name in subjects], usable)
        whole = unbroken(subject, work)
        record["unbroken"][subject.name] = {
            key: getattr(whole, key) for key in ("seconds", "first_s", "last_s", "cpu_s")
        }
        row = {"number": number, **attempt(subject, fault, whole, work, number, random.Random(f"{seed} {number}"))}
        record["rows"].append(row)
        record = write(out, record)
        print(in_words(row), flush=True)
    print("\n".join(table(record)), flush=True)
    if failed := [row for row in record["rows"] if not row["passed"]]:
        raise UserError(
            f"{len(failed)} faults were not survived: {', '.join(str(work / row['folder']) for row in failed)}"
        )
    return record


def begun(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if not out.exists():
        return {"settings": settings, "unbroken": {}, "rows": []}
    record = read_json(out)
    if record["settings"] != settings:
        raise UserError(f"{out} holds results of {record['settings']}, and now it is {settings}; give another --out")
    return record


def counts(row: dict[str, Any]) -> bool:
    """Whether the command was struck."""
    return row["did"] is not None and not (FAULTS[row["fault"]].breaks and row["status"] == 0)


def drawn(number: int, seed: int, subjects: Sequence[Subject], faults: Sequence[Fault]) -> tuple[Subject, Fault]:
    """Every subject meets every fault before any does so twice."""
    cells = [(subject, fault) for subject in subjects for fault in faults]
    turn, place = divmod(number, len(cells))
    random.Random(f"{seed} turn {turn}").shuffle(cells)
    return cells[place]


def unbroken(subject: Subject, work: Path) -> Whole:
    """The run that nothing disturbs, and those that it reads; made once."""
    for name in subject.needs:
        unbroken(SUBJECTS[name], work)
    kept, folder = work / UNBROKEN / f"{subject.name}.json", work / UNBROKEN / subject.name
    commit = records.provenance()["commit"]
    if kept.is_file() and (whole := Whole(**read_json(kept))).commit == commit:
        return whole
    write_inputs(work)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    print(f"{subject.name}, unbroken", flush=True)
    cpu_s, began = children_s(), time.time()
    with started(subject, work, folder, folder.with_suffix(".log")) as run:
        while not run.over and not paths(folder):
            time.sleep(0.02)
        first_s = time.monotonic() - run.started
        status, left = run.end(3600)
    seconds = time.monotonic() - run.started
    if status or left or (wrong := list(wrong_bills(folder, seconds))):
        raise UserError(f"{subject.name}, unbroken: ended with {status}, {left} processes left, {wrong or run.log}")
    last_s = max(Path(path).lstat().st_mtime for path in paths(folder)) - began
    whole = Whole(seconds, first_s, last_s, children_s() - cpu_s, result_of(folder), commit)
    write_whole(kept, json.dumps(vars(whole)))
    return whole


def children_s() -> float:
    """Seconds that processes which were waited for have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def started(
    subject: Subject, work: Path, folder: Path, log: Path, prefix: Sequence[str] = (), **environment: str
) -> Iterator[Command]:
    """The command, in `folder`, of which nothing runs afterwards; its temporary files are its own."""
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as temporary:
        run = Command(
            [*prefix, *subject.command(work)], folder, log, Path(temporary).name, TMPDIR=temporary, **environment
        )
        try:
            yield run
        finally:
            run.kill()


def attempt(
    subject: Subject, fault: Fault, whole: Whole, work: Path, number: int, chance: random.Random
) -> dict[str, Any]:
    """One fault; its row. The folder of one that is not survived stays."""
    case, begin, cpu_s = work / "faults" / f"{number:03d}", time.monotonic(), children_s()
    folder = case / "files"
    for _ in range(DRAWS):
        unmount(folder)  # of a soak that was killed
        shutil.rmtree(case, ignore_errors=True)
        folder.mkdir(parents=True)
        with own_disk(folder) if fault.disk else contextlib.nullcontext():
            row = broken(subject, fault, whole, work, case, chance)
        row["problems"] += differences(whole.result, result_of(folder))
        if row["problems"] or counts(row):
            break
    row |= {"passed": not row["problems"], "seconds": time.monotonic() - begin, "cpu_s": children_s() - cpu_s}
    if row["problems"]:
        return {**row, "folder": case.relative_to(work).as_posix()}
    shutil.rmtree(case)
    return row


def broken(
    subject: Subject, fault: Fault, whole: Whole, work: Path, case: Path, chance: random.Random
) -> dict[str, Any]:
    """Start it, strike at a moment, start it again until it ends with 0; what happened, and what was wrong with it."""
    folder, log, problems = case / "files", case / "log", []
    early = chance.random() < EARLY
    after_s = chance.uniform(0, whole.first_s if early else max(0.0, whole.last_s - whole.first_s))
    environment = {}
    if fault.clock:
        (case / "clock").mkdir()
        write_whole(case / "clock/sitecustomize.py", CLOCK.format(after=(whole.first_s * (not early) + after_s) / 2))
        environment["PYTHONPATH"] = str(case / "clock")
    with started(subject, work, folder, log, fault.prefix, **environment) as run:
        while not early and not run.over and not paths(folder):
            time.sleep(0.01)
        ready = time.monotonic()
        while not run.over and time.monotonic() < ready + after_s:
            time.sleep(0.01)
        did = None if run.over else fault.strike(run, chance, whole.limit_s)
        status, left = run.end(whole.limit_s)
        wall_s, first = time.monotonic() - run.started, run
    if left:
        problems.append(f"{left} processes had to be killed {whole.limit_s:.0f} s after the fault")
    if did is not None and (wrong := fault.wrong(run, did, status)):
        problems.append(wrong)
    if fault.in_a_line and subject.ranks == subject.nodes == 1 and "Traceback" in run.said:
        problems.append("ended in a traceback")
    said = run.said.strip().splitlines()
    row = {"subject": subject.name, "fault": fault.name, "did": did, "early": early, "after_s": after_s, "status": status,
           "said": without_folders(said[-1], work) if said else "", "traceback": "Traceback" in run.said}  # fmt: skip
    permit(folder, 0o755, 0o644)
    if fault.disk:
        remount(folder, "size=256m")
    for start in range(1, STARTS + 1):
        with started(subject, work, folder, case / f"log-{start}") as run:
            again, left = run.end(whole.limit_s)
            wall_s += time.monotonic() - run.started
        if left:
            problems.append(f"started again, {left} processes were left")
        if again == 0:
            break
    else:
        last = (run.said.strip().splitlines() or [""])[-1]
        problems.append(f"started again, it ended with {again}: {without_folders(last, work)}")
    problems += [f"{name} is left in shared memory" for name in first.shared_memory()]
    problems += wrong_bills(folder, wall_s)
    return {**row, "starts": start, "problems": problems}


def without_folders(line: str, work: Path) -> str:
    """A line for the record, without this machine's folders."""
    return line.replace(str(work), "WORK").replace(str(records.PROJECT), ".")[:400]


def in_words(row: dict[str, Any]) -> str:
    how = "passed" if row["passed"] else "FAILED: " + "; ".join(row["problems"])
    if not counts(row):
        how = "too late, not counted" if row["passed"] else how
    return (
        f"[{row['number']}] {row['subject']}, {row['fault']} ({row['did']}): {how} "
        f"({row['seconds']:.0f} s, {row['cpu_s']:.0f} of them computing)"
    )


def table(record: dict[str, Any]) -> list[str]:
    """Subject by fault: passed of tried."""
    rows = [row for row in record["rows"] if counts(row) or not row["passed"]]
    subjects, lines = list(dict.fromkeys(row["subject"] for row in rows)), []
    lines.append("| fault | " + " | ".join(subjects) + " |")
    lines.append("|---|" + "---|" * len(subjects))
    for fault in FAULTS:
        of_fault = [
            [row["passed"] for row in rows if (row["subject"], row["fault"]) == (one, fault)] for one in subjects
        ]
        cells = (f"{sum(passed)} of {len(passed)}" if passed else "" for passed in of_fault)
        lines.append(f"| {fault} | " + " | ".join(cells) + " |")
    return [*lines, f"{sum(row['passed'] for row in rows)} of {len(rows)} passed"]


if __name__ == "__main__":
    end(main)
