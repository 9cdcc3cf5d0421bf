"""What predicts a set: batches side by side on a CPU's threads say what one after another does."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from recipe.finetune.batches import EncodedExamples, ExampleCollator, outputs_of, sequence_lengths

LENGTHS = np.array([3, 9, 1, 7, 5, 8, 2, 6, 4, 9])


@pytest.fixture
def three_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(threads)


def some_examples() -> EncodedExamples:
    ids = np.random.default_rng(0).integers(1, 100, LENGTHS.sum(), dtype=np.int32)
    offsets = np.concatenate([[0], LENGTHS.cumsum()])
    return EncodedExamples(ids, np.zeros(len(ids), np.int8), offsets, np.zeros(len(LENGTHS), np.int64), 0)


@pytest.mark.parametrize("pad_id", [None, 0])
def test_threads_change_no_output(three_threads, pad_id):
    weights = torch.nn.Parameter(torch.arange(100.0))
    met, seen = threading.Barrier(3, timeout=60), []

    def forward(batch):
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        if len(seen) <= 3:
            met.wait()  # three of them are here at the same time, or this breaks
        ids = batch["input_ids"] if pad_id is not None else batch["input_ids"].split(sequence_lengths(batch).tolist())
        sums = torch.stack([weights[one[one != 0]].sum() for one in ids])
        return torch.stack([sums, sequence_lengths(batch).float()], dim=1)

    examples = some_examples()
    found = outputs_of(forward, examples, ExampleCollator(20, pad_id), "cpu")
    sums = np.add.reduceat(examples.ids.astype(np.float32), examples.offsets[:-1])
    assert (found == np.stack([sums, LENGTHS], axis=1)).all() and found.dtype == np.float32
    assert len({thread for thread, _, _ in seen}) == 3
    assert {(threads, grad) for _, threads, grad in seen} == {(1, False)}
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 3 and later == [3]


def test_one_batch_has_all_threads(three_threads):
    seen = []

    def forward(batch):
        seen.append((threading.get_ident(), torch.get_num_threads()))
        return torch.zeros(len(batch["labels"]), 1)

    outputs_of(forward, some_examples(), ExampleCollator(1000), "cpu")
    assert seen == [(threading.get_ident(), 3)]


def test_an_error_in_one_of_them_is_the_callers(three_threads):
    def forward(batch):
        raise ValueError("not this one")

    with pytest.raises(ValueError, match="not this one"):
        outputs_of(forward, some_examples(), ExampleCollator(20), "cpu")
    assert torch.get_num_threads() == 3
