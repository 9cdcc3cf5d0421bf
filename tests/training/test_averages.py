"""The mean of the last weights: what it is, that training does not notice it, and that everything else gets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recipe.config import TrainConfig, load
from recipe.train import build_model
from recipe.training.averages import AVERAGES
from recipe.training.callbacks import AfterBatch
from recipe.training.checkpoint import find_checkpoint
from recipe.training.preflight import make_plan
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run, stop_at


def means(shape: str, values: np.ndarray, steps: int) -> list[float | None]:
    """After each value."""
    found, mean = [], None
    for batch, value in enumerate(values, 1):
        share = AVERAGES[shape].newest(batch, steps, len(values))
        mean = None if not share else value if mean is None else mean + share * (value - mean)
        found.append(mean)
    return found


def test_a_window_is_the_plain_mean_of_the_last_ones():
    values = np.random.default_rng(3).normal(size=20)
    found = means("window", values, 7)
    assert found[:13] == [None] * 13
    assert found[13:] == pytest.approx([values[13:end].mean() for end in range(14, 21)])
    assert means("window", values, 20)[-1] == pytest.approx(values.mean())


def test_an_exponential_mean_has_nothing_of_what_was_before_the_first_batch():
    values = np.random.default_rng(3).normal(size=20)
    found = means("ema", values, 5)
    assert found[:5] == pytest.approx([values[:end].mean() for end in range(1, 6)])
    expected = found[4]
    for value, mean in zip(values[5:], found[5:], strict=True):
        expected = 0.8 * expected + 0.2 * value
        assert mean == pytest.approx(expected)


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    words = ("data.sequence_length=32", "model.num_hidden_layers=1", "duration=6ba", "log_every=1", "eval_every=2ba")
    words = (*words, "checkpoint_every=1ba", "keep_checkpoints=9", "optimizer.lr=3e-2", "schedule.warmup=0")
    return train_yaml(tmp_path, tiny_dataset, *words, "device=cpu", "precision=fp32", "autoresume=true")


def seen_by(weights: list) -> AfterBatch:
    """Collects the weights after each batch."""
    return AfterBatch(
        lambda state: weights.append({n: p.detach().double() for n, p in state.model.model.named_parameters()})
    )


@pytest.mark.parametrize("model, shape", [("mosaic_bert", "window"), ("hf_bert", "ema")])
def test_training_does_not_notice_and_all_else_gets_the_mean(yaml, tmp_path, model, shape):
    weights, out = [], tmp_path / "run"
    words = (f"model.name={model}", f"average.shape={shape}", "average.steps=3")
    averaged = run(yaml, *words, callbacks=[seen_by(weights)])
    plain = run(yaml, f"model.name={model}", f"out={tmp_path / 'plain'}")
    assert losses(averaged) == losses(plain) and averaged["tokens"] == plain["tokens"]
    assert averaged["averaged_batches"] == (3 if shape == "window" else 6) and "averaged_batches" not in plain
    last = find_checkpoint(str(out)).pretrained().weights
    of_checkpoint = find_checkpoint(str(out / "checkpoints/ba6-rank0.pt")).pretrained().weights
    for name in weights[0]:
        expected = means(shape, np.stack([one[name].numpy() for one in weights]), 3)[-1]
        np.testing.assert_allclose(last[name], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(last[name], of_checkpoint[name])
    moved = max(float((last[name].double() - weights[-1][name]).abs().max()) for name in weights[0])
    assert moved > 1e-3, "the last weights are others"
    evaluated = [row["loss"] for row in averaged["eval_curve"]]
    others = [row["loss"] for row in plain["eval_curve"]]
    assert len(evaluated) == 3 and evaluated[-1] != others[-1]
    assert (evaluated[0] == others[0]) is (shape == "window"), "before the window there is no mean"
    still = run(yaml, f"init_from={out}", "duration=1ba", "schedule.warmup=1", f"out={tmp_path / 'still'}")
    assert still["eval"]["loss"] == evaluated[-1], "what was evaluated is what was saved"


@pytest.mark.parametrize("shape", AVERAGES)
def test_a_run_resumes_to_the_last_digit(yaml, tmp_path, shape):
    words = (f"average.shape={shape}", "average.steps=4")
    with pytest.raises(KeyboardInterrupt):
        run(yaml, *words, callbacks=[stop_at(5)])
    resumed, whole = run(yaml, *words), run(yaml, *words, f"out={tmp_path / 'whole'}")
    assert len(resumed["resumed"]) == 1 and losses(resumed) == losses(whole)
    assert resumed["eval_curve"] == whole["eval_curve"]
    assert resumed["averaged_batches"] == whole["averaged_batches"]
    encoders = [load_file(tmp_path / out / "encoder/model.safetensors") for out in ("run", "whole")]
    assert all(torch.equal(encoders[0][name], encoders[1][name]) for name in encoders[0])


def test_the_memory_plan_knows_the_copy(yaml):
    plans = [make_plan(load(TrainConfig, str(yaml), [f"average.steps={steps}"])) for steps in (0, 2)]
    parameters = sum(p.numel() for p in build_model(plans[0]).parameters())
    assert plans[1].microbatch.need - plans[0].microbatch.need == pytest.approx(4 * parameters)
