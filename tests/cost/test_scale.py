"""What many machines cost: the arithmetic by hand, and what limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from recipe.cost.scale import Job, Links, Parts, scale

PARTS = Parts(planned_documents_per_s=1e6, read_tokens_per_s=1e6, checkpoint_bytes_per_s=1e9, shard_bytes_per_token=2.0)
LINKS = Links(between=12.5e9, within=200e9)
JOB = Job(documents=4096, tokens=500_000, device_seconds=1.0, parameters=137_000_000, checkpoint_every=1000)


def test_a_step_by_hand():
    found = scale(JOB, 8, 8, PARTS, LINKS)
    assert found.compute == 1 / 64
    gradients = 4 * 137e6
    assert found.exchange == pytest.approx(2 * 7 / 8 * gradients / 200e9 + 2 * 7 / 8 * gradients / 12.5e9)
    assert found.exposed == pytest.approx(found.exchange - 2 / 3 / 64)
    assert found.loader == pytest.approx((4096 / 1e6 + 500_000 / 64 / 1e6) / 8)
    assert found.checkpoints == pytest.approx(12 * 137e6 / 1e9 / 1000)
    assert found.step == pytest.approx(found.compute + found.exposed + found.checkpoints)
    assert found.efficiency == found.compute / found.step and found.limit == "exchange"
    assert found.shards_per_s == pytest.approx(2.0 * 500_000 / found.step)


def test_one_device_computes_and_nothing_else():
    found = scale(replace(JOB, checkpoint_every=0), 1, 1, PARTS, LINKS)
    assert found.step == JOB.device_seconds and found.exchange == 0 and found.limit == "computation"


def test_what_limits():
    slow = replace(PARTS, read_tokens_per_s=1e3)
    found = scale(JOB, 1, 8, slow, LINKS)
    assert found.limit == "the loader" and found.step == pytest.approx(found.loader + found.checkpoints)
    assert scale(JOB, 1, 8, slow, LINKS, workers=0).loader == pytest.approx(8 * found.loader)
    assert scale(replace(JOB, checkpoint_every=1), 1, 8, PARTS, LINKS).limit == "checkpoints"


def test_canonical_parts_divide_what_is_fetched():
    for machines, share in ((4, 1 / 4), (3, 1 / 2), (8, 1 / 4)):  # a part may be two machines'
        whole = scale(JOB, machines, 8, PARTS, LINKS).shards_per_s
        assert scale(replace(JOB, parts=4), machines, 8, PARTS, LINKS).shards_per_s == pytest.approx(whole * share)


def test_efficiency_falls_with_machines():
    shares = [scale(JOB, machines, 8, PARTS, LINKS).efficiency for machines in (1, 8, 64)]
    assert shares == sorted(shares, reverse=True)
    times = [scale(JOB, machines, 8, PARTS, LINKS).step for machines in (1, 8)]
    assert times[1] < times[0]
