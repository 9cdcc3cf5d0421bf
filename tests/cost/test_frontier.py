import math
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.cost.frontier import (
    AXES,
    Point,
    cost_at,
    frontier,
    frontiers,
    gains,
    points_of,
    savings,
    score_at,
    why_not,
)
from recipe.errors import UserError


def point(cost, score, model="m", name="", kind="gpu"):
    return Point(name or f"{model}-{cost}", model, score, cost, cost, int(cost * 1000), cost * 60, kind)


def dominates(one, other):
    no_worse = one.usd <= other.usd and one.score >= other.score
    return no_worse and (one.usd < other.usd or one.score > other.score)


# A small grid, so that ties in cost, in score and in both are common.
clouds = st.lists(st.builds(point, st.integers(1, 8), st.integers(0, 8).map(float)), max_size=25)


@settings(deadline=None)  # a loaded machine is no failure
@given(clouds)
def test_the_frontier_is_what_brute_force_leaves(cloud):
    expected = [p for p in cloud if not any(dominates(q, p) for q in cloud)]
    found = frontier(cloud, "usd")
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert [p.usd for p in found] == sorted(p.usd for p in found)


@settings(deadline=None)
@given(clouds, st.floats(0.5, 10), st.floats(-1, 9))
def test_interpolation_stays_inside_what_was_measured(cloud, cost, score):
    front = frontier(cloud, "usd")
    got = score_at(front, "usd", cost)
    if not front or not front[0].usd <= cost <= front[-1].usd:
        assert got is None
    else:
        below = max(p.score for p in front if p.usd <= cost)
        above = min(p.score for p in front if p.usd >= cost)
        assert below - 1e-9 <= got <= above + 1e-9
    price = cost_at(front, "usd", score)
    if not front or not front[0].score <= score <= front[-1].score:
        assert price is None
    else:
        assert score_at(front, "usd", price) == pytest.approx(score)


def test_interpolation_is_linear_in_the_logarithm_of_cost():
    front = [point(1, 70.0), point(100, 80.0)]
    assert score_at(front, "usd", 10) == pytest.approx(75)
    assert cost_at(front, "usd", 72.5) == pytest.approx(math.sqrt(10))
    assert (score_at(front, "usd", 1), cost_at(front, "usd", 80.0)) == (70.0, 100)
    assert score_at(front, "usd", 100.01) is None and cost_at(front, "usd", 69.99) is None


def test_two_models_are_compared_where_both_were_measured():
    fronts = frontiers(
        [point(1, 70.0, "a"), point(100, 80.0, "a"), point(10, 70.0, "b"), point(1000, 75.0, "b")], "usd"
    )
    (saving,) = savings(fronts, "usd")
    assert (saving.score, saving.cheaper, saving.dearer, saving.dearer_cost) == (75.0, "a", "b", 1000)
    assert saving.cheaper_cost == pytest.approx(10) and saving.ratio == pytest.approx(100)
    assert saving.fraction == pytest.approx(0.99) and saving.interpolated
    (gain,) = gains(fronts, "usd")
    assert (gain.cost, gain.better, gain.better_score, gain.worse) == (100, "a", 80.0, "b")
    assert gain.worse_score == pytest.approx(72.5) and gain.interpolated


def test_two_measured_points_are_not_called_interpolated():
    fronts = frontiers([point(2, 70.0, "a"), point(3, 70.0, "b")], "usd")
    assert [saving.interpolated for saving in savings(fronts, "usd")] == [False]
    assert gains(fronts, "usd") == []


def test_models_that_do_not_overlap_are_not_compared():
    fronts = frontiers([point(1, 10.0, "a"), point(2, 20.0, "a"), point(30, 50.0, "b"), point(40, 60.0, "b")], "usd")
    assert savings(fronts, "usd") == [] and gains(fronts, "usd") == []


def test_each_axis_reads_its_own_number():
    one = Point("n", "m", 1.0, usd=2.0, device_hours=3.0, tokens=4, seconds=5.0, device_kind="gpu")
    assert [one.cost(axis) for axis in AXES] == [2.0, 3.0, 4.0, 5.0]


