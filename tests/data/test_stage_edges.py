"""An edge between stages is a place in the documents: batches before, over and after it are the same wherever a run goes on, on
however many ranks, by hashes."""

from __future__ import annotations

from itertools import islice

import pytest

from recipe.config import Data
from recipe.data.batch import count_sequences
from recipe.data.sampler import Stage
from recipe.data.stream import Loader
from tests.hashing import hashes
from tests.killed_ranks import killed_ranks
from tests.tiny.texts import open_batches

STAGES = (Stage(0, 16, 64), Stage(300, 32, 32), Stage(700, 64, 128))
BATCHINGS = ["sequences", "tokens", "padded"]


def staged(folder, batching: str, workers: int = 0, order: str = "global") -> Loader:
    """Whole words masked, at a rate that falls."""
    data = Data(path=str(folder), sequence_length=64, masking="word", mask_rate_end=0.1, order=order)
    return open_batches(data, 128, batching, workers=workers, run_documents=4_000, stages=STAGES)


@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_batch_has_the_form_of_the_stage_that_it_begins_in(tiny_dataset, batching):
    loader, seen, found = staged(tiny_dataset, batching), 0, []
    for batch in loader:
        stage = STAGES[batch["stage"]]
        assert batch["stage"] == sum(seen >= later.first for later in STAGES[1:])
        assert int(batch["counts"][:, 1].max()) <= stage.sequence_length * (8 if batching == "tokens" else 1)
        if batching == "tokens":
            assert len(batch["input_ids"]) == stage.sequence_length * stage.batch_size
        else:
            assert count_sequences(batch) == stage.batch_size
        seen += count_sequences(batch)
        found.append(batch["document_ids"][batch["document_ids"] >= 0])
    numbers = [int(number) for ids in found for number in ids]
    assert len(numbers) == len(set(numbers)) == seen > len(loader.dataset.documents) - 600, "each once, to the end"
    assert {batch["stage"] for batch in islice(loader, 3)} == {2}, "the second epoch is all the last stage's"
    with pytest.raises(TypeError):
        len(loader.dataset)


@pytest.mark.parametrize("order", ["global", "canonical"])
@pytest.mark.parametrize("batching", BATCHINGS)
def test_a_run_is_continued_from_every_batch(tiny_dataset, batching, order):
    """Before, at and after each edge, and into the next epoch."""
    loader = staged(tiny_dataset, batching, order=order)
    batches, next_epoch = list(loader), [hashes(batch) for batch in islice(loader, 2)]
    unbroken, stage = [hashes(batch) for batch in batches], [batch["stage"] for batch in batches]
    edges = [stage.index(number) for number in (1, 2)]
    for start in {0, len(batches) - 1, *(edge + near for edge in edges for near in (-2, -1, 0, 1))}:
        seen = sum(count_sequences(batch) for batch in batches[:start])
        loader.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": seen})
        assert [hashes(one) for one in islice(loader, 2)] == unbroken[start : start + 2]
    loader.dataset.load_state_dict(loader.dataset.state_dict(0, True))
    assert [hashes(batch) for batch in islice(loader, 2)] == next_epoch


@pytest.mark.parametrize("batching", BATCHINGS)
def test_two_ranks_killed_over_an_edge_are_continued_by_one(tiny_dataset, tmp_path, batching):
    unbroken = list(staged(tiny_dataset, batching))
    edge = next(number for number, batch in enumerate(unbroken) if batch["stage"] == 1)
    assert len(unbroken) > edge + 5
    seen, expected = 0, [hashes(batch) for batch in unbroken]
    done = 0
    for name, batches in (("before", edge - 1), ("over", 2)):  # the second begins before the edge and ends behind it
        found = killed_ranks(tiny_dataset, tmp_path / name, batching, seen, batches, staged)
        assert [one for one, _ in found] == expected[done : done + batches]
        done, seen = done + batches, seen + sum(documents for _, documents in found)
    again = staged(tiny_dataset, batching, workers=2)
    again.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": seen})
    assert [hashes(batch) for batch in again] == expected[done:]
