"""What a budget buys, against a run that spends it."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from recipe import plan, records, train
from recipe.config import TrainConfig, load, to_dict
from recipe.cost import prices
from recipe.cost.prices import Row
from recipe.training import cluster
from recipe.training.memory import GIB, LiveBytes, Need
from tests.tiny.configs import PRICES, train_yaml
from tests.tiny.records import record_run
from tests.tiny.runs import run

ROOT = Path(__file__).resolve().parents[1]
CORE = Row("cpu-core", ("cpu",), 3600.0, "test")  # a dollar a core-second


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    words = ("data.eval_documents=8", "model.vocab_size=1024", "duration=30ba", "log_every=10")
    return train_yaml(tmp_path, tiny_dataset, *words)


def test_a_plan_from_a_measured_run_is_what_the_next_run_does(yaml, tmp_path):
    measured = run(yaml)
    speed = plan.measured_speed(measured, "measured")
    cores = measured["device"]["count"]
    budget = 1.5 * measured["cost"]["seconds"] * cores
    found = plan.forecast(load(TrainConfig, str(yaml)), CORE, cores, budget, speed, [measured])
    assert found.batches == pytest.approx(45, abs=1) and found.tokens == pytest.approx(
        1.5 * measured["tokens"], rel=0.05
    )
    assert found.seconds * cores <= budget * (1 + 1e-9) and found.expected["GLUE"].startswith("no data")
    file = tmp_path / "planned.yaml"
    file.write_text(plan.as_yaml(found))
    done = run(file, f"out={tmp_path / 'planned'}")
    assert done["batches"] == found.batches and done["tokens"] == pytest.approx(found.tokens, rel=0.05)
    # Two short runs on cores that other processes use as well: wall-clock time is no better known than this.
    assert 1 / 3 < done["cost"]["seconds"] / found.seconds < 3


# Of quiet machines; shorter ones are as good as their noise.
RECORDED = [
    (place, record)
    for place in ("demo", "books", "books-trunk")
    for file in sorted((ROOT / "benchmarks" / "results" / place).rglob(records.FILE_NAME))
    if (record := records.read_record(file))["kind"] == "pretrain" and record["cost"]["seconds"] >= 5
]


def planned_seconds(record: dict, speed: plan.Speed) -> float:
    """What a plan says of the batches that a recorded run did, from its config alone."""
    known = {key: value for key, value in record["config"].items() if key in to_dict(TrainConfig())}
    for group in ("data", "model", "optimizer", "schedule", "cost"):
        known[group] = type(getattr(TrainConfig(), group))(**known[group])
    config = TrainConfig(**known)
    config.data.path, config.model.vocab_size = "nowhere", record["encoder"]["vocab_size"]
    device = record["device"]
    row = Row("recorded", (device["kind"],), device["usd_per_hour"], "test")
    found = plan.forecast(config, row, device["count"], 1.0, speed, [])
    return found.seconds / found.batches * record["batches"]


def test_what_was_planned_is_what_was_recorded(monkeypatch):
    """Every recorded run, planned from the longest other one of its model on its machine: seconds within 15 %."""
    monkeypatch.setattr(plan, "need_of_batch", lambda *_, **__: Need(0, 1.0))  # seconds alone are looked at
    checked = 0
    for place, record in RECORDED:
        machine = [record[key] for key in ("model", "encoder", "device")]
        others = [other for _, other in RECORDED if other is not record and other["name"] != record["name"]
                  and [other[key] for key in ("model", "encoder", "device")] == machine]  # fmt: skip
        assert others, record["name"]
        longest = max(others, key=lambda other: other["tokens"])
        seconds = planned_seconds(record, plan.measured_speed(longest, "record"))
        assert seconds == pytest.approx(record["cost"]["seconds"], rel=0.15), (place, record["name"])
        checked += 1
    assert checked >= 12


class RealBytes(LiveBytes):
    """Counts what has storage: not what the run's own pre-flight traces."""

    def _add(self, storage):
        if storage.device.type != "meta":
            super()._add(storage)


