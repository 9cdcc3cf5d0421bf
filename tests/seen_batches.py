"""`recipe.train` that tells what the model sees: `python -m tests.seen_batches FILE SIGNAL BATCH YAML [key=value ...]`.

FILE gets a line for each training batch, the hashes of its sequences or of its bins. In the middle of batch BATCH the process
group is sent SIGNAL (0: never).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator

from recipe import train
from recipe.config import TrainConfig, run_main
from recipe.training.composer_model import Pretraining
from tests.hashing import hashes


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
