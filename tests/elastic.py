"""An elastic launch of `recipe.train` on one computer: `torchrun`s on addresses of their own, which share a rendezvous alone.

`python -m tests.elastic FOLDER HOLDS DIES YAML [key=value ...]` is what a launcher starts, again and again. FOLDER/seen-NUMBER
gets a line for each training batch of a start, the hashes of its sequences. In the first start the process waits in batch HOLDS
until it is told to end or FOLDER/go is there, or kills its launcher and itself in batch DIES (0: neither).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import TCPStore

from recipe import train
from recipe.config import TrainConfig, run_main
from tests.namespaces import HUB, INTERFACE, Network
from tests.processes import ROOT
from tests.seen_batches import telling
from tests.tiny.configs import train_yaml

PATIENCE_S = 400  # of whatever waits for another
# A rendezvous is complete when two have come, or that many seconds after the first; who is silent for five beats is gone.
RENDEZVOUS = "is_host=0,last_call_timeout=5,keep_alive_interval=2,keep_alive_max_attempt=5"


@contextmanager
def rendezvous(network: Network | None = None) -> Iterator[str]:
    """The address and port of one that survives every launcher, as it is in this process; in a network's hub or on loopback."""

    def make(address: str) -> TCPStore:
        return TCPStore(address, 0, is_master=True, wait_for_workers=False)

    store = network.in_hub(lambda: make(HUB)) if network else make("127.0.0.1")
    yield f"{store.host}:{store.port}"


@contextmanager
def node(
    folder: Path,
    address: str,
    endpoint: str,
    *words: str,
    holds: int = 0,
    dies: int = 0,
    inside: tuple[str, ...] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen]:
    """A launcher with this address, by which torchrun orders the ranks; FOLDER/log has what all its processes print. `inside` is
    what enters its namespace, if it has one."""
    folder.mkdir()
    launcher = [
        *inside, str(Path(sys.executable).parent / "torchrun"), "--nnodes", "1:2", "--nproc-per-node", "1",
        "--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "run",
        "--rdzv-conf", RENDEZVOUS, "--local-addr", address,
    ]  # fmt: skip
    command = [*launcher, "-m", "tests.elastic", str(folder), str(holds), str(dies), *words]
    # torchrun keeps the first group's store for all later groups, though it may end with its launcher
    own = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
    own["GLOO_SOCKET_IFNAME"] = INTERFACE if inside else "lo"
    with (folder / "log").open("w") as log:
        environment = {**os.environ, **own, **(variables or {})}
        launched = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        try:
            yield launched
        finally:
            launched.terminate()  # it ends its worker too
            launched.wait(60)


def elastic_yaml(folder: Path, dataset: Path) -> Path:
    """`folder`/train.yaml, a run of 29 batches."""
    return train_yaml(
        folder, dataset, "data.eval_documents=32", "model.hidden_size=16", "model.num_hidden_layers=1",
        "model.intermediate_size=32", "batch_size=32", "duration=900sp", "checkpoint_every=5ba", "autoresume=true",
    )  # fmt: skip


def seen(folder: Path, start: int) -> list[list[str]]:
    """What a node's process has seen in its start of this number."""
    file = folder / f"seen-{start}"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def starts(folder: Path) -> int:
    """How often its process has started."""
    return len(list(folder.glob("seen-*")))


def main(folder: str, holds: int, dies: int, words: list[str]) -> int:
    start, count, told = starts(Path(folder)), 0, threading.Event()

    def wait() -> None:
        ends = time.monotonic() + PATIENCE_S
        while not told.wait(0.05) and not (Path(folder) / "go").exists():
            assert time.monotonic() < ends, "nobody came"

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
                wait()
            if start == 0 and count == dies:
                os.kill(os.getppid(), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        with telling(write):
            return run_main(TrainConfig, train.main, words)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
