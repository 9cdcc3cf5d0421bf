"""A pool of fine-tuning jobs whose processes are killed, as users run it: by the command, with signals."""

import json
import os
import signal
from pathlib import Path

import pytest

from recipe import records
from recipe.config import GlueConfig, load
from recipe.glue import glue
from tests.processes import start, wait_for
from tests.test_glue import without_times
from tests.tiny.configs import glue_yaml
from tests.tiny.models import write_run
from tests.tiny.tasks import write_inference, write_sst2

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


@pytest.fixture
def yaml(tmp_path) -> Path:
    """Three tasks, one of which starts from another, four seeds each: twelve jobs."""
    write_run(tmp_path / "run")
    write_inference(tmp_path / "data", "MNLI", train=48)
    write_inference(tmp_path / "data", "RTE", train=160)
    write_sst2(tmp_path / "data", train=160, dev=16)
    return glue_yaml(tmp_path, epochs=8.0, seeds=4, lr_scale=1.0)


def workers(parent: int) -> list[int]:
    """The pool's processes, not the interpreter's own helper."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ancestor = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if ancestor == parent and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def done(out: Path) -> dict[str, float]:
    """Each finished job with the time at which its record was written."""
    return {file.parent.name: file.stat().st_mtime for file in (out / "jobs").glob("*/run.json")}


def test_killed_processes_cost_their_own_jobs_alone(tmp_path, yaml):
    out = tmp_path / "out"
    first = start("recipe.glue", str(yaml), f"out={out}", "processes=2")
    wait_for(lambda: done(out))
    os.kill(workers(first.pid)[0], signal.SIGKILL)
    printed, error = first.communicate(timeout=120)
    assert first.returncode == 2 and "[1/12]" in printed
    assert "Gloo" not in printed, "each process makes a group of one"
    assert (
        error.count("\n") == 1
        and error.startswith("error: a process of the pool was killed")
        and "processes=1" in error
    )
    kept = done(out)
    assert 0 < len(kept) < 12 and records.read_record(out)["status"] == "running"
    for name in kept:  # a process of two is billed for half of the cores
        job = records.read_record(out / "jobs" / name)
        assert job["cost"]["device_hours"] == pytest.approx(job["cost"]["seconds"] * job["device"]["count"] / 2 / 3600)

    second = start("recipe.glue", str(yaml), f"out={out}", "processes=2")
    wait_for(lambda: len(done(out)) > len(kept))
    children = workers(second.pid)
    second.kill()
    printed, _ = second.communicate(timeout=120)
    assert f"{len(kept)} of 12 jobs were done before" in printed and children
    wait_for(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children), 30)
    both = done(out)
    assert {name: both[name] for name in kept} == kept and len(both) < 12

    record = glue(load(GlueConfig, str(yaml), [f"out={out}"]))
    assert record["status"] == "finished" and {name: done(out)[name] for name in both} == both
    unbroken = glue(load(GlueConfig, str(yaml), [f"out={tmp_path / 'unbroken'}"]))
    assert without_times(record["glue"]) == without_times(unbroken["glue"])
    of_rte = [json.loads(file.read_text())["job"] for file in sorted((out / "jobs").glob("RTE-*/run.json"))]
    assert [job["init"] for job in of_rte] == ["mnli"] * 4
