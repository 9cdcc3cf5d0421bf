"""Two ranks that read a dataset, and are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from recipe.data.batch import count_sequences
from recipe.data.stream import Loader
from tests.hashing import hashes

Opened = Callable[[Path, str], Loader]  # (dataset, batching) -> what a rank reads


def _rank(rank: int, dataset: Path, file: Path, batching: str, start: int, batches: int, opened: Opened) -> None:
    """Two ranks' one: a line for each batch, then SIGKILL."""
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    loader = opened(dataset, batching)
    loader.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": start})
    with file.open("w") as lines:
        for batch in islice(loader, batches):
            print(json.dumps([hashes(batch), count_sequences(batch)]), file=lines, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def killed_ranks(
    dataset: Path, folder: Path, batching: str, start: int, batches: int, opened: Opened
) -> list[tuple[list[str], int]]:
    """(hashes, documents) of each batch that two ranks made before SIGKILL ended both."""
    folder.mkdir()
    context = multiprocessing.get_context("fork")  # has all that takes seconds to import
    of_rank = [(rank, dataset, folder / str(rank), batching, start, batches, opened) for rank in range(2)]
    ranks = [context.Process(target=_rank, args=arguments) for arguments in of_rank]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    lines = [[json.loads(line) for line in (folder / str(rank)).read_text().splitlines()] for rank in range(2)]
    return [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*lines, strict=True)]
