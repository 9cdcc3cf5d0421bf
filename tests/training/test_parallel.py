"""FSDP beside DDP, in two processes: the same curve, checkpoints for each other, whole encoders, and what it cannot train."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipe import train
from recipe.config import TrainConfig, load
from recipe.model.architectures import architecture
from recipe.model.config import EncoderConfig
from recipe.objectives.masked_lm import MASKED_LM
from recipe.records import read_record
from recipe.training.callbacks import AfterBatch
from recipe.training.memory import outline
from recipe.training.parallel import PARALLEL
from tests.mistakes import refused
from tests.processes import on_two_ranks
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run, stop_at

ROOT = Path(__file__).resolve().parents[2]
# A run's folder: the ways of its first two batches and of the rest, and what else it is trained with.
RUNS = {
    "ddp": ("ddp", "ddp", ()),
    "fsdp": ("fsdp", "fsdp", ()),
    "to-ddp": ("fsdp", "ddp", ()),
    "to-fsdp": ("ddp", "fsdp", ()),
    "narrow-ddp": ("ddp", "ddp", ("model.narrow_layers=2",)),
    "narrow-fsdp": ("fsdp", "fsdp", ("model.narrow_layers=2",)),
    "bert-ddp": ("ddp", "ddp", ("model.name=hf_bert",)),
    "bert-fsdp": ("fsdp", "fsdp", ("model.name=hf_bert", "microbatch_size=2")),
}


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    return train_yaml(
        tmp_path, tiny_dataset, "data.sequence_length=32", "duration=4ba", "log_every=1", "checkpoint_every=2ba", "device=cpu",
        "precision=fp32", "autoresume=true", "optimizer.lr=1e-2", "model.hidden_dropout_prob=0",
    )  # fmt: skip


def parts(state) -> dict[str, int]:
    """Parameters, and those that this rank holds."""
    whole = list(state.model.parameters())
    held = [p.to_local() if hasattr(p, "to_local") else p for p in whole]
    return {"all": sum(p.numel() for p in whole), "here": sum(p.numel() for p in held)}


def on_each_of_two_ranks(yaml: str) -> None:
    for name, (first, then, words) in RUNS.items():
        out, seen = Path(yaml).with_name(name), []
        config = [load(TrainConfig, yaml, [*words, f"out={out}", f"parallel={way}"]) for way in (first, then)]
        if first != then or name == "fsdp":
            with contextlib.suppress(KeyboardInterrupt):
                train.train(config[0], [stop_at(3)])
        train.train(config[1], [AfterBatch(lambda state, seen=seen: seen.append(parts(state)))])
        if os.environ["RANK"] == "0":
            out.with_suffix(".parts").write_text(json.dumps(seen[0]))


def whole_of(name: str) -> str:
    """The run of RUNS that another must be like."""
    kind, _, _ = name.rpartition("-")
    return f"{kind}-ddp" if kind in ("bert", "narrow") else "ddp"


@pytest.fixture
def trained(yaml, tmp_path):
    on_two_ranks("tests.training.test_parallel", str(yaml))
    return tmp_path


def test_shares_of_a_model_learn_what_whole_ones_learn(trained):
    curves = {name: losses(trained / name) for name in RUNS}
    for name, curve in curves.items():
        expected = curves[whole_of(name)]
        assert curve == pytest.approx(expected, rel=1e-5), name
        record = read_record(trained / name)
        assert record["status"] == "finished" and record["batches"] == 4
        held = json.loads((trained / name).with_suffix(".parts").read_text())
        share = 2 if RUNS[name][1] == "fsdp" else 1
        assert held["here"] == pytest.approx(held["all"] / share, rel=0.01), name
    assert len(read_record(trained / "to-ddp")["resumed"]) == len(read_record(trained / "fsdp")["resumed"]) == 1
    encoders = {name: load_file(trained / name / "encoder/model.safetensors") for name in RUNS}
    for name, encoder in encoders.items():
        whole = encoders[whole_of(name)]
        assert encoder.keys() == whole.keys()
        for key, weight in encoder.items():
            torch.testing.assert_close(weight, whole[key], rtol=1e-4, atol=1e-5)
    needs = [read_record(trained / name)["microbatch"]["need"] for name in ("ddp", "fsdp")]
    assert needs[1] < needs[0]


def test_the_memory_plan_counts_parts():
    sizes = EncoderConfig(hidden_size=64, num_attention_heads=2, intermediate_size=128, num_hidden_layers=10)
    model = outline(MASKED_LM, architecture("mosaic_bert"), sizes, 16)
    layer = sum(p.numel() for p in model.encoder.layers[0].parameters())
    parameters = sum(p.numel() for p in model.parameters())
    whole = parameters - 8 * layer  # beside them one layer works and the next is fetched
    expected = parameters * 16 / 4 + whole * 8
    on_one_device = parameters * 8  # weights and gradients
    beside = PARALLEL["fsdp"].bytes_beside(model, 8, 4)
    assert on_one_device + parameters * beside == pytest.approx(expected)
    assert beside < PARALLEL["ddp"].bytes_beside(model, 8, 4) - 8


def test_what_it_cannot_train_is_refused_in_one_line(yaml):
    assert (
        refused(run, yaml, "parallel=fsdp") == "parallel=fsdp: there is one rank, so nothing to share; set parallel=ddp"
    )
    problem = PARALLEL["fsdp"].problem
    for word, said in (
        ("average.steps=2", "the mean of weights (average.steps=2) needs them whole; set parallel=ddp"),
        ("optimizer.name=muon", "muon needs whole matrices, and ranks have parts; set parallel=ddp"),
        (
            "model.compile=true",
            "layers that are put together while they work are not compiled; set model.compile=false",
        ),
    ):
        assert problem(load(TrainConfig, str(yaml), [word]), 2) == f"parallel=fsdp: {said}"
    assert problem(load(TrainConfig, str(yaml), []), 2) is None


if __name__ == "__main__":
    on_each_of_two_ranks(sys.argv[1])
