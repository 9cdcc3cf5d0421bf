"""The soak in short: one fault that is survived, one that is not, and what tells them apart."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from pathlib import Path

import pytest

from benchmarks import soak, soak_faults
from benchmarks.soak_faults import FAULTS, Command, Fault
from benchmarks.soak_subjects import SUBJECTS, differences, result_of, unmeasured, wrong_bills
from recipe.errors import UserError
from tests.tiny.records import record_run

PREPARE = SUBJECTS["prepare"]


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("soak")


@pytest.fixture(scope="module")
def whole(work) -> soak.Whole:
    return soak.unbroken(PREPARE, work)


def python(tmp_path: Path, code: str) -> Command:
    return Command([sys.executable, "-c", code], tmp_path, tmp_path / "log", tmp_path.name)


def test_what_was_killed_while_it_wrote_ends_as_the_unbroken_run(work, whole):
    row = soak.attempt(PREPARE, FAULTS["kill -9 while writing"], whole, work, 0, random.Random(1))
    assert row["problems"] == [] and row["did"].endswith("appeared")
    assert row["status"] == -9 and row["starts"] == 1
    assert not list((work / "faults").iterdir())


def test_a_result_that_differs_is_a_failure_that_keeps_its_folder(work, whole, monkeypatch):
    """The command is started again on what a fault has left; here that is a finished dataset with another byte in it."""

    def falsify(run: Command, chance: random.Random, limit_s: float) -> str:
        run.end(0)
        shutil.rmtree(run.folder)
        shutil.copytree(work / "unbroken/prepare", run.folder)
        shard = run.folder / "out/train/part-00000/shard.00000.mds.zstd"
        content = shard.read_bytes()
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        return "another byte"

    monkeypatch.setitem(FAULTS, "falsified", Fault("falsified", falsify))
    row = soak.attempt(PREPARE, FAULTS["falsified"], whole, work, 1, random.Random(1))
    assert not row["passed"] and row["starts"] == 1
    assert row["problems"] == ["out/train/part-00000/shard.00000.mds.zstd differs"]
    assert Path(work, row["folder"], "files/out/dataset.json").is_file()
    assert "FAILED: out/train" in soak.in_words({"number": 1, **row})
    assert 0 < whole.first_s < whole.last_s <= whole.seconds


def test_every_fault_is_met_before_any_is_met_twice():
    subjects, faults = [SUBJECTS["prepare"], SUBJECTS["train"]], list(FAULTS.values())
    cells = len(subjects) * len(faults)
    met = [soak.drawn(number, 17, subjects, faults) for number in range(2 * cells)]
    assert len(set(met[:cells])) == len(set(met[cells:])) == cells and met[:cells] != met[cells:]
    assert met == [soak.drawn(number, 17, subjects, faults) for number in range(2 * cells)]


def test_results_are_gone_on_with_and_those_of_other_settings_are_not(tmp_path, capsys):
    out = tmp_path / "soak.json"
    settings = {"seed": 17, "subjects": ["prepare"], "commit": soak.records.provenance()["commit"]}
    row = {"number": 0, "subject": "prepare", "fault": "SIGTERM", "did": "TERM", "status": 143, "passed": True}
    rows = [row, {**row, "number": 1, "status": 0}, {**row, "number": 2, "did": None}]
    out.write_text(json.dumps({"settings": settings, "unbroken": {}, "rows": rows}))
    record = soak.soak(1, 1, ["prepare"], out, tmp_path / "work", 17)
    assert record["rows"] == rows and "| SIGTERM | 1 of 1 |" in capsys.readouterr().out
    with pytest.raises(UserError, match="give another --out"):
        soak.soak(1, 1, ["prepare"], out, tmp_path / "work", 18)
    out.write_text(
        json.dumps({"settings": settings, "unbroken": {}, "rows": [{**row, "passed": False, "folder": "F"}]})
    )
    with pytest.raises(UserError, match="1 faults were not survived: .*work/F"):
        soak.soak(1, 1, ["prepare"], out, tmp_path / "work", 17)


def test_what_differs_is_named_and_what_is_measured_is_not(tmp_path):
    for name, loss, seconds in (("a", 7.5, 1.0), ("b", 7.5, 2.0), ("c", 7.25, 1.0)):
        record_run(tmp_path / name, "run", loss_curve=[{"batch": 1, "loss": loss, "seconds": seconds}])
        (tmp_path / name / "run/checkpoints").mkdir()
        (tmp_path / name / "run/checkpoints/ba4-rank0.pt").write_bytes(name.encode())
    a, b, c = (result_of(tmp_path / name) for name in "abc")
    assert not list(differences(a, b))
    assert list(differences(a, c)) == ["run/run.json differs (loss_curve)"]
    (tmp_path / "b/run/run.json.12.34.tmp").touch()
    (tmp_path / "b/run/checkpoints/ba4-rank0.pt").rename(tmp_path / "b/run/checkpoints/ba3-rank0.pt")
    assert list(differences(a, result_of(tmp_path / "b"))) == [
        "run/checkpoints/ba3-rank0.pt is left behind",
        "run/checkpoints/ba4-rank0.pt is missing",
        "run/run.json.12.34.tmp is left behind",
    ]
    assert unmeasured({"cost": 1, "rows": [{"usd": 2, "loss": 3}]}) == {"rows": [{"loss": 3}]}


def test_a_bill_that_does_not_add_up_is_named(tmp_path):
    record = record_run(tmp_path, "run", hours=1.0, loss_curve=[{"batch": 1}, {"batch": 2}])
    assert not list(wrong_bills(tmp_path, 3600.0))
    assert "are billed" in next(wrong_bills(tmp_path, 3599.0))
    record_run(tmp_path, "run", cost={**record["cost"], "usd": 1.0}, loss_curve=[])
    assert "is not 8.0 device-hours" in next(wrong_bills(tmp_path, 3600.0))
    record_run(tmp_path, "run", loss_curve=[{"batch": 1}, {"batch": 1}])
    assert "counted twice" in next(wrong_bills(tmp_path, 3600.0))


def test_all_processes_of_a_command_are_found_and_ended(tmp_path):
    child = "import os, time\nif not os.fork(): os.setsid()\nif not os.fork(): os.setsid()\ntime.sleep(60)"
    run = python(tmp_path, child)
    try:
        while len(run.members()) < 4:
            time.sleep(0.02)
        assert run.members()[0] == run.leader
        assert soak_faults.kill_one(run, random.Random(1), 1) == "a child of 4 processes"
        assert run.end(0.5) == (None, 3) and not run.members()
    finally:
        run.kill()


def test_limits_reach_a_process_that_runs(tmp_path):
    code = (
        "import pathlib, sys, time\nprint('ready', flush=True)\nsys.stdin.read(0)\n"
        "end = time.time() + 60\n"
        "while time.time() < end:\n"
        "    try:\n        pathlib.Path('big').write_bytes(bytes(20000)); time.sleep(0.01)\n"
        "    except OSError as error: print(error.strerror); break"
    )
    run = python(tmp_path, code)
    try:
        while "ready" not in run.said:
            time.sleep(0.02)
        assert soak_faults.limit_files(run, random.Random(1), 1).endswith("bytes")
        assert run.end(60) == (0, 0) and "File too large" in run.said
    finally:
        run.kill()
