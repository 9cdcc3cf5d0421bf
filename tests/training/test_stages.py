"""A run with stages: where its edges are, and that schedules, memory, plan, bill and a continuation are right across them."""

from __future__ import annotations

import pytest

from recipe import plan, train
from recipe.config import SweepConfig, TrainConfig, load
from recipe.cost import prices
from recipe.records import read_record
from recipe.report import bill
from recipe.report.sweep import trunk
from recipe.training import memory, stages
from recipe.training.checks import progress_by_documents
from recipe.training.preflight import make_plan
from recipe.training.schedules import fallen, warmup_stable_decay
from tests.mistakes import refused
from tests.seen_batches import telling
from tests.tiny.configs import train_yaml
from tests.tiny.runs import run

STAGED = ("stages.share=[0.5,0.3,0.2]", "stages.sequence_length=[12,24,48]", "stages.batch_size=[16,4,8]")
FAST = ("model.hidden_size=16", "model.num_hidden_layers=1", "model.intermediate_size=32")


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    return train_yaml(tmp_path, tiny_dataset, *FAST, "duration=20ba", "log_every=1", "device=cpu", "precision=fp32")


def of(yaml, *words: str) -> TrainConfig:
    return load(TrainConfig, str(yaml), [*STAGED, *words])


def one_by_one(counts: list[int], sizes: list[int], documents: int) -> list[int]:
    """What a run has seen at the end of each stage, batch by batch; an epoch's rest that fills no batch is left out."""
    epoch, position, found = 0, 0, []
    for count, size in zip(counts, sizes, strict=True):
        for _ in range(count):
            if position + size > documents:
                epoch, position = epoch + 1, 0
            position += size
        found.append(epoch * documents + position)
    return found


@pytest.mark.parametrize("documents", [7, 16, 50, 1000])
def test_edges_counted_in_batches_are_where_these_end(documents):
    counts, sizes, seen, found = [5, 1, 40, 3], [3, 7, 4, 5], 0, []
    for count, size in zip(counts, sizes, strict=True):
        seen = stages.after(seen, count, size, documents)
        found.append(seen)
    assert found == one_by_one(counts, sizes, documents)


@pytest.mark.parametrize(("duration", "firsts"), [("20ba", [0, 160, 184]), ("400sp", [0, 200, 320])])
def test_shares_are_of_the_duration(yaml, duration, firsts):
    found = make_plan(of(yaml, f"duration={duration}"))
    assert [stage.first for stage in found.stages] == firsts
    assert [(stage.sequence_length, stage.batch_size) for stage in found.stages] == [(12, 16), (24, 4), (48, 8)]
    assert found.positions == 48


def test_a_stage_of_documents_ends_with_the_batch_that_reaches_its_edge(yaml):
    record = run(yaml, *STAGED, "duration=400sp", "log_every=50")
    assert (record["batches"], record["sequences"]) == (13 + 28 + 10, 13 * 16 + 28 * 4 + 10 * 8)


def test_schedules_go_on_across_edges_and_so_does_what_is_continued(yaml, tmp_path):
    """The learning rate by batches, the masking rate with it though it goes by documents; microbatches of each stage's own."""
    two = ("stages.share=[0.5,0.5]", "stages.sequence_length=[12,48]", "stages.batch_size=[16,8]")
    words = (*two, "schedule.shape=wsd", "schedule.decay=0.5", "data.mask_rate=0.6", "data.mask_rate_end=0.1",
             "data.mask_rate_falls=with_lr", "checkpoint_every=10ba", "microbatch_size=8")  # fmt: skip
    seen: dict[str, list[list[str]]] = {"unbroken": [], "broken": []}

    def train_it(name: str, *more: str, fail_at: int = 0) -> None:
        def see(found: list[str]) -> None:
            if fail_at and len(seen[name]) == fail_at:
                raise RuntimeError("asked to fail")
            seen[name].append(found)

        with telling(see):
            run(yaml, *words, f"out={tmp_path / name}", *more)

    train_it("unbroken")
    assert [len(found) for found in seen["unbroken"]] == [8] * 30
    with pytest.raises(RuntimeError, match="asked to fail"):
        train_it("broken", fail_at=21)
    del seen["broken"][20:]  # the checkpoint is that of the edge
    train_it("broken", "autoresume=true")
    assert seen["broken"] == seen["unbroken"]
    a, b = (read_record(tmp_path / name) for name in ("broken", "unbroken"))
    for key in ("tokens", "sequences", "batches"):
        assert a[key] == b[key]
    for key in ("loss", "lr"):
        assert [row[key] for row in a["loss_curve"]] == [row[key] for row in b["loss_curve"]]
    # Composer asks for the next batch's rate before it counts the one that is over.
    expected = [5e-4 * warmup_stable_decay(batch / 20, 0.06, 0.5, 0.02) for batch in (0, *range(19))]
    assert [row["lr"] for row in b["loss_curve"]] == pytest.approx(expected)


