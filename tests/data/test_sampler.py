"""The order of an epoch: every document once, found from any place, and the same batches for any ranks."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from recipe.data import sampler
from recipe.data.sampler import BatchSampler, EpochSampler, GlobalBatch

SIZES = [30, 70, 1, 200, 55, 0, 99]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(sampler, "_BLOCK", 100)


def numbers(epoch: EpochSampler, position: int = 0) -> list[int]:
    return np.concatenate([np.empty(0, int), *(block.numbers for block in epoch.after(position))]).tolist()


def test_an_order_holds_each_document_once_and_is_found_from_any_place():
    epoch = EpochSampler(SIZES, seed=3, epoch=1)
    whole = numbers(epoch)
    assert sorted(whole) == list(range(sum(SIZES)))
    assert (np.diff(whole) == 1).mean() < 0.1, "hardly shuffled"
    for place in (0, 1, 54, 55, 200, 454, 455):
        assert numbers(epoch, place) == whole[place:]
    for other in (EpochSampler(SIZES, 3, 2), EpochSampler(SIZES, 4, 1)):
        assert numbers(other) != whole


def test_the_order_of_runs_that_began_before_there_was_another_stays():
    """As `EpochSampler` made it while it was the only one."""
    digest = hashlib.sha256(np.array(numbers(EpochSampler(SIZES, seed=3, epoch=1))).tobytes()).hexdigest()
    assert digest == "13e8a6fecaa35c5a3bf6e66b71b09d6c23d25667885a463f3f76f5c1dd1b9c13"


def test_without_a_seed_the_order_is_the_shards_own():
    assert numbers(EpochSampler(SIZES, None, 5), 7) == list(range(7, sum(SIZES)))


def test_a_block_names_its_shards_and_the_next_one_s():
    blocks = list(EpochSampler(SIZES, seed=3, epoch=0).after(0))
    assert len(blocks) > 2
    bounds = np.cumsum([0, *SIZES])
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        (shards,) = block.shards
        of_shards = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in shards])
        assert sorted(block.numbers) == sorted(of_shards)
        assert block.following[0].tolist() == (following.shards[0].tolist() if following else [])
        if following:
            assert following.before[0].tolist() == shards.tolist()


def test_batches_of_sequences_follow_the_order_over_blocks():
    epoch = EpochSampler(SIZES, seed=3, epoch=0)
    whole = numbers(epoch)
    for place in (0, 64, 192):
        pieces = (block.numbers for block in epoch.after(place))
        plan = list(BatchSampler(32, whole=True).batches(pieces, place))
        assert [p.seen for p in plan] == list(range(place, sum(SIZES) - 31, 32))
        assert np.concatenate([p.numbers for p in plan]).tolist() == whole[place : place + 32 * len(plan)]
    rest = list(BatchSampler(32, whole=False).batches((block.numbers for block in epoch.after(0)), 0))
    assert np.concatenate([p.numbers for p in rest]).tolist() == whole and len(rest[-1].numbers) == sum(SIZES) % 32


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_ranks_share_a_batch(ranks):
    batch = GlobalBatch(0, np.arange(100, 105))
    shares = [batch.of_rank(rank, ranks, 0)[0] for rank in range(ranks)]
    assert np.concatenate(shares).tolist() == batch.numbers.tolist()
    packed = GlobalBatch(0, np.arange(48), np.arange(48)[::-1] % 24)
    found = [packed.of_rank(rank, ranks, 24 // ranks) for rank in range(ranks)]
    whole = packed.of_rank(0, 1, 24)
    assert np.concatenate([n for n, _ in found]).tolist() == whole[0].tolist()
    assert np.concatenate([b + 24 // ranks * i for i, (_, b) in enumerate(found)]).tolist() == whole[1].tolist()
