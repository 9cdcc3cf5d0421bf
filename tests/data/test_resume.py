"""What the model sees does not depend on where a run was killed, nor on how many ranks it had before and has after: by hashes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from itertools import islice
from pathlib import Path

import pytest

from recipe.config import Data
from recipe.data.batch import count_sequences
from recipe.data.stream import Loader
from tests.hashing import hashes
from tests.tiny.texts import open_batches


def open_some(folder: Path, batching: str, batch_size: int, workers: int = 0, train: bool = True) -> Loader:
    """Whole words masked, at a rate that falls."""
    data = Data(path=str(folder), sequence_length=64, masking="word", mask_rate_end=0.1)
    return open_batches(data, batch_size, batching, workers=workers, train=train, run_documents=4_000)


def _rank(rank: int, dataset: Path, file: Path, batching: str, start: int, batches: int) -> None:
    """Two ranks' one: a line for each batch, then SIGKILL."""
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    loader = open_some(dataset, batching, batch_size=16, workers=1)
    loader.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": start})
    with file.open("w") as lines:
        for batch in islice(loader, batches):
            print(json.dumps([hashes(batch), count_sequences(batch)]), file=lines, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def killed_ranks(dataset: Path, folder: Path, batching: str, start: int, batches: int) -> list[tuple[list[str], int]]:
    """(hashes, documents) of each batch that two ranks made before SIGKILL ended both."""
    folder.mkdir()
    context = multiprocessing.get_context("fork")  # has all that takes seconds to import
    of_rank = [(rank, dataset, folder / str(rank), batching, start, batches) for rank in range(2)]
    ranks = [context.Process(target=_rank, args=arguments) for arguments in of_rank]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    lines = [[json.loads(line) for line in (folder / str(rank)).read_text().splitlines()] for rank in range(2)]
    return [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*lines, strict=True)]


@pytest.mark.parametrize("batching", ["sequences", "tokens", "padded"])
def test_two_ranks_killed_twice_and_continued_by_one(tiny_dataset, tmp_path, batching):
    loader = open_some(tiny_dataset, batching, batch_size=32)
    unbroken, second = [hashes(batch) for batch in loader], [hashes(batch) for batch in islice(loader, 3)]
    assert len(unbroken) > 10 and unbroken[:3] != second

    first = killed_ranks(tiny_dataset, tmp_path / "first", batching, 0, 4)
    assert [found for found, _ in first] == unbroken[:4]
    seen = sum(documents for _, documents in first)
    then = killed_ranks(tiny_dataset, tmp_path / "then", batching, seen, 3)
    assert [found for found, _ in then] == unbroken[4:7]
    seen += sum(documents for _, documents in then)

    again = open_some(tiny_dataset, batching, batch_size=32, workers=2)
    again.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": seen})
    assert [hashes(batch) for batch in again] == unbroken[7:]
    assert [hashes(batch) for batch in islice(again, 3)] == second


@pytest.mark.parametrize("batching", ["sequences", "tokens", "padded"])
def test_a_run_is_continued_from_every_batch(tiny_dataset, batching):
    loader = open_some(tiny_dataset, batching, batch_size=256)
    batches = list(loader)
    unbroken, seen = [hashes(batch) for batch in batches], 0
    for number, batch in enumerate(batches):
        loader.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": seen})
        assert [hashes(batch) for batch in islice(loader, 2)] == unbroken[number : number + 2]
        seen += count_sequences(batch)


def test_a_state_between_two_epochs_is_the_next_one_s_beginning(tiny_dataset):
    """Composer asks once the epoch is over and its own count is 0 again."""
    loader = open_some(tiny_dataset, "sequences", batch_size=256)
    assert loader.dataset.state_dict(0, True) == {"epoch": 0, "sample_in_epoch": 0}
    documents = sum(count_sequences(batch) for batch in loader)
    assert loader.dataset.state_dict(documents, True) == {"epoch": 0, "sample_in_epoch": documents}
    state = loader.dataset.state_dict(0, True)
    assert state == {"epoch": 1, "sample_in_epoch": 0}
    second = [hashes(batch) for batch in loader]
    loader.dataset.load_state_dict(state)
    assert [hashes(batch) for batch in loader] == second


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_evaluate_every_document_once_and_alike(tiny_dataset, monkeypatch, ranks):
    """Also where the last batch has fewer documents than there are ranks: all make as many batches."""
    whole = open_some(tiny_dataset, "sequences", batch_size=1, train=False)
    expected = sorted(sum((hashes(batch) for batch in whole), []))
    found, counts = [], set()
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    for rank in range(ranks):
        monkeypatch.setenv("RANK", str(rank))
        batches = list(open_some(tiny_dataset, "sequences", batch_size=3, train=False))
        counts.add(len(batches))
        found += sum((hashes(batch) for batch in batches if batch["document_ids"][0] >= 0), [])
    assert len(counts) == 1 and sorted(found) == expected
