"""Two nodes on one computer: `python -m benchmarks.soak_nodes MODULE [key=value ...]`, run by each in a folder of its own.

They share a rendezvous alone, which is this process's: a `torchrun` on an address of its own works in `node-0`, another in
`node-1`, with one rank each. None is started again: who ends, ends all, and the same command goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from torch.distributed import TCPStore

from recipe.errors import end

NODES = 2
# In seconds: a launcher whose other never comes ends after a minute, and who is silent for five beats is gone.
RENDEZVOUS = "is_host=0,join_timeout=60,last_call_timeout=2,keep_alive_interval=2,keep_alive_max_attempt=5"


def main(words: list[str]) -> int:
    """Run the module on both nodes; returns the first status that is not 0, or 0."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launched: list[subprocess.Popen] = []
    signal.signal(signal.SIGTERM, lambda *about: [node.terminate() for node in launched])
    for number in range(NODES):
        folder = Path(f"node-{number}")
        folder.mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "torch.distributed.run", f"--nnodes={NODES}", "--nproc-per-node=1", "--max-restarts=0",
            "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{store.port}", "--rdzv-id=run", f"--rdzv-conf={RENDEZVOUS}",
            f"--local-addr=127.0.0.{2 + number}", "-m", *words,
        ]  # fmt: skip
        launched.append(subprocess.Popen(command, cwd=folder, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}))
    return next(filter(None, [node.wait() for node in launched]), 0)


if __name__ == "__main__":
    end(lambda: main(sys.argv[1:]))
