"""Two machines as network namespaces, which share an object store alone, and the link of one is cut in the middle of a run.

python -m tests.cut_link FILE      measures how long it takes until the other one goes on, and writes FILE
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measurement import write
from recipe.system.quiet import quiet_libraries
from tests.elastic import PATIENCE_S, RENDEZVOUS, elastic_yaml, node, rendezvous, seen, starts
from tests.namespaces import HUB, Network, network
from tests.object_store import BUCKET, ObjectStore
from tests.processes import wait_for
from tests.tiny.texts import write_tiny_dataset

CUT, KEPT = "cut", "kept"  # the nodes, by what becomes of their links; CUT is rank 0, which has the run
AT = 7  # the batch of their common start in which the link goes
RANK_TIMEOUT_S = 15


@dataclass(frozen=True)
class Times:
    """Seconds from the cut on, of the node that is left."""

    line_s: float  # until its rank says who is gone
    end_s: float  # until that process has ended
    first_batch_s: float  # until the model gets the first batch of the next start


def cut_link(folder: Path, yaml: Path, store: ObjectStore, net: Network) -> Times:
    """Train on both, cut, and wait for the end of the other's run. The dataset is `corpus/` in the store; `folder`/CUT and
    `folder`/KEPT are what the nodes have."""
    cut, kept = folder / CUT, folder / KEPT
    variables = {**store.environment, "S3_ENDPOINT_URL": net.in_hub(lambda: store.serve(HUB))}

    def start(own: Path) -> AbstractContextManager[subprocess.Popen]:
        words = (
            str(yaml), f"data.path=s3://{BUCKET}/corpus", f"data.cache={own / 'cache'}", f"out={own / 'run'}",
            f"save_folder=s3://{BUCKET}/run", f"rank_timeout={RANK_TIMEOUT_S}",
        )  # fmt: skip
        place = {"inside": net.inside(own.name), "variables": variables}
        return node(own, net.addresses[own.name], endpoint, *words, holds=AT, **place)

    with ExitStack() as stack:
        endpoint = stack.enter_context(rendezvous(net))
        left, lost = stack.enter_context(start(kept)), stack.enter_context(start(cut))
        stack.callback(net.kill, CUT)  # its launcher looks for a rendezvous that it cannot reach any more

        def until(found: Callable[[], object], *launchers: subprocess.Popen) -> float:
            wait_for(lambda: found() or any(one.poll() is not None for one in launchers), PATIENCE_S)
            return time.monotonic() - began

        began = time.monotonic()
        # where the launchers come too far apart for one rendezvous, KEPT starts alone, waits in a batch, and then starts again
        until(lambda: len(seen(cut, 0)) == len(seen(kept, starts(kept) - 1)) == AT, left, lost)
        number = starts(kept)
        net.cut(CUT)
        began = time.monotonic()
        for own in (cut, kept):
            (own / "go").touch()
        log = kept / "log"
        times = Times(
            until(lambda: "is gone or hangs" in log.read_text(), left),
            until(lambda: "(exitcode: 2)" in log.read_text(), left),
            until(lambda: seen(kept, number), left),
        )
        assert left.wait(PATIENCE_S) == 0, log.read_text()
        wait_for(lambda: "is gone or hangs" in (cut / "log").read_text(), PATIENCE_S)
    return times


def main(file: Path) -> None:
    quiet_libraries()
    store, load = ObjectStore(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch, network(CUT, KEPT) as net:
        folder = Path(scratch)
        dataset = write_tiny_dataset(folder)
        store.put(dataset)
        times = cut_link(folder, elastic_yaml(folder, dataset), store, net)
    store.close()
    settings = {"rank_timeout_s": RANK_TIMEOUT_S, "rendezvous": RENDEZVOUS, "load_before": load}
    print(write(file, {"settings": settings, **asdict(times)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
