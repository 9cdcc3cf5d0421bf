"""An elastic launch of `recipe.train` on one computer: `torchrun`s on addresses of their own, which share a rendezvous alone.

`python -m tests.elastic FOLDER HOLDS DIES YAML [key=value ...]` is what a launcher starts, again and again. FOLDER/seen-NUMBER
gets a line for each training batch of a start, the hashes of its sequences. In the first start the process waits in batch HOLDS
until it is told to end, or kills its launcher and itself in batch DIES (0: neither).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import TCPStore

from recipe import train
from recipe.config import TrainConfig, run_main
from tests.processes import ROOT
from tests.seen_batches import telling

PATIENCE_S = 400  # of whatever waits for another
# A rendezvous is complete when two have come, or that many seconds after the first; who is silent for five beats is gone.
RENDEZVOUS = "is_host=0,last_call_timeout=10,keep_alive_interval=2,keep_alive_max_attempt=5"


@contextmanager
def rendezvous() -> Iterator[int]:
    """The port of one that survives every launcher, as it is in this process."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    yield store.port


@contextmanager
def node(
    folder: Path, address: str, port: int, *words: str, holds: int = 0, dies: int = 0
) -> Iterator[subprocess.Popen]:
    """A launcher with this address, by which torchrun orders the ranks; FOLDER/log has what all its processes print."""
    folder.mkdir()
    launcher = [
        str(Path(sys.executable).parent / "torchrun"), "--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "run", "--rdzv-conf", RENDEZVOUS,
        "--local-addr", address,
    ]  # fmt: skip
    command = [*launcher, "-m", "tests.elastic", str(folder), str(holds), str(dies), *words]
    # torchrun keeps the first group's store for all later groups, though it may end with its launcher
    own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        launched = subprocess.Popen(command, cwd=ROOT, env=os.environ | own, stdout=log, stderr=log)
        try:
            yield launched
        finally:
            launched.terminate()  # it ends its worker too
            launched.wait(60)


def seen(folder: Path, start: int) -> list[list[str]]:
    """What a node's process has seen in its start of this number."""
    file = folder / f"seen-{start}"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def main(folder: str, holds: int, dies: int, words: list[str]) -> int:
    start, count, told = len(list(Path(folder).glob("seen-*"))), 0, threading.Event()

    def listen() -> None:
        before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, lambda *about: (told.set(), before(*about)))

    with (Path(folder) / f"seen-{start}").open("x") as lines:

        def write(found: list[str]) -> None:
            nonlocal count
            count += 1
            waits = start == 0 and count == holds
            if waits:
                listen()
            print(json.dumps(found), file=lines, flush=True)
            if waits:
                assert told.wait(PATIENCE_S), "nobody came"
            if start == 0 and count == dies:
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        with telling(write):
            return run_main(TrainConfig, train.main, words)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