def test_gpu_hours_and_core_hours_share_no_axis():
    mixed = [point(1, 70.0, "a", kind="cpu"), point(1, 70.0, "b", kind="gpu")]
    with pytest.raises(UserError, match="a-1 ran on a CPU"):
        frontiers(mixed, "gpu_hours")
    assert set(frontiers(mixed, "usd")) == {"a", "b"}


def record(name, scores, benchmark="GLUE", init="pretrained", **protocol):
    return {
        "name": name,
        "model": "m",
        "kind": "pretrain",
        "status": "finished",
        "device": {"kind": "cpu"},
        "cost": {"seconds": 60.0, "device_hours": 2.0, "gpu_hours": 0.0, "usd": 0.5},
        "tokens": 1000,
        "glue": {
            "benchmark": benchmark,
            "protocol": {"max_length": 256, **protocol},
            "tasks": {task: {"score": score, "init": init} for task, score in scores.items()},
        },
    }


def test_a_point_holds_the_records_numbers_and_the_mean_of_its_tasks():
    (found,) = points_of([record("a", {"CoLA": 40.0, "RTE": 60.0})])
    assert found == Point("a", "m", 50.0, 0.5, 2.0, 1000, 60.0, "cpu")
    (found,) = points_of([record("a", {"CoLA": 40.0, "RTE": 60.0})], ["RTE"])
    assert found.score == 60.0


BOTH = {"CoLA": 40.0, "RTE": 60.0}


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (record("b", {"CoLA": 50.0}), "tasks: CoLA, RTE in a; CoLA in b; --tasks CoLA or leave runs out"),
        (record("b", {"MRPC": 50.0}), "no task in common"),
        (record("b", BOTH, benchmark="demo"), "benchmark: GLUE in a; demo in b"),
        (record("b", BOTH, max_length=128), "protocol.max_length: 256 in a; 128 in b"),
        (record("b", BOTH, seeds="table"), 'protocol.seeds: null in a; "table" in b'),
        (record("b", BOTH, init="mnli"), "init of CoLA: pretrained in a; mnli in b"),
    ],
)
def test_runs_that_were_scored_differently_are_never_mixed(other, says):
    with pytest.raises(UserError) as error:
        points_of([record("a", BOTH), other])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_common_tasks_make_runs_comparable_again():
    found = points_of([record("a", BOTH), record("b", {"CoLA": 50.0})], ["CoLA"])
    assert [p.score for p in found] == [40.0, 50.0]
    with pytest.raises(UserError, match="run `b` has no RTE; it has CoLA"):
        points_of([record("a", BOTH), record("b", {"CoLA": 50.0})], ["RTE"])


def test_a_long_list_of_runs_is_shortened_with_its_count():
    runs = [record(f"run{i}", BOTH) for i in range(9)] + [record("odd", {"CoLA": 1.0})]
    with pytest.raises(UserError, match="run0, run1, run2, run3 and 5 more; CoLA in odd"):
        points_of(runs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "glue"}, "kind `glue`"),
        ({"status": "running"}, "not finished"),
        ({"glue": None}, "no scores"),
        ({"glue": {"tasks": {}}}, "no scores"),
        ({"tokens": 0}, "bill is empty"),
        ({"cost": {"usd": 0.0, "device_hours": 1.0}}, "bill is empty"),
        ({"glue": {"tasks": {"RTE": {"score": None, "init": "mnli"}}}}, "score on RTE is not a number"),
    ],
)
def test_a_run_that_is_no_point_says_why(change, says):
    assert why_not(record("a", BOTH)) is None
    assert says in why_not({**record("a", BOTH), **change})


def test_no_axis_or_model_is_forgotten():
    cloud = [point(cost, float(score), model) for cost, score, model in product((1, 2), (3, 4), ("a", "b"))]
    for axis in AXES:
        fronts = frontiers(cloud, axis)
        assert {model: [p.score for p in front] for model, front in fronts.items()} == {"a": [4.0], "b": [4.0]}
