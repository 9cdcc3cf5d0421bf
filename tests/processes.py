"""Commands as users run them, in processes that are watched, stopped and waited for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def start(*words: str, launcher: tuple[str, ...] = (sys.executable,), **variables: str) -> subprocess.Popen:
    """`python -m WORDS` on one thread, or another launcher's; what it prints is kept."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*launcher, "-m", *words], cwd=ROOT, env=environment, text=True, **pipes)


def call(*words: str, **variables: str) -> subprocess.CompletedProcess:
    """The same, once it is over."""
    process = start(*words, **variables)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@contextlib.contextmanager
def own_group(command: list[str], **settings: Any) -> Iterator[subprocess.Popen]:
    """A process that leads a group of its own, of which nothing is left afterwards."""
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet | settings)
    try:
        yield run
        run.wait(timeout=60)
    finally:
        if group_members(run.pid):
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def group_members(group: int) -> list[int]:
    """Processes of a process group; one that has ended and waits to be collected does not count."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue  # it ended meanwhile
        if int(process_group) == group and state not in "ZX":
            found.append(int(stat.parent.name))
    return found


def on_two_ranks(module: str, *words: str) -> str:
    """What `python -m module words` prints in two ranks of one machine; an error of theirs fails the test."""
    launcher = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launcher, "-m", module, *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
