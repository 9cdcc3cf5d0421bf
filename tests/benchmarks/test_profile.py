"""The profile of a real run adds up and knows the parts of either model; the trainer runs beside a loop that does the same."""

from __future__ import annotations

import json

import pytest

import kernels
from benchmarks import measurement, profile, roofline, trainer
from benchmarks.profile_parts import PARTS
from recipe.model.flops import training_flops
from recipe.training import ceilings
from tests.tiny.configs import train_yaml


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    words = ("model.hidden_size=64", "model.intermediate_size=128", "batch_size=16")
    return str(train_yaml(tmp_path, tiny_dataset, *words))


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_a_profile_adds_up_and_finds_every_part(yaml, tmp_path, model, capsys, monkeypatch):
    monkeypatch.setitem(measurement.COPY_BYTES, "cpu", 1 << 20)
    monkeypatch.setitem(ceilings.SIDES, "cpu", (256,))
    before = kernels.glu
    trace = tmp_path / "trace.json"
    words = [
        yaml,
        f"model.name={model}",
        "--steps",
        "3",
        "--out",
        str(tmp_path / "results" / "p"),
        "--trace",
        str(trace),
    ]
    assert profile.main(words) == 0
    record = json.loads((tmp_path / "results" / "p.json").read_text())
    times = {part["part"]: part["ms"] for part in record["parts"]}
    assert tuple(times) == PARTS
    assert sum(times.values()) == pytest.approx(record["step"]["profiled_ms"], rel=1e-6)
    there = set(PARTS) - {"communication", "casts"}
    assert {part for part in there if times[part] <= 0} == set()
    assert times["other"] < 0.35 * record["step"]["profiled_ms"]
    floors = {part["part"]: part["floor_ms"] for part in record["parts"]}
    assert all(floors[part] > 0 for part in ("matmuls", "attention", "norms", "GLU", "head", "embeddings", "optimizer"))
    assert 16 * 3 < record["step"]["tokens"] <= 16 * 48 and record["step"]["sequences"] == 16
    assert record["provenance"]["packages"]["torch"] and record["ceilings"]["gb_per_s"] > 0
    assert (tmp_path / "results" / "p.png").read_bytes()[1:4] == b"PNG"
    assert json.loads(trace.read_text())["traceEvents"]
    said = capsys.readouterr().out
    assert "| optimizer " in said and "both measured here" in said
    assert kernels.glu is before and not (tmp_path / "run").exists()


def test_the_floors_count_every_product_of_the_model():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 1024, "num_hidden_layers": 3}
    counts = roofline.Counts(tokens=500, squared_lengths=20_000, predicted=150)
    for gated in (True, False):
        work = roofline.floors(sizes, gated, 10_000, counts, 2)
        assert sum(flops for flops, _ in work.values()) == training_flops(sizes, gated, 500, 20_000, 150)
    ceilings = measurement.Ceilings(flops_per_s=1e9, bytes_per_s=1e6)
    assert roofline.floor_ms((2e9, 1e6), ceilings) == (2000.0, "matmul")
    assert roofline.floor_ms((1e9, 5e6), ceilings) == (5000.0, "memory")


def test_the_trainer_beside_a_bare_loop(yaml, tmp_path, capsys):
    out = tmp_path / "trainer.json"
    assert trainer.main([yaml, "model.hidden_dropout_prob=0", "--rounds", "2", "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    compared, grown = record["trainer"], record["growth"]
    assert len(compared["ratios"]) == 2 and all(ratio > 0 for ratio in compared["ratios"])
    assert [row["microbatch"] for row in record["microbatches"]] == [16, 8, 4, 2] * 2
    assert grown["layers"] == [2, 4, 8] and grown["kib_ratio"] == pytest.approx(1, abs=0.05), (
        "memory is linear in tokens"
    )
    assert f"{compared['trainer_of_bare']['p50']:.1%} of its speed" in capsys.readouterr().out


def test_mistakes_are_one_line(yaml, capsys):
    for words, says in (
        (["nowhere.yaml"], "no such file"),
        ([yaml, "batch=3"], "unknown key"),
        ([yaml, "--steps", "1"], "2 or"),
    ):
        assert profile.main(words) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
