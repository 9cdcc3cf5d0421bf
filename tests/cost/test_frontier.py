import math
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.cost.frontier import (
    AXES,
    BRANCH,
    Curve,
    Point,
    cost_at,
    frontier,
    frontiers,
    gains,
    points_of,
    savings,
    value_at,
    why_not,
)
from recipe.cost.measures import LOSS, SCORE
from recipe.errors import UserError
from tests.mistakes import refused
from tests.tiny.records import record_run

A, B = Curve("a"), Curve("b")


def point(cost, value, model="m", name="", kind="gpu", measure=SCORE):
    name = name or f"{model}-{cost}"
    return Point(name, Curve(model), value, cost, cost, int(cost * 1000), cost * 60, kind, measure=measure)


def losses(cloud):
    """The same points as losses: the better score is the lower loss."""
    return [replace(one, value=-one.value, measure=LOSS) for one in cloud]


def dominates(one, other):
    no_worse = one.usd <= other.usd and one.value >= other.value
    return no_worse and (one.usd < other.usd or one.value > other.value)


# A small grid, so that ties in cost, in score and in both are common.
clouds = st.lists(st.builds(point, st.integers(1, 8), st.integers(0, 8).map(float)), max_size=25)


@settings(deadline=None)  # a loaded machine is no failure
@given(clouds)
def test_the_frontier_is_what_brute_force_leaves(cloud):
    expected = [p for p in cloud if not any(dominates(q, p) for q in cloud)]
    found = frontier(cloud, "usd")
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert [p.usd for p in found] == sorted(p.usd for p in found)
    assert frontier(losses(cloud), "usd") == losses(found)


@settings(deadline=None)
@given(clouds, st.floats(0.5, 10), st.floats(-1, 9))
def test_interpolation_stays_inside_what_was_measured(cloud, cost, score):
    front = frontier(cloud, "usd")
    got = value_at(front, "usd", cost)
    if not front or not front[0].usd <= cost <= front[-1].usd:
        assert got is None
    else:
        below = max(p.value for p in front if p.usd <= cost)
        above = min(p.value for p in front if p.usd >= cost)
        assert below - 1e-9 <= got <= above + 1e-9
    price = cost_at(front, "usd", score)
    if not front or not front[0].value <= score <= front[-1].value:
        assert price is None
    else:
        assert value_at(front, "usd", price) == pytest.approx(score)
    falling = losses(front)
    assert cost_at(falling, "usd", -score) == (None if price is None else pytest.approx(price))
    assert value_at(falling, "usd", cost) == (None if got is None else pytest.approx(-got))


def test_a_cost_whose_logarithm_is_a_point_s_own():
    front = [point(3, 0.0), point(4, 1.0)]
    price = cost_at(front, "usd", 1.5e-197)
    assert price == pytest.approx(3) and value_at(front, "usd", price) == pytest.approx(0.0, abs=1e-9)
    assert value_at(front, "usd", math.nextafter(3, 0)) is None


def test_interpolation_is_linear_in_the_logarithm_of_cost():
    front = [point(1, 70.0), point(100, 80.0)]
    assert value_at(front, "usd", 10) == pytest.approx(75)
    assert cost_at(front, "usd", 72.5) == pytest.approx(math.sqrt(10))
    assert (value_at(front, "usd", 1), cost_at(front, "usd", 80.0)) == (70.0, 100)
    assert value_at(front, "usd", 100.01) is None and cost_at(front, "usd", 69.99) is None


def test_two_models_are_compared_where_both_were_measured():
    fronts = frontiers(
        [point(1, 70.0, "a"), point(100, 80.0, "a"), point(10, 70.0, "b"), point(1000, 75.0, "b")], "usd"
    )
    (saving,) = savings(fronts, "usd")
    assert (saving.value, saving.cheaper, saving.dearer, saving.dearer_cost) == (75.0, A, B, 1000)
    assert saving.cheaper_cost == pytest.approx(10) and saving.ratio == pytest.approx(100)
    assert saving.fraction == pytest.approx(0.99) and saving.interpolated
    (gain,) = gains(fronts, "usd")
    assert (gain.cost, gain.better, gain.better_value, gain.worse) == (100, A, 80.0, B)
    assert gain.worse_value == pytest.approx(72.5) and gain.interpolated


