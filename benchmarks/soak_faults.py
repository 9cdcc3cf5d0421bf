"""What benchmarks/soak.py does to a command, and how it watches it.

All processes of a command carry a mark in their environment, by which they are found wherever they have gone: torchrun's ranks
have sessions of their own. Ports are their processes' and end with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from recipe.records import FILE_NAME

MARK = "SOAK_COMMAND"
SECOND = ".second"  # the log of a second command
RUN_PLACES = ("out", "node-0/out")  # of a training run's record
LOOK_S = 0.2
ROOT = Path(__file__).resolve().parents[1]
SHARED = Path("/dev/shm")
CLOCK = '''\
"""The clock of this process is moved forth by a day after {after} s, and back by two after twice that."""
import time

_time, _start = time.time, time.monotonic()


def _jump():
    spent = time.monotonic() - _start
    return 86400 if {after} < spent < 2 * {after} else -86400 if spent > 2 * {after} else 0


time.time = lambda: _time() + _jump()
time.time_ns = lambda: int(time.time() * 1e9)
'''


class Command:
    """A running command, its processes and what it has said."""

    def __init__(self, words: list[str], folder: Path, log: Path, mark: str, **environment: str) -> None:
        self.folder, self.log, self._words, self._mark, self._environment = folder, log, words, mark, environment
        self.seen: set[int] = set()  # its processes so far
        variables = {**os.environ, "OMP_NUM_THREADS": "1", MARK: mark, **environment}
        variables["PYTHONPATH"] = os.pathsep.join([*filter(None, [environment.get("PYTHONPATH")]), str(ROOT)])
        self.started = time.monotonic()
        # through a pipe: a limit on the size of files must not reach the log
        self._process = subprocess.Popen(
            words, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        self.leader = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.log.open("ab") as log:
            for line in self._process.stdout:
                log.write(line)
                log.flush()

    def again(self) -> Command:
        """The same command beside it."""
        mark = f"{self._mark}-second"
        return Command(self._words, self.folder, self.log.with_suffix(SECOND), mark, **self._environment)

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", errors="replace") if self.log.exists() else ""

    def members(self) -> list[int]:
        """Its processes, the leader first; one that has ended and waits to be collected is none."""
        found, mark = [], f"{MARK}={self._mark}\0".encode()
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
                if mark in (place / "environ").read_bytes():
                    found.append(int(place.name))
        self.seen.update(found)
        return sorted(found, key=lambda pid: (pid != self.leader, pid))

    def end(self, limit_s: float) -> tuple[int | None, int]:
        """Wait for all its processes. Returns the leader's exit status and how many had to be killed after `limit_s`."""
        ends = time.monotonic() + limit_s
        while (self.members() or not self.over) and time.monotonic() < ends:
            time.sleep(LOOK_S)
        status = self._process.poll()
        left = self.kill()
        self._process.wait()
        self._reader.join(5)
        return status, left

    def kill(self) -> int:
        members = self.members()
        for pid in members:
            _signal(pid, signal.SIGKILL)
        return len(members)

    def shared_memory(self) -> list[str]:
        """What is left in memory of the processes that were seen, where its name says whose it is, as torch's does. A name of no
        bytes is none: torch leaves one where a limit on the size of files keeps it from making it larger."""
        names = []
        for file in SHARED.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # another's, that ended meanwhile
                if file.stat().st_size and {int(number) for number in re.findall(r"_(\d+)_", file.name)} & self.seen:
                    names.append(file.name)
        return names


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def paths(folder: Path) -> set[str]:
    """Of everything below it."""
    return {os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)}


# The faults. Each strikes a running command and says what it did; None: there was nothing to strike.


def kill_one(run: Command, chance: random.Random, limit_s: float) -> str | None:
    members = run.members()
    if not members:
        return None
    chosen = chance.choice(members)
    _signal(chosen, signal.SIGKILL)
    return f"{'the leader' if chosen == run.leader else 'a child'} of {len(members)} processes"


def kill_while_writing(run: Command, chance: random.Random, limit_s: float) -> str | None:
    """All at once, as soon as a file appears that was not there."""
    before, members = paths(run.folder), run.members()
    while not run.over:
        if new := paths(run.folder) - before:
            for pid in members:  # a draft is there for a millisecond
                _signal(pid, signal.SIGKILL)
            run.kill()
            return f"as {os.path.relpath(min(new), run.folder)} appeared"
        time.sleep(0.0005)
    return None


def terminate(run: Command, chance: random.Random, limit_s: float) -> str | None:
    if run.over:
        return None
    found = [file for place in RUN_PLACES if (file := run.folder / place / FILE_NAME).is_file()]
    trains = any(json.loads(file.read_text("utf-8"))["loss_curve"] for file in found)
    _signal(run.leader, signal.SIGTERM)
    return TRAINING if trains else "before or after training"


def limit_files(run: Command, chance: random.Random, limit_s: float) -> str | None:
    """No file may grow beyond some bytes: what a full disk says, of which a process cannot be given one of its own."""
    most = chance.choice((0, 1000, 10_000))
    return f"{most} bytes" if _limit(run, resource.RLIMIT_FSIZE, lambda pid: most) else None


