"""The recipes in yamls/pretrain: each says what is known of its speed and memory, and fits the GPU that it is meant for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from recipe.config import TrainConfig, load, to_dict
from recipe.model.architectures import architecture
from recipe.objectives import objective_of
from recipe.plan import sizes_of
from recipe.training import stages
from recipe.training.checks import parse_time
from recipe.training.memory import GIB, MARGIN, choose_microbatch, training_need
from recipe.training.preflight import resolve_batching

FOLDER = Path(__file__).resolve().parents[1] / "yamls" / "pretrain"
GPU_FILES = sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem not in ("small", "continue"))
PAPER = {"lr": 5e-4, "betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 1e-5}


def heading(name: str) -> str:
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))


def test_the_recipes_that_are_promised_are_there():
    base = "mosaic-bert-base"
    assert {
        base,
        f"{base}-512",
        f"{base}-1024",
        "mosaic-bert-large",
        "modern-base",
        "bert-base",
        "budget-20-usd",
        "replaced-tokens-base",
        "swapped-tokens-base",
        "swapped-lm-base",
        "muon-base",
        "narrow-base",
        "stages-base-512",
    } <= set(GPU_FILES)


@pytest.mark.parametrize("name", GPU_FILES)
def test_each_is_the_paper_s_recipe_with_what_its_name_says(name):
    config = load(TrainConfig, str(FOLDER / f"{name}.yaml"))
    parse_time("duration", config.duration)
    batching = resolve_batching(config.data.batching, architecture(config.model.name))
    assert config.microbatch_size == 0 and batching in ("sequences", "padded")
    for stage in stages.each(config):
        assert stage.config.batch_size * stage.config.data.sequence_length == 4096 * 128
    optimizer = PAPER | ({"lr": 2e-4} if "large" in name else {})
    assert {key: getattr(config.optimizer, key) for key in optimizer} == optimizer
    assert config.data.mask_rate == (0.15 if name in ("bert-base", "replaced-tokens-base") else 0.30)
    length = re.search(r"-(\d+)$", name)
    assert config.data.sequence_length == (int(length[1]) if length and "usd" not in name else 128)
    said = heading(name)
    assert f"--model yamls/pretrain/{name}.yaml" in said
    measured = re.search(r"benchmarks/results/\S+\.json", said)
    assert "Tokens/s and hours: not measured" in said or (FOLDER.parents[1] / measured[0]).is_file()


@pytest.mark.parametrize("name", ["mosaic-bert-base-512", "bert-base"])
def test_the_automatic_microbatch_fits_80_gb_and_is_the_one_stated(name):
    config = load(TrainConfig, str(FOLDER / f"{name}.yaml"))
    data = config.data
    kind = architecture(config.model.name)
    need = training_need(
        objective_of(to_dict(config)), kind, 8, sizes_of(config), data.sequence_length, data.mask_rate, torch.bfloat16
    )
    chosen = choose_microbatch(need, config.batch_size, 0, 80 * GIB, "gpu", "an 80 GB GPU")
    assert chosen.need <= (1 - MARGIN["gpu"]) * 80 * GIB
    gib, stated = re.search(r"(\d+) GiB with microbatches of (\d+)", heading(name)).groups()
    assert chosen.size == pytest.approx(int(stated), rel=0.3) and chosen.need / GIB == pytest.approx(int(gib), rel=0.15)