@pytest.mark.parametrize(
    "words",
    [["microbatch_size=512"], ["microbatch_size=512", "model.name=hf_bert"], ["microbatch_size=128"]],
    ids=["whole", "baseline", "pieces"],
)
def test_the_memory_that_is_planned_is_what_a_run_has_alive(yaml, words):
    """Everything that a real run makes, its evaluation and its trainer's own tensors included, within 15 %."""
    sizes = ["model.hidden_size=256", "model.intermediate_size=512", "batch_size=512", "duration=2ba"]
    sizes += ["data.sequence_length=12"]  # shorter than nearly all documents: the plan counts full sequences
    config = load(TrainConfig, str(yaml), [*words, *sizes])
    with RealBytes() as live:
        done = train.train(config)
    assert done["tokens"] / done["sequences"] > 0.9 * config.data.sequence_length
    speed = plan.measured_speed(done, "measured")
    found = plan.forecast(config, CORE, done["device"]["count"], 1e6, speed, [])
    assert found.need.of(found.microbatch) == pytest.approx(live.peak, rel=0.15)


def test_train_refuses_what_does_not_fit_before_anything_is_written(yaml, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("recipe.training.memory.capacity_here", lambda *_: 3 * 2**20)
    from recipe.config import run_main

    assert run_main(TrainConfig, train.main, [str(yaml), "batch_size=512", "microbatch_size=512"]) == 2
    error = capsys.readouterr().err
    assert "microbatch_size=512 needs" in error and "set microbatch_size=" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def command(*words: str) -> int:
    return plan.main(["--prices", str(PRICES), *words])


@pytest.fixture
def small(tmp_path):
    """Base's keys on a model that is traced in a blink."""
    file = tmp_path / "small.yaml"
    file.write_text("out: runs/x\ndata: {path: nowhere}\nbatch_size: 256\nmicrobatch_size: 64\nmodel: {hidden_size: 64, "
                    "num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 128, vocab_size: 1000}\n")  # fmt: skip
    return str(file)


def test_the_arithmetic_of_a_stated_mfu(small, capsys, tmp_path):
    out = tmp_path / "plan.yaml"
    words = ["--gpu", "H200", "--budget-usd", "0.01", "--mfu", "0.5", "--model", small, "--count", "2"]
    assert command(*words, "--out", str(out)) == 0
    printed = capsys.readouterr().out
    config = load(TrainConfig, str(out))
    price = prices.row_named("h200", str(PRICES)).usd_per_hour
    hidden, inner, vocabulary, length, tokens = 64, 128, 1024, 128, 256 * 128
    forward = 2 * (8 * hidden**2 + 6 * hidden * inner + 4 * hidden * length) * tokens
    forward += 0.3 * tokens * (2 * hidden**2 + 2 * hidden * vocabulary)
    seconds = 0.01 / (2 * price) * 3600
    batches = int(seconds * 2 * 0.5 * 989e12 / (3 * forward))
    assert config.duration == f"{batches}ba" and f"{batches * tokens:,} tokens, {batches:,} batches of 256" in printed
    assert (config.batch_size, config.microbatch_size, config.model.hidden_size) == (256, 64, 64)
    assert "MFU 50%, stated" in printed and "of 141 GiB" in printed and "GLUE    no data" in printed
    assert command(*words, "--out", str(out)) == 2 and "exists" in capsys.readouterr().err


def scored(tmp_path, name, usd, score, seed, tasks=("CoLA",), price_row="h200"):
    model = dataclasses.asdict(TrainConfig().model) | {"hidden_size": 64, "num_hidden_layers": 2,
                                                       "num_attention_heads": 2, "intermediate_size": 128}  # fmt: skip
    record_run(
        tmp_path / "runs", name, "mosaic_bert", usd / 4, dict.fromkeys(tasks, score), sequences=int(usd * 1e4),
        config={"seed": seed, "duration": f"{usd}", "model": model, "data": {"mask_rate": 0.3}},
        device=records.device("gpu", "NVIDIA H200", 1, prices.Price(4.0, "my prices", price_row)),
        encoder={**model, "vocab_size": 1024},
    )  # fmt: skip


def test_the_recorded_frontier_is_asked_with_its_interval(small, tmp_path, capsys):
    for seed, (low, high) in enumerate(((70.0, 80.0), (72.0, 82.0), (74.0, 84.0))):
        scored(tmp_path, f"a-s{seed}", 1.0, low, seed)
        scored(tmp_path, f"b-s{seed}", 100.0, high, seed)
    words = ["--gpu", "h200", "--model", small, "--runs", str(tmp_path / "runs"), "--budget-usd"]
    assert command(*words, "10") == 0
    printed = capsys.readouterr().out
    # Student's t with 2 degrees, 4.303, times 2 / sqrt(3)
    assert re.search(r"7[67]\.\d\d ± 4\.97 \(95 %\), mean of 1 of 8 GLUE tasks, between 2 recorded points", printed)
    assert "measured on NVIDIA H200 by run `b-s0`" in printed
    assert command(*words, "1000") == 0
    assert re.search(r"no data \(recorded from \S+ to \S+ tokens\)", capsys.readouterr().out)
    scored(tmp_path, "other", 2.0, 90.0, 9, tasks=("RTE",))  # of another protocol: the most that agree are asked
    assert command(*words, "10") == 0
    assert "between 2 recorded points" in capsys.readouterr().out


def test_a_run_is_found_by_the_row_that_it_was_billed_by(small, tmp_path, capsys):
    """Not by how that row's source is worded, and not where the user's own price was taken."""
    words = ["--gpu", "h200", "--model", small, "--runs", str(tmp_path / "runs"), "--budget-usd", "10"]
    scored(tmp_path, "own", 9.0, 70.0, 1, price_row=None)
    assert command(*words) == 0 and "no run on h200 is recorded" in capsys.readouterr().out
    scored(tmp_path, "billed", 3.0, 70.0, 2)
    assert command(*words) == 0 and "measured on NVIDIA H200 by run `billed`" in capsys.readouterr().out
    old = records.read_record(tmp_path / "runs" / "own")
    del old["device"]["price_row"], old["trunk"], old["dataset"]
    old |= {"format": 1, "name": "old", "device": {**old["device"], "price_source": "elsewhere/prices.yaml: h200"}}
    (tmp_path / "runs" / "old").mkdir()
    (tmp_path / "runs" / "old" / "run.json").write_text(json.dumps(old))
    assert command(*words) == 0 and "measured on NVIDIA H200 by run `old`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--gpu", "h2000", "--budget-usd", "1"], "no price for a GPU `h2000`; known are a100-80gb"),
        (["--gpu", "h200", "--budget-usd", "0"], "more than 0 dollars"),
        (["--gpu", "h200", "--budget-usd", "1", "--count", "0"], "at least 1 device"),
        (["--gpu", "h200", "--budget-usd", "1e-9"], "one batch takes"),
        (["--gpu", "h200", "--budget-usd", "1", "--mfu", "2"], "a share between 0 and 1"),
        (["--gpu", "cpu-core", "--budget-usd", "1", "--mfu", "0.3"], "give --record RUN"),
        (["--gpu", "h200", "--budget-usd", "1", "--model", "huge"], "huge: no such file"),
        (["--gpu", "h200", "--budget-usd", "1", "--record", "no/run"], "cannot read it"),
    ],
)
def test_mistakes_are_one_line(small, capsys, words, says):
    assert command(*([] if "--model" in words else ["--model", small]), *words) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_microbatch_that_does_not_fit_is_refused(small, tmp_path, capsys):
    table = tmp_path / "prices.yaml"
    table.write_text("- {name: toy, match: [H200], usd_per_hour: 1, source: x, memory_gib: 0.002}\n")
    words = ["--gpu", "toy", "--budget-usd", "1", "--mfu", "0.1", "--model", small, "--prices", str(table)]
    assert plan.main(words) == 2
    assert "microbatch_size=64 needs" in capsys.readouterr().err
    assert prices.row_named("toy", str(table)).memory_gib * GIB < 3e6


