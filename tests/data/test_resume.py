"""What the model sees does not depend on where a run was killed, nor on how many ranks it had before and has after: by hashes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from recipe.config import Data
from recipe.data.batch import count_sequences
from recipe.data.stream import Loader
from tests.hashing import hashes
from tests.killed_ranks import killed_ranks
from tests.tiny.texts import open_batches


def open_some(folder: Path, batching: str, batch_size: int, workers: int = 0, train: bool = True) -> Loader:
    """Whole words masked, at a rate that falls."""
    data = Data(path=str(folder), sequence_length=64, masking="word", mask_rate_end=0.1)
    return open_batches(data, batch_size, batching, workers=workers, train=train, run_documents=4_000)


def open_for_two(dataset: Path, batching: str) -> Loader:
    return open_some(dataset, batching, batch_size=16, workers=1)


@pytest.mark.parametrize("batching", ["sequences", "tokens", "padded"])
def test_two_ranks_killed_twice_and_continued_by_one(tiny_dataset, tmp_path, batching):
    loader = open_some(tiny_dataset, batching, batch_size=32)
    unbroken, second = [hashes(batch) for batch in loader], [hashes(batch) for batch in islice(loader, 3)]
    assert len(unbroken) > 10 and unbroken[:3] != second

    first = killed_ranks(tiny_dataset, tmp_path / "first", batching, 0, 4, open_for_two)
    assert [found for found, _ in first] == unbroken[:4]
    seen = sum(documents for _, documents in first)
    then = killed_ranks(tiny_dataset, tmp_path / "then", batching, seen, 3, open_for_two)
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
