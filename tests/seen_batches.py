"""`recipe.train` that tells what the model sees: `python -m tests.seen_batches FILE SIGNAL BATCH YAML [key=value ...]`.

FILE gets a line for each training batch, the hashes of its sequences or of its bins. In the middle of batch BATCH the process
group is sent SIGNAL (0: never).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGSTOP, Signals

from recipe import train
from recipe.config import TrainConfig, run_main
from recipe.training.composer_model import Pretraining
from tests.hashing import hashes
from tests.processes import ROOT, group_members, wait_for
from tests.tiny.runs import run


@contextlib.contextmanager
def telling(on_batch: Callable[[list[str]], None]) -> Iterator[None]:
    """Call `on_batch` with every training batch's hashes when the model gets it."""
    forward = Pretraining.forward

    def forward_and_tell(self: Pretraining, batch: dict) -> dict:
        if self.training:
            on_batch(hashes(batch))
        return forward(self, batch)

    Pretraining.forward = forward_and_tell
    try:
        yield
    finally:
        Pretraining.forward = forward


def seen_by(yaml: Path, *words: str, fail_at: int = 0) -> list[list[str]]:
    """Train in this process, failing at a batch if asked to; the hashes of the batches that the model saw."""
    seen: list[list[str]] = []

    def see(found: list[str]) -> None:
        if fail_at and len(seen) == fail_at:
            raise RuntimeError("asked to fail")
        seen.append(found)

    with telling(see):
        run(yaml, *words)
    return seen


def interrupted(
    folder: Path,
    *words: str,
    ranks: int,
    sent: Signals | int,
    at: int,
    nodes: Sequence[str] = (),
    dies: int | None = None,
) -> list[list[str]]:
    """Train in processes of their own, until in the middle of batch `at` a signal reaches each; what the ranks saw together.

    With `nodes` each rank is a machine's only one, and has one more word, in which its own folder stands. Signal 0 is none. With
    `dies` it reaches that rank alone, and the others must end because of that, in one line.
    """
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    everywhere = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    everywhere |= {"NODE_RANK": 0, "OMP_NUM_THREADS": 1}
    processes = []
    for rank in range(ranks):
        here = {**everywhere, "RANK": rank, "LOCAL_RANK": rank}
        if nodes:
            here |= {"NODE_RANK": rank, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
        variables = {name: str(value) for name, value in here.items()}
        signal = sent if dies in (None, rank) else 0
        told = [str(folder / str(rank)), str(int(signal)), str(at), *words, *nodes[rank : rank + 1]]
        command = [sys.executable, "-m", "tests.seen_batches", *told]
        processes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=os.environ | variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, start_new_session=True,
            )
        )  # fmt: skip
    for rank, process in enumerate(processes):
        if sent == SIGSTOP and rank == dies:
            os.killpg(process.pid, SIGKILL)  # it would stay stopped
        _, err = process.communicate(timeout=300)
        assert "Traceback" not in err
        if dies in (None, rank):
            assert process.returncode == (130 if sent == SIGINT else -int(SIGKILL if sent == SIGSTOP else sent)), err
        else:
            named = rf"error: rank {rank}: rank {dies} on machine {dies if nodes else 0} is gone or hangs \(.*\n"
            assert process.returncode == 2 and re.fullmatch(named, err), err
        wait_for(lambda process=process: not group_members(process.pid), seconds=1)
    seen = [[json.loads(line) for line in (folder / str(rank)).read_text().splitlines()] for rank in range(ranks)]
    return [sum(shares, []) for shares in zip(*seen, strict=True)]


def main(file: str, signal: int, last: int, words: list[str]) -> int:
    seen = 0
    with open(file, "w") as lines:

        def write(found: list[str]) -> None:
            nonlocal seen
            print(json.dumps(found), file=lines, flush=True)
            seen += 1
            if signal and seen == last:
                os.killpg(0, signal)

        with telling(write):
            return run_main(TrainConfig, train.main, words)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