def test_a_yaml_holds_what_differs_and_nothing_else():
    assert plan.differing({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 0, "d": 3}}) == {"b": {"c": 2}}
    assert json.loads(json.dumps(plan.MODELS)).keys() == {"base", "large", "small"}
    for file in plan.MODELS.values():
        # not the vocabulary of shards that somebody has made
        config = load(TrainConfig, str(ROOT / file), ["data.path=nowhere"])
        assert plan.sizes_of(config).vocab_size == 30528


def test_several_machines_pay_for_their_links(small, tmp_path, capsys):
    parts = tmp_path / "parts.json"
    measured = {
        "planned_documents_per_s": 1e6,
        "read_tokens_per_s": 1e6,
        "checkpoint_bytes_per_s": 1e9,
        "shard_bytes_per_token": 2.0,
    }
    parts.write_text(json.dumps({"parts": measured}))
    words = [
        "--gpu",
        "H200",
        "--budget-usd",
        "1",
        "--mfu",
        "0.3",
        "--model",
        small,
        "--parts",
        str(parts),
        "--count",
        "2",
    ]
    assert command(*words, "--nodes", "4", "--network-gbit", "10") == 0
    printed = capsys.readouterr().out
    assert "on 8 GPUs" in printed and "nodes   4 of 2: 10 Gbit/s between them, 200 GB/s within, both stated" in printed
    batches = int(re.search(r"([\d,]+) batches", printed)[1].replace(",", ""))
    step = float(re.search(r"step    ([\d.e+-]+) ms", printed)[1]) / 1000
    price = prices.row_named("h200", str(PRICES)).usd_per_hour
    assert batches == pytest.approx(3600 / price / 8 / step, rel=0.01)
    assert command(*words[:-1], "8") == 0
    alone = int(re.search(r"([\d,]+) batches", capsys.readouterr().out)[1].replace(",", ""))
    assert batches < alone
    for more, said in (
        (["--nodes", "0"], "give at least 1 node"),
        (["--nodes", "3"], "batch_size=256 is not divisible by the 6 ranks"),
        (["--nodes", "2", "--parts", small], "not what `python -m benchmarks.scale DATASET` writes"),
        (["--nodes", "2", "--parts", "nowhere.json"], "nowhere.json: No such file or directory"),
    ):
        assert command(*words, *more) == 2
        assert said in capsys.readouterr().err
    assert command("--gpu", "cpu-core", *words[2:], "--nodes", "2") == 2
    assert "--nodes is for machines with GPUs" in capsys.readouterr().err


