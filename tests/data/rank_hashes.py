"""One rank's batches as hashes, a line each, then SIGKILL: `python -m tests.data.rank_hashes DATASET FILE BATCHING START LAST`.

START is what the epoch has seen when it begins, LAST how many batches it makes. A line holds a hash of each sequence, or of each
bin of a packed batch, and how many documents the batch holds.
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
from recipe.data.stream import Loader, open_loader


def hashes(batch: dict) -> list[str]:
    """Of everything in a batch, piece by piece."""
    found = []
    for piece in split_batch(batch, BIN_SEQUENCES if "counts" in batch else 1):
        digest = hashlib.sha256()
        for name in ("document_ids", "input_ids", "cu_seqlens", "masked_indices", "labels", "attention_mask"):
            if name in piece and piece[name].ndim == 2:  # a padded row, whose width is its batch's
                digest.update(piece[name][piece["attention_mask"].bool()].numpy().tobytes())
            elif name in piece:
                digest.update(piece[name].numpy().tobytes())
        found.append(digest.hexdigest())
    return found


def open_some(folder: str, batching: str, batch_size: int, workers: int, train: bool = True) -> Loader:
    data = Data(path=folder, sequence_length=64, masking="word", mask_rate_end=0.1)
    return open_loader(
        data, read_info(folder), train=train, batch_size=batch_size, seed=17, batching=batching, workers=workers,
        run_documents=4_000,
    )  # fmt: skip


def main(folder: str, file: str, batching: str, start: int, last: int) -> None:
    loader = open_some(folder, batching, batch_size=32 // int(os.environ["WORLD_SIZE"]), workers=1)
    loader.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": start})
    with open(file, "w") as lines:
        for batch in loader:
            print(json.dumps([hashes(batch), count_sequences(batch)]), file=lines, flush=True)
            last -= 1
            if last == 0:
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