def limit_memory(run: Command, chance: random.Random, limit_s: float) -> str | None:
    """What is mapped now, and some more."""
    more = chance.choice((1, 4, 16, 64)) << 20

    def most(pid: int) -> int:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        return pages * resource.getpagesize() + more

    return f"{more >> 20} MiB more than was mapped" if _limit(run, resource.RLIMIT_AS, most) else None


def _limit(run: Command, what: int, most: Callable[[int], int]) -> bool:
    struck = False
    for pid in run.members():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
            resource.prlimit(pid, what, (most(pid), resource.prlimit(pid, what)[1]))
            struck = True
    return struck


def fill_disk(run: Command, chance: random.Random, limit_s: float) -> str | None:
    """But for a few pages."""
    now, free = os.statvfs(run.folder), chance.randint(0, 8)
    size = max(1, now.f_blocks - now.f_bfree + free) * now.f_frsize  # 0 would be no limit
    return f"{free} pages free" if not run.over and remount(run.folder, f"size={size}") else None


def forbid_writing(run: Command, chance: random.Random, limit_s: float) -> str | None:
    """A file that is open for writing stays so."""
    if run.over:
        return None
    permit(run.folder, 0o555, 0o444)
    return "from then on"


def permit(folder: Path, to_folders: int, to_files: int) -> None:
    """Set the permissions of all that is below it and its own."""
    for place, _, files in os.walk(folder):
        with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
            os.chmod(place, to_folders)
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                os.chmod(os.path.join(place, name), to_files)


def second_command(run: Command, chance: random.Random, limit_s: float) -> str | None:
    second = run.again()
    status, left = second.end(limit_s)
    return f"ended with {status}{f' and {left} processes' if left else ''}"


def jump_clock(run: Command, chance: random.Random, limit_s: float) -> str | None:
    return "a day forth, then two back, in time.time and time.time_ns, which are patched"


# What must be true of how it then ended; a problem in words, or None.


def no_checkpoint(run: Command, did: str, status: int | None) -> str | None:
    if did == TRAINING and status and "with a checkpoint at batch" not in run.said:
        return f"ended with {status} and without a checkpoint"
    return None


def disturbed(run: Command, did: str, status: int | None) -> str | None:
    second = run.log.with_suffix(SECOND)
    if status and not (status == 2 and did == REFUSED[0]):  # it may be the second that came first
        return f"ended with {status}"
    if second.exists() and ("Traceback" in second.read_text("utf-8", errors="replace") or did not in REFUSED):
        return f"a second command, {did}, said what stands in {second.name}"
    return None


def anything(run: Command, did: str, status: int | None) -> str | None:
    return None


TRAINING = "while it trained"
# so that permissions bind root too
AS_ANYBODY = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
REFUSED = ("ended with 0", "ended with 2")


@dataclass(frozen=True)
class Fault:
    name: str
    strike: Callable[[Command, random.Random, float], str | None]
    wrong: Callable[[Command, str, int | None], str | None] = anything
    prefix: tuple[str, ...] = ()  # of the command
    disk: bool = False  # the command's folder is a small file system of its own
    clock: bool = False
    in_a_line: bool = False  # what is wrong is said in a line; a launcher has words of its own
    breaks: bool = True  # a command that ended with 0 all the same was not struck: it had no more to do

    def refused(self, work: Path) -> str | None:
        """Why it cannot be tried here."""
        if self.disk and not mounts(work / "mount"):
            return "nothing can be mounted here"
        return f"there is no {self.prefix[0]}" if self.prefix and not shutil.which(self.prefix[0]) else None


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("kill -9", kill_one, breaks=False),  # a child that only tidies up may be missed by nobody
        Fault("kill -9 while writing", kill_while_writing),
        Fault("SIGTERM", terminate, no_checkpoint),
        Fault("file size limit", limit_files, in_a_line=True),
        Fault("full disk", fill_disk, disk=True, in_a_line=True),
        Fault("read-only folder", forbid_writing, prefix=AS_ANYBODY, in_a_line=True),
        Fault("memory limit", limit_memory),
        Fault("clock jump", jump_clock, disturbed, clock=True, breaks=False),
        Fault("second command", second_command, disturbed, breaks=False),
    )
}


def remount(folder: Path, options: str) -> bool:
    return _quietly("mount", "-o", f"remount,{options}", str(folder))


def _quietly(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def mounts(folder: Path) -> bool:
    """Whether this process may mount a file system."""
    folder.mkdir(parents=True, exist_ok=True)
    return _quietly("mount", "-t", "tmpfs", "none", str(folder)) and _quietly("umount", str(folder))


def unmount(folder: Path) -> None:
    if folder.is_mount():
        _quietly("umount", str(folder))


@contextlib.contextmanager
def own_disk(folder: Path) -> Iterator[None]:
    """`folder` is a file system in memory, for as long as this lasts; what it held then stays."""
    if not _quietly("mount", "-t", "tmpfs", "-o", "size=256m", "none", str(folder)):
        raise OSError(f"{folder}: cannot be mounted")
    try:
        yield
    finally:
        kept = folder.with_name(f"{folder.name}.kept")
        _quietly("cp", "-a", str(folder), str(kept))
        unmount(folder)
        folder.rmdir()
        kept.rename(folder)