def test_the_page_on_scale_has_what_is_calculated_from_the_recorded_parts():
    page = (ROOT / "docs/scale.md").read_text("utf-8")
    config, row = load(TrainConfig, plan.MODELS["base"]), prices.row_named("h100", str(PRICES))
    speed, lines = plan.stated_speed(row, 0.28, "stated"), []
    for gpus, gbit in ((1, None), (8, None), (64, 100), (64, 3200), (512, 100), (512, 3200)):
        step = plan.step_of(config, speed, gpus)
        machines = cluster.cluster_of(max(gpus // 8, 1), gbit or 100, 200, cluster.PARTS)
        found = cluster.scaled_step(config, plan.sizes_of(config), step.tokens, step.seconds, gpus, machines)
        ms = [1000 * seconds for seconds in (found.step, found.compute, found.exposed)]
        times = " | ".join(f"{one:,.1f}" for one in ms)
        lines.append(
            f"| {gpus} | {gbit or ''} | {times} | {1000 * found.loader:.2f} | {found.efficiency:.0%} | "
            f"{found.shards_per_s / 1e6:.1f} |"
        )
    assert "\n".join(lines) in page
    held = json.loads((ROOT / cluster.PARTS).read_text())["two_ranks"]
    said = f"calculated {held['calculated_s']:.3f} s a step, measured {held['measured_s']:.3f} s"
    assert said in " ".join(page.split()) and f"{held['calculated_of_measured']:.2f} of it" in page