def test_the_masking_rate_is_that_of_the_batch_s_place_in_the_run(yaml):
    rates = ("data.mask_rate=0.6", "data.mask_rate_end=0.1", "data.mask_rate_falls=with_lr", "schedule.final_lr=0")
    config = of(yaml, *rates)
    found = make_plan(config)
    schedule = train.data_spec(found, train=True, batch_size=8).dataloader.dataset.stages[1].collate.schedule
    assert progress_by_documents(config) == ([0, 160 / 216, 184 / 216, 1], [0, 0.5, 0.8, 1])
    for seen, batch in ((0, 0), (80, 5), (160, 10), (172, 13), (184, 16), (200, 18), (216, 20)):
        assert schedule(seen) == pytest.approx(0.6 - 0.5 * fallen(batch / 20, config.schedule))


def test_each_stage_has_the_microbatch_that_fits_it(yaml, monkeypatch):
    monkeypatch.setattr(memory, "CPU_TOKENS", 96)
    found = make_plan(of(yaml))
    assert [one.size for one in found.microbatches] == [8, 4, 2] and found.microbatch.size == 2
    spec = train.data_spec(found, train=True, batch_size=8)
    batch = next(iter(spec.dataloader))
    pieces = spec.split_batch(batch, found.microbatch.size)
    assert [len(piece["counts"]) for piece in pieces] == [8, 8] and "stage" not in pieces[0]


def test_a_plan_is_the_mean_batch_and_the_memory_of_the_largest_stage(yaml):
    config, speed = of(yaml, "model.vocab_size=1024"), plan.Speed(1e9, "test")
    each = [plan.step_of(stage.config, speed, 1) for stage in stages.each(config)]
    for unit, batches in (("ba", (0.5, 0.3, 0.2)), ("sp", (0.5 / 16, 0.3 / 4, 0.2 / 8))):
        step = plan.step_of(config, speed, 1, unit)
        for name in ("tokens", "seconds", "sequences"):
            mean = sum(n * getattr(one, name) for n, one in zip(batches, each, strict=True)) / sum(batches)
            assert getattr(step, name) == pytest.approx(mean)
        assert step.evaluation == each[-1].evaluation
    row = prices.Row("core", ("cpu",), 3600.0, "test")
    found = plan.forecast(config, row, 1, 2.0, speed, [])
    assert found.batches == int(2.0 / plan.step_of(config, speed, 1).seconds)
    alone = [plan.forecast(stage.config, row, 1, 2.0, speed, []) for stage in stages.each(config)]
    assert found.need.of(found.microbatch) == max(one.need.of(one.microbatch) for one in alone)
    assert "batches of 16, 4, 8 sequences" in "\n".join(plan.tell(found))


def test_a_bill_is_that_of_the_batches_that_are_made(yaml, tmp_path):
    words = " ".join([str(yaml), *STAGED])
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        f"out: {tmp_path / 'sweep'}\npairs: yamls/pairs/demo.yaml data=none\nmodels: ['{words}']\nbudgets: [20ba]\n"
    )
    config = load(SweepConfig, str(sweep), ["seeds=[17]"])
    where = bill.Where(prices.Row("core", ("cpu",), 1.0, "test"), 1)
    (item,) = bill.bill_of("sweep", config, where, plan.Speed(1e9, "test"), []).items
    assert item.batches == 20 and item.tokens == pytest.approx(10 * 16 * 12 + 6 * 4 * 24 + 4 * 8 * 48)
    assert "no trunk is shared; use sweep" in refused(trunk, config)
