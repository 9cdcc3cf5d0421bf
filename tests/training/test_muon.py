"""Muon against torch's own on the same matrices, against float64, and in whole runs."""

from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from torch import nn

from recipe.config import Optimizer, TrainConfig, load
from recipe.model.architectures import ARCHITECTURES, architecture
from recipe.model.config import EncoderConfig
from recipe.objectives.masked_lm import MASKED_LM
from recipe.training import memory, muon
from recipe.training.memory import traced
from recipe.training.optimizers import OPTIMIZERS, build_optimizer
from recipe.training.preflight import make_plan
from tests.mistakes import refused
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run, stop_at
from tests.toys.bag_of_words import BAG_OF_WORDS

SETTINGS = Optimizer(name="muon", lr=1e-2, weight_decay=0.02, momentum=0.9)
STEPS = 6


class Layered(nn.Module):
    """Tall, wide and square matrices, two of a shape, between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.word = nn.Embedding(50, 24)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 72), nn.LayerNorm(72), nn.Linear(72, 24, bias=False), nn.Linear(24, 24))
            for _ in range(2)
        )
        self.head = nn.Linear(24, 50)
        for parameter in self.parameters():
            nn.init.normal_(parameter)


def gradients_of(model: nn.Module, step: int) -> None:
    """Of every parameter, the same for a name and step in any model."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def stepped(model: nn.Module, *optimizers: torch.optim.Optimizer) -> nn.Module:
    for step in range(STEPS):
        for group in (group for one in optimizers for group in one.param_groups):
            group["lr"] = SETTINGS.lr / (1 + step)
        gradients_of(model, step)
        for optimizer in optimizers:
            optimizer.step()
    return model


def of_torch() -> nn.Module:
    model = Layered()
    matrices = muon.hidden_matrices(model)
    return stepped(
        model,
        torch.optim.Muon(
            matrices,
            lr=SETTINGS.lr,
            weight_decay=SETTINGS.weight_decay / SETTINGS.lr,
            momentum=SETTINGS.momentum,
            adjust_lr_fn="match_rms_adamw",
        ),
    )


def moves(model: nn.Module) -> list[torch.Tensor]:
    start = muon.hidden_matrices(Layered())
    return [(a - b).detach() for a, b in zip(muon.hidden_matrices(model), start, strict=True)]


def worst(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest relative difference between the ways that two models' matrices went, matrix by matrix."""
    pairs = zip(moves(ours), moves(theirs), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 0.02)], ids=["fp32", "bf16"])
def test_matrices_go_where_torch_s_muon_takes_them(dtype, tolerance):
    ours = Layered()
    stepped(ours, build_optimizer(ours, SETTINGS, dtype))
    if dtype == torch.float32:  # torch's iterates in bfloat16 always
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.float):
            theirs = of_torch()
    else:
        theirs = of_torch()
    assert worst(ours, theirs) < tolerance
    assert len(moves(ours)) == 6 and min(float(one.norm()) for one in moves(ours)) > 0.05


def test_the_rest_goes_where_adamw_takes_it():
    ours, theirs = Layered(), Layered()
    stepped(ours, build_optimizer(ours, SETTINGS, torch.float32))
    stepped(
        theirs, build_optimizer(theirs, Optimizer(lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay), torch.float32)
    )
    matrices = {id(p) for p in muon.hidden_matrices(ours)}
    rest = [(name, p) for name, p in ours.named_parameters() if id(p) not in matrices]
    names = [name for name, _ in rest]
    assert {"word.weight", "head.weight", "layers.0.0.bias", "layers.1.1.weight"} <= set(names) and len(names) == 11
    for name, parameter in rest:
        assert torch.equal(parameter, theirs.get_parameter(name)), name


@pytest.mark.parametrize("shape", [(7, 5), (16, 48), (33, 33)])
def test_a_step_is_the_post_s_formula_in_float64(shape):
    model = nn.ModuleList([nn.Linear(shape[1], shape[0], bias=False)])
    start = model[0].weight.detach().double()
    optimizer = build_optimizer(model, SETTINGS, torch.float32)
    gradients_of(model, 3)
    optimizer.step()
    gradient = model[0].weight.grad.double()
    momentum = (1 - SETTINGS.momentum) * gradient
    x = (1 - SETTINGS.momentum) * gradient + SETTINGS.momentum * momentum
    x = x / x.norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    expected = (1 - SETTINGS.weight_decay) * start - SETTINGS.lr * 0.2 * math.sqrt(max(shape)) * x
    torch.testing.assert_close(model[0].weight.double(), expected, rtol=1e-5, atol=1e-6)
    assert float(torch.linalg.matrix_norm(x, 2)) < 1.3


def test_every_parameter_decays_and_batches_of_matrices_have_no_part_in_it(monkeypatch):
    model, start = Layered(), Layered()
    optimizer = build_optimizer(model, Optimizer(name="muon", lr=1e-3, weight_decay=0.1), torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), 0.9 * start.get_parameter(name).detach())
    whole, pieces = Layered(), Layered()
    stepped(whole, build_optimizer(whole, SETTINGS, torch.float32))
    monkeypatch.setattr(muon, "MOST", 1)
    stepped(pieces, build_optimizer(pieces, SETTINGS, torch.float32))
    assert worst(pieces, whole) < 1e-6


SIZES = EncoderConfig(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)


@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_the_memory_plan_knows_its_state(kind):
    row = architecture(kind)
    model = row.masked_lm(SIZES, 16, traced("sdpa", "reference"))
    optimizer = build_optimizer(model, SETTINGS, torch.float32)
    gradients_of(model, 0)
    optimizer.step()
    held = sum(4 * value.numel() for state in optimizer.state.values() for value in state.values() if value.dim())
    predicted = OPTIMIZERS["muon"].state_bytes(memory.outline(MASKED_LM, row, SIZES, 16))
    assert predicted * sum(p.numel() for p in model.parameters()) == pytest.approx(held)
    matrices, shapes = muon.hidden_matrices(model), [(192, 64), (64, 64), (192, 64), (64, 96)]
    if kind == "hf_bert":
        shapes = [(64, 64)] * 4 + [(96, 64), (64, 96)]
    assert [tuple(one.shape) for one in matrices] == 2 * shapes


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    words = ("optimizer.name=muon", "duration=8ba", "log_every=1", "checkpoint_every=2ba", "autoresume=true")
    return train_yaml(tmp_path, tiny_dataset, *words, "optimizer.lr=2e-2", "device=cpu", "precision=fp32")


def test_a_run_learns_and_resumes_to_the_last_digit(yaml, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(yaml, callbacks=[stop_at(5)])
    resumed, whole = run(yaml), run(yaml, f"out={tmp_path / 'whole'}")
    assert len(resumed["resumed"]) == 1 and losses(resumed) == losses(whole)
    assert resumed["eval"] == whole["eval"] and losses(whole)[-1] < losses(whole)[0] - 0.2


def test_a_model_without_matrices_is_refused_in_one_line(yaml, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "bag_of_words", lambda: BAG_OF_WORDS)
    said = refused(make_plan, load(TrainConfig, str(yaml), ["model.name=bag_of_words"]))
    assert "no layers with matrices" in said and said.endswith("set optimizer.name=adamw")
