"""One rank's packed batches as hashes, a line a batch, then SIGKILL: `python -m tests.data.rank_hashes DATASET FILE BATCHES`.

A line also holds the state that a checkpoint after that batch would hold.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys

from recipe.config import Data
from recipe.data.batch import BIN_SEQUENCES, count_sequences, split_batch
from recipe.data.shards import read_info
from recipe.data.stream import open_loader


def hashes(batch: dict) -> list[str]:
    """One of each bin."""
    found = []
    for piece in split_batch(batch, BIN_SEQUENCES):
        digest = hashlib.sha256(piece["counts"].tobytes())
        for name in ("document_ids", "input_ids", "cu_seqlens", "masked_indices", "labels"):
            digest.update(piece[name].numpy().tobytes())
        found.append(digest.hexdigest())
    return found


def main(folder: str, file: str, batches: int) -> None:
    ranks = int(os.environ["WORLD_SIZE"])
    data = Data(path=folder, sequence_length=64, batching="tokens", masking="word")
    loader = open_loader(
        data, read_info(folder), train=True, batch_size=32 // ranks, seed=17, batching="tokens", workers=1
    )
    with open(file, "w") as lines:
        for batch in loader:
            print(json.dumps([hashes(batch), count_sequences(batch)]), file=lines, flush=True)
            batches -= 1
            if batches == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