def test_a_lower_loss_is_the_better_one():
    fronts = frontiers(
        [
            point(1, 8.0, "a", measure=LOSS),
            point(100, 6.0, "a", measure=LOSS),
            point(200, 6.5, "a", measure=LOSS),
            point(10, 8.0, "b", measure=LOSS),
            point(1000, 7.0, "b", measure=LOSS),
        ],
        "usd",
    )
    assert [p.value for p in fronts[A]] == [8.0, 6.0]
    (saving,) = savings(fronts, "usd")
    assert (saving.value, saving.cheaper, saving.dearer, saving.dearer_cost) == (7.0, A, B, 1000)
    assert saving.cheaper_cost == pytest.approx(10) and saving.interpolated
    (gain,) = gains(fronts, "usd")
    assert (gain.cost, gain.better, gain.better_value, gain.worse) == (100, A, 6.0, B)
    assert gain.worse_value == pytest.approx(7.5)


def test_two_measured_points_are_not_called_interpolated():
    fronts = frontiers([point(2, 70.0, "a"), point(3, 70.0, "b")], "usd")
    assert [saving.interpolated for saving in savings(fronts, "usd")] == [False]
    assert gains(fronts, "usd") == []


def test_models_that_do_not_overlap_are_not_compared():
    fronts = frontiers([point(1, 10.0, "a"), point(2, 20.0, "a"), point(30, 50.0, "b"), point(40, 60.0, "b")], "usd")
    assert savings(fronts, "usd") == [] and gains(fronts, "usd") == []


def test_each_axis_reads_its_own_number():
    one = Point("n", Curve("m"), 1.0, usd=2.0, device_hours=3.0, tokens=4, seconds=5.0, device_kind="gpu")
    assert [one.cost(axis) for axis in AXES] == [2.0, 3.0, 4.0, 5.0]


def test_gpu_hours_and_core_hours_share_no_axis():
    mixed = [point(1, 70.0, "a", kind="cpu"), point(1, 70.0, "b", kind="gpu")]
    with pytest.raises(UserError, match="a-1 ran on a CPU"):
        frontiers(mixed, "gpu_hours")
    assert set(frontiers(mixed, "usd")) == {A, B}


EVALUATION = {
    "path": "data/books",
    "eval_split": "validation",
    "eval_mask_rate": 0.15,
    "eval_documents": 128,
    "sequence_length": 128,
}


def record(name, scores, benchmark="GLUE", init="pretrained", **protocol):
    return {
        "name": name,
        "model": "m",
        "kind": "pretrain",
        "status": "finished",
        "device": {"kind": "cpu"},
        "cost": {"seconds": 60.0, "device_hours": 2.0, "gpu_hours": 0.0, "usd": 0.5},
        "tokens": 1000,
        "trunk": None,
        "dataset": None,
        "eval": {"loss": 5.0},
        "config": {"data": dict(EVALUATION)},
        "glue": {
            "benchmark": benchmark,
            "protocol": {"max_length": 256, **protocol},
            "tasks": {task: {"score": score, "init": init} for task, score in scores.items()},
        },
    }


def test_a_point_holds_the_records_numbers_and_the_mean_of_its_tasks():
    (found,) = points_of([record("a", {"CoLA": 40.0, "RTE": 60.0})])
    assert found == Point("a", Curve("m"), 50.0, 0.5, 2.0, 1000, 60.0, "cpu")
    (found,) = points_of([record("a", {"CoLA": 40.0, "RTE": 60.0})], ["RTE"])
    assert found.value == 60.0
    (found,) = points_of([record("a", {})], measure=LOSS)
    assert (found.value, found.measure, found.merit) == (5.0, LOSS, -5.0)


def test_a_curve_is_known_by_its_fields():
    """Whatever a model is called: no sentence of one curve is another's."""
    branch = {**record("b", BOTH), "trunk": {"run": "runs/trunk"}}
    named = {**record("c", BOTH), "model": "m, branches of a trunk"}
    curves = [point.curve for point in points_of([record("a", BOTH), branch, named])]
    assert curves == [Curve("m"), Curve("m", BRANCH), Curve("m, branches of a trunk")]
    assert curves[1].label == curves[2].label and curves[1] != curves[2]
    assert len(frontiers(points_of([record("a", BOTH), branch, named]), "usd")) == 3


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
    assert says in refused(points_of, [record("a", BOTH), other])


