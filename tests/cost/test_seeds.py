import math

import pytest

from recipe.cost.frontier import BRANCH, Curve, Point
from recipe.cost.seeds import alike, interval, merge, merged


def record(seed, duration="10ba", model="m", device="d", **config):
    config = {"seed": seed, "duration": duration, "out": f"runs/{seed}", **config}
    return {"model": model, "device": {"name": device, "count": 1}, "config": config}


def test_the_interval_is_students():
    assert interval([1.0]) is None
    assert interval([1.0, 3.0]) == pytest.approx(12.706 * math.sqrt(2) / math.sqrt(2), rel=1e-3)
    assert interval([10.0, 11.0, 12.0, 13.0, 14.0]) == pytest.approx(2.776 * math.sqrt(2.5) / math.sqrt(5), rel=1e-3)


def test_runs_that_differ_in_their_seed_alone_belong_together():
    runs = [record(1), record(2), record(3, "20ba"), record(4, model="n"), record(5, device="e"), record(6)]
    assert alike(runs) == [[0, 1, 5], [2], [3], [4]]


def test_settings_that_do_not_change_a_result_may_differ_between_seeds():
    data = {"path": "d", "workers": 0}
    runs = [
        record(1, data=data),
        record(2, data=data | {"cache": "/fast", "cache_gib": 3.0, "workers": 8}, microbatch_size=4),
        record(3, data=data, checkpoint_at=[5], eval_every="5ba", cost={"usd_per_hour": 2.0}),
        record(4, data=data, init_from=None),  # a key that older records lack, at its default
        record(5, data=data, batch_size=8),
        record(6, data=data | {"mask_rate": 0.15}),
    ]
    assert alike(runs) == [[0, 1, 2, 3], [4], [5]]


def test_the_same_seed_again_is_no_other_sample():
    assert alike([record(1), record(1), record(2)]) == [[0, 2], [1]]
    assert alike([{**record(1), "config": {}}, {**record(1), "config": {}}]) == [[0], [1]]


def test_a_point_of_several_is_their_mean():
    points = [Point(f"run-s{i}", Curve("m"), 70.0 + i, 1.0 + i, 2.0, 10 + i, 3.0, "gpu") for i in (1, 2, 3)]
    found = merge(points)
    assert (found.name, found.seeds, found.value, found.usd, found.tokens) == ("run (3 seeds)", 3, 72.0, 3.0, 12)
    assert found.half_width == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
    assert merge(points[:1]) is points[0] and points[0].half_width is None


def test_branches_and_runs_of_one_config_stay_apart():
    runs = [record(seed) for seed in (1, 1, 2, 2)]
    curves = [Curve("m"), Curve("m", BRANCH)] * 2
    points = [Point(f"run-s{i}", curve, 70.0 + i, 1.0, 2.0, 10, 3.0, "gpu") for i, curve in enumerate(curves)]
    found = merged(runs, points)
    assert [(point.curve, point.value, places) for point, places in found] == [
        (curves[0], 71.0, [0, 2]),
        (curves[1], 72.0, [1, 3]),
    ]


@pytest.mark.parametrize(
    ("names", "common"),
    [
        (("bert-40ba-s17", "bert-40ba-s18"), "bert-40ba"),  # their common part ends in the middle of a seed
        (("bert.1", "bert.2"), "bert"),
        (("class7", "class8"), "class"),
        (("1", "2"), "1"),
    ],
)
def test_a_point_of_several_has_the_name_that_they_share(names, common):
    points = [Point(name, Curve("m"), 70.0, 1.0, 2.0, 10, 3.0, "gpu") for name in names]
    assert merge(points).name == f"{common} (2 seeds)"
