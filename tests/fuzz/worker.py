"""`python -m tests.fuzz.worker OUT EXAMPLES [READER ...]`: damaged files for every reader, each reader in a process of its own.

The processes are forks of this one, which has imported everything and holds no thread, and their memory is limited; so no limit
and no damage reaches whoever started it. Into the file OUT goes a line of JSON per reader.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings

from recipe import records
from recipe.errors import LONGEST, UserError
from recipe.system.quiet import quiet_libraries
from tests.fuzz.mutations import Made
from tests.fuzz.readers import TABLE, Reader, write_valid

MEMORY = 1 << 30  # bytes of addresses beyond what a process has when it begins
CPU_S = 10  # of one input
NO_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
SLACK = 16  # a line's own " ... "
CODE = {key: records.provenance()[key] for key in ("commit", "dirty")}  # that is fuzzed


class Hang(BaseException):
    """An input took too long."""


def addresses() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def too_long(*_: object) -> None:
    raise Hang(f"more than {CPU_S} s of processor time")


def where(error: BaseException) -> str:
    """What it is and the last line of ours that it went through."""
    ours = [one for one in traceback.extract_tb(error.__traceback__) if "site-packages" not in one.filename]
    return f"{type(error).__name__} {Path(ours[-1].filename).name}:{ours[-1].lineno}"


def damage_in(valid: bytes, content: bytes) -> str:
    """Where a damaged copy begins to differ; of JSON, from what it would have been written as."""
    with contextlib.suppress(ValueError):
        valid = max(
            valid, json.dumps(json.loads(valid)).encode(), key=lambda one: len(os.path.commonprefix([one, content]))
        )
    start = max(len(os.path.commonprefix([valid, content])) - 60, 0)
    return f"{valid[start : start + 160]!r} became {content[start : start + 160]!r}"


def fuzz(reader: Reader, folder: Path, examples: int) -> tuple[Counter[str], dict[str, str]]:
    """How many inputs were read, and how many refused in a line; each place where any ended otherwise, with the first of them."""
    file, counts, failures = folder / reader.file, Counter(), {}
    valid = file.read_bytes()
    reader.read(folder, file)  # what is valid is read

    @settings(max_examples=examples, derandomize=True, database=None, deadline=None, print_blob=True,
              suppress_health_check=list(HealthCheck), phases=[Phase.generate])  # fmt: skip
    @given(reader.damage(valid))
    def one(made: Made) -> None:
        content = made()
        file.write_bytes(content)
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        try:
            reader.read(folder, file)
        except UserError as error:
            if not str(error) or NO_LINE.search(str(error)) or len(str(error)) > LONGEST + SLACK:
                failures.setdefault(f"no line: {where(error)}", f"{error!r}\n{damage_in(valid, content)}\n")
            counts["refused"] += 1
        except BaseException as error:  # whatever is no line is what is looked for
            if (place := where(error)) not in failures:
                failures[place] = f"{traceback.format_exc()[-3000:]}{damage_in(valid, content)}\n"
        else:
            counts["read"] += 1
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)

    one()
    return counts, failures


def report(name: str, folder: Path, examples: int) -> dict:
    """What came of one reader, in this process."""
    limit = addresses() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGPROF, too_long)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            counts, failures = fuzz(TABLE[name], folder, examples)
            failed = "\n".join(f"{place}\n{how}" for place, how in failures.items()) or None
            return {"reader": name, **counts, "failed": failed, "cpu_s": round(time.process_time(), 2)}
    except BaseException:  # the valid file is not read, or the memory is full between two inputs
        return {"reader": name, "failed": traceback.format_exc()[:6000] + said.getvalue()[-2000:]}


def in_a_fork(action: Callable[[], object]) -> int:
    """Run `action` in a process of its own, wait for it, and return its status; what libraries print there is left out."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            action()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1]


def of_a_copy(name: str, valid: Path, examples: int, out: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(valid, Path(scratch) / "files"))
        os.chdir(folder)
        line = json.dumps({**report(name, folder, examples), "examples": examples, **CODE})
    with out.open("a") as stream:
        stream.write(line + "\n")


def main(out: Path, examples: int, names: list[str]) -> int:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as scratch:
        valid = Path(scratch)
        status = in_a_fork(lambda: write_valid(valid))
        for name in names or TABLE:
            status |= in_a_fork(lambda name=name: of_a_copy(name, valid, examples, out))
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).absolute(), int(sys.argv[2]), sys.argv[3:]))