def evaluated(name, dataset=None, **data):
    return {**record(name, {}), "glue": None, "dataset": dataset, "config": {"data": {**EVALUATION, **data}}}


DIGEST = {"vocabulary_sha256": "abc", "eval_documents": 9, "eval_tokens": 99}


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        ({}, {"path": "data/other"}, "data.path: data/books in a; data/other in b"),
        (
            {},
            {"eval_mask_rate": 0.3},
            "data.eval_mask_rate: 0.15 in a; 0.3 in b; evaluate them alike or leave runs out",
        ),
        ({}, {"eval_documents": 64}, "data.eval_documents: 128 in a; 64 in b"),
        ({}, {"eval_split": "test"}, 'data.eval_split: "validation" in a; "test" in b'),
        ({}, {"sequence_length": 512}, "data.sequence_length: 128 in a; 512 in b"),
        (
            {"dataset": DIGEST},
            {"dataset": {**DIGEST, "vocabulary_sha256": "def"}},
            "dataset.vocabulary_sha256: abc in a; def in b",
        ),
        ({"dataset": DIGEST}, {"dataset": {**DIGEST, "eval_tokens": 98}}, "dataset.eval_tokens: 99 in a; 98 in b"),
        ({"dataset": DIGEST}, {"path": "elsewhere"}, "data.path: data/books in a; elsewhere in b"),
    ],
)
def test_losses_of_different_evaluations_are_refused_or_labelled(one, other, says):
    runs = [evaluated("a", **one), evaluated("b", **other)]
    assert says in refused(points_of, runs, measure=LOSS)
    first, second = (point.curve for point in points_of(runs, mixed=True, measure=LOSS))
    assert first.model == second.model and first.protocol and first != second


def test_one_dataset_is_known_wherever_it_lies():
    runs = [evaluated("a", DIGEST), evaluated("b", DIGEST, path="elsewhere")]
    assert [point.curve.protocol for point in points_of(runs, measure=LOSS)] == ["", ""]
    runs = [evaluated("a"), evaluated("b", path="./data//books/")]
    assert [point.curve.protocol for point in points_of(runs, measure=LOSS)] == ["", ""]


def test_a_loss_has_no_tasks():
    with pytest.raises(UserError, match="--tasks RTE: an evaluation loss has no tasks"):
        points_of([evaluated("a")], ["RTE"], measure=LOSS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"eval": None}, "no evaluation loss"),
        ({"eval": {"loss": None}}, "no token of the evaluation was masked"),
        ({"eval": {"loss": 5.0, "batch": 100}, "batches": 120}, "its last evaluation is of batch 100 of 120"),
        ({"status": "running"}, "not finished"),
        ({"tokens": 0}, "bill is empty"),
    ],
)
def test_a_run_without_a_loss_says_why(change, says):
    assert why_not(evaluated("a"), LOSS) is None and "no scores" in why_not(evaluated("a"))
    assert says in why_not({**evaluated("a"), **change}, LOSS)


def test_common_tasks_make_runs_comparable_again():
    found = points_of([record("a", BOTH), record("b", {"CoLA": 50.0})], ["CoLA"])
    assert [p.value for p in found] == [40.0, 50.0]
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
        assert {curve: [p.value for p in front] for curve, front in fronts.items()} == {A: [4.0], B: [4.0]}


def test_an_ablation_is_a_curve_of_its_own(tmp_path):
    """Older records have no such keys, and newer ones none where the architecture is as it is."""
    blocks = [{}, {"norm": None}, {"norm": "pre", "embedding_norm": False}]
    records = [
        record_run(tmp_path, f"r{i}", "mosaic_bert", 1.0, {"SST-2": 90.0}, config={"model": block})
        for i, block in enumerate(blocks)
    ]
    curves = [one.curve.model for one in points_of(records)]
    assert curves == ["mosaic_bert", "mosaic_bert", "mosaic_bert norm=pre embedding_norm=false"]
