"""The pool: who does what, in which order, what they report, and how it ends: well, by an exception, by a signal."""

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool

import pytest

from recipe.errors import UserError
from recipe.system.processes import LOOK_S, Stopped, WorkerPool, end_if_stopped, number, report
from tests.processes import ROOT, group_members, own_group, wait_for

BOTH = pytest.mark.parametrize("workers", [1, 2])
PARENT = """
import os, sys, time
from pathlib import Path
from recipe.errors import exit_status
from recipe.system.processes import WorkerPool

where = Path(sys.argv[1])
if __name__ == "__mp_main__":
    (where / f"imports-{os.getpid()}").touch()
    time.sleep(1)

def job(name):
    (where / name).touch()
    time.sleep(600)

def work():
    with WorkerPool(2) as pool:
        for place, future in pool.run(job, "abc"):
            future.result()

if __name__ == "__main__":
    sys.exit(exit_status(work))
"""


def begin(base):
    global _base
    _base = base


def add(term):
    if term == 7:
        raise ValueError("seven")
    return _base + term


def tell(count):
    for i in range(count):
        report(number(), i)
    return multiprocessing.parent_process() is not None, number()


def name_and_time(name):
    report(name, time.monotonic())
    time.sleep(0.05)
    return name


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def until_stopped(_):
    report("began")
    while True:
        end_if_stopped()
        time.sleep(0.01)


@BOTH
def test_every_job_ends_with_its_result_or_its_exception(workers):
    with WorkerPool(workers, begin, (100,)) as pool:
        done = dict(pool.run(add, [1, 7, 3]))
        assert [done[0].result(), done[2].result()] == [101, 103]
        with pytest.raises(ValueError, match="seven"):
            done[1].result()
        assert pool.map(add, range(6), chunk=2) == [100, 101, 102, 103, 104, 105]


@BOTH
def test_what_workers_report_arrives_before_their_end(workers):
    heard = []
    with WorkerPool(workers) as pool:
        for place, future in pool.run(tell, [30, 40], watch=heard.extend):
            spawned, mine = future.result()
            assert spawned == (workers > 1)
            assert (mine, [29, 39][place]) in heard
    assert len(heard) == 70 and {worker for worker, _ in heard} <= set(range(workers))


def test_every_worker_has_a_number_of_its_own():
    both = multiprocessing.get_context("spawn").Barrier(2)
    with WorkerPool(2, begin, (both,)) as pool:
        assert sorted(future.result() for _, future in pool.run(meet, [0, 1])) == [0, 1]


def meet(_):
    _base.wait(60)
    return number()


@BOTH
def test_a_job_begins_when_the_one_that_it_waits_for_has_ended(workers):
    heard, ends = {}, {}
    with WorkerPool(workers) as pool:
        # c and d wait for a, e for d
        for place, _ in pool.run(name_and_time, "abcde", {2: 0, 3: 0, 4: 3}, lambda reports: heard.update(reports)):
            ends["abcde"[place]] = time.monotonic()
            assert all(name in ends for name in {"c": "a", "d": "a", "e": "d"}.get("abcde"[place], ""))
    assert set(ends) == set(heard) == set("abcde")
    assert min(heard["c"], heard["d"]) > ends["a"] and heard["e"] > ends["d"]


def test_the_parent_looks_now_and_then():
    looks = []
    with WorkerPool(2) as pool:
        list(pool.run(time.sleep, [3 * LOOK_S], watch=lambda _: looks.append(time.monotonic())))
    assert len(looks) >= 3


def test_a_killed_process_is_one_line():
    with (
        pytest.raises(UserError, match="^a process of the pool was killed, .*; run it again with processes=2: it"),
        WorkerPool(3) as pool,
    ):
        for _, future in pool.run(die, [0]):
            future.result()


@BOTH
def test_an_exception_gives_up_the_work_in_progress(workers):
    jobs = {}
    with pytest.raises(ZeroDivisionError), WorkerPool(workers) as pool:
        run = pool._submit  # keeps the futures, to see how they ended

        def submit(action, job):
            jobs[job] = run(action, job)
            return jobs[job]

        pool._submit = submit
        for _ in pool.run(until_stopped, [1, 2, 3], watch=lambda reports: 1 // (len(reports) == 0)):
            raise AssertionError("none ends by itself")
    ends = [CancelledError if future.cancelled() else type(future.exception(timeout=0)) for future in jobs.values()]
    # a process may see that it is to stop before it is ended
    assert len(ends) == 3 and set(ends) <= {CancelledError, Stopped, *([BrokenProcessPool] if workers > 1 else [])}


def start(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "begun").mkdir()
    command = [sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "begun")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return own_group(command, env=environment, stderr=(tmp_path / "errors").open("w"))


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    with start(tmp_path) as run:
        wait_for(lambda: len(os.listdir(tmp_path / "begun")) == 4)
        assert len(group_members(run.pid)) >= 3
        run.kill()
        wait_for(lambda: not group_members(run.pid))


@pytest.mark.parametrize("begun", [2, 4])  # while the processes still import, and in the middle of jobs
def test_ctrl_c_ends_the_group_in_one_line(tmp_path, begun):
    with start(tmp_path) as run:
        wait_for(lambda: len(os.listdir(tmp_path / "begun")) == begun)
        os.killpg(run.pid, signal.SIGINT)
        wait_for(lambda: not group_members(run.pid), 20)
    assert run.returncode == 130 and (tmp_path / "errors").read_text() == "interrupted\n"
