"""Replaced token detection: what is drawn, where gradients go, what is counted, and whole runs."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F

from recipe import train
from recipe.config import TrainConfig, load
from recipe.data.batch import IGNORED_LABEL
from recipe.finetune.kinds import CLASSIFICATION
from recipe.model.encoder import Backends
from recipe.model.flops import training_flops
from recipe.objectives import objective_of
from recipe.objectives.detector import labels_of
from recipe.objectives.objective import Counts
from recipe.objectives.replaced_tokens import draw
from recipe.training.checkpoint import find_checkpoint
from recipe.training.preflight import Plan, make_plan
from tests.mistakes import refused
from tests.tiny.configs import train_yaml
from tests.tiny.models import mean_of_pieces
from tests.tiny.runs import losses, run, stop_at


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    words = ("objective=replaced_tokens", "data.sequence_length=32", "model.num_hidden_layers=2", "duration=6ba")
    words = (*words, "log_every=1", "schedule.warmup=0", "model.hidden_size=48", "model.num_attention_heads=3")
    words = (*words, "model.hidden_dropout_prob=0", "checkpoint_every=2ba", "autoresume=true", "optimizer.lr=1e-2")
    return train_yaml(tmp_path, tiny_dataset, *words, "data.mask_rate=0.2", "device=cpu", "precision=fp32")


def planned(yaml, *words: str) -> Plan:
    return make_plan(load(TrainConfig, str(yaml), words))


def first_batch(plan: Plan, training: bool = True) -> dict:
    return next(iter(train.data_spec(plan, train=training, batch_size=8).dataloader))


def test_draws_have_the_distribution_and_never_what_has_no_chance():
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0, -1.0]])
    chances = (torch.arange(10_000) + 0.5) / 10_000
    drawn = draw(logits.expand(len(chances), -1), chances)
    shares = torch.bincount(drawn, minlength=5) / len(chances)
    torch.testing.assert_close(shares, logits.softmax(-1)[0], rtol=0, atol=2e-4)
    assert int(shares[2]) == 0 and int(draw(logits, torch.ones(1))) == 4


@pytest.mark.parametrize("batching", ["sequences", "tokens", "padded"])
def test_the_sum_is_that_of_both_and_what_is_drawn_again_is_original(yaml, batching, monkeypatch):
    plan = planned(yaml, f"data.batching={batching}", *(["model.name=hf_bert"] if batching == "padded" else []))
    batch, model = first_batch(plan), train.build_model(plan)
    ids, chosen, was = batch["input_ids"].flatten(), batch["masked_indices"], labels_of(batch)
    real = was != IGNORED_LABEL
    assert (ids[chosen[real]] == plan.info.vocabulary.mask_id).all(), "all that is chosen is masked"
    shown, logits = [], []
    detect, with_word = model.discriminator.detect, model.generator.with_word
    monkeypatch.setattr(model.discriminator, "detect", lambda b, ids: (shown.append(ids.flatten()), detect(b, ids))[1])
    monkeypatch.setattr(model.generator, "with_word", lambda *a: (logits.append(with_word(*a)), logits[-1])[1])
    found = model(batch)
    expected = F.cross_entropy(logits[0][real], was[real])
    torch.testing.assert_close(found["generator_loss"], expected)
    torch.testing.assert_close(found["loss"], expected + 50 * 0.2 * found["detection_loss"])
    elsewhere = torch.ones(len(shown[0]), dtype=bool)
    elsewhere[chosen[real]] = False
    assert torch.equal(shown[0][elsewhere], ids[elsewhere])
    assert len(shown[0][chosen[real]].unique()) > 10, "drawn, not the likeliest"
    sure = torch.zeros_like(logits[0])
    sure[torch.arange(len(was)), was.clamp(min=0)] = 50.0  # the originals, all of them
    monkeypatch.setattr(model.generator, "with_word", lambda *a: sure)
    with torch.no_grad():
        model.discriminator.out.weight.zero_()
        model.discriminator.out.bias.fill_(-20.0)
        same = model(batch)
    assert torch.equal(shown[1][chosen[real]], was[real])
    assert float(same["found"]) == 1.0 and float(same["detection_loss"]) < 1e-6


@pytest.mark.parametrize(
    ("name", "width"), [("mosaic_bert", 16), ("mosaic_bert", 48), ("modern", 16), ("hf_bert", 16), ("hf_bert", 48)]
)
def test_detection_s_gradient_reaches_the_shared_embeddings_and_nothing_else_of_the_generator(yaml, name, width):
    plan = planned(yaml, f"generator.hidden_size={width}", f"model.name={name}")
    batch, model = first_batch(plan), train.build_model(plan)
    found = model(batch)
    found["detection_loss"].backward(retain_graph=True)
    word = f"discriminator.{plan.architecture.vocabulary_rows[0]}"
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) is name.startswith("discriminator."), name
    before = model.get_parameter(word).grad.clone()
    found["generator_loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} is never used, which DDP would wait for"
    assert not torch.equal(model.get_parameter(word).grad, before)
    assert (model.projection is None) is (width == 48)
    rows = {p.dim(): name for name, p in model.named_parameters() if p.shape[0] == plan.encoder.vocab_size}
    bias = plan.architecture.vocabulary_rows[-2 if plan.architecture.name == "hf_bert" else -1]
    assert rows == {2: word, 1: f"generator.network.{bias}"}, "one matrix for both"


@pytest.mark.parametrize("name", ["mosaic_bert", "hf_bert"])
def test_evaluation_is_the_same_whatever_the_microbatch_and_draws_no_random_number(yaml, name):
    plan = planned(yaml, f"model.name={name}")
    batch, model = first_batch(plan, training=False), train.build_model(plan).eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        whole = {name: float(value) for name, value in model(batch).items()}
    assert mean_of_pieces(model, batch, 3) == pytest.approx(whole, rel=1e-4)
    assert torch.equal(torch.get_rng_state(), state)


def test_operations_are_those_of_both_networks(yaml):
    plan = planned(yaml, "generator.num_hidden_layers=1")
    sizes, counts = dataclasses.asdict(plan.encoder), Counts(tokens=100, squared_lengths=1000, masked=30)
    small = {**sizes, "hidden_size": 16, "intermediate_size": 21, "num_hidden_layers": 1}
    expected = training_flops(small, True, 100, 1000, 30) + 3 * 2 * 48 * 16 * 100
    expected += training_flops(sizes, True, 100, 1000, 0) + 3 * 2 * 48 * 49 * 100
    assert plan.objective.flops(plan.architecture, sizes, counts) == expected
    model = train.build_model(plan)
    assert model.generator.network.config.num_attention_heads == 1
    assert len(model.generator.network.encoder.layers) == 1 and len(model.discriminator.encoder.layers) == 2


def test_a_run_resumes_to_the_last_digit_and_its_discriminator_is_what_is_tuned(yaml, tmp_path):
    words = ("data.batching=tokens", "duration=48sp", "eval_every=2ba")
    with pytest.raises(KeyboardInterrupt):
        run(yaml, *words, callbacks=[stop_at(3)])
    resumed, whole = run(yaml, *words), run(yaml, *words, f"out={tmp_path / 'whole'}")
    assert len(resumed["resumed"]) == 1 and losses(resumed) == losses(whole) and resumed["eval"] == whole["eval"]
    assert losses(whole)[-1] < losses(whole)[0] - 1
    found = find_checkpoint(str(tmp_path / "run"))
    last = max((tmp_path / "run/checkpoints").glob("ba*-rank0.pt"), key=lambda file: file.stat().st_mtime)
    word = "encoder.embeddings.word.weight"
    assert torch.equal(find_checkpoint(str(last)).pretrained().weights[word], found.pretrained().weights[word])
    tuned = found.fine_tuned(CLASSIFICATION, 2, Backends())
    assert torch.equal(tuned.encoder.embeddings.word.weight, found.pretrained().weights[word])
    kept = sum(tensor.numel() for tensor in found.pretrained().weights.values())
    assert whole["parameters"] > 1.05 * kept
    assert objective_of(json.loads((tmp_path / "run/run.json").read_text())["config"]).name == "replaced_tokens"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("generator.hidden_size=64", "wider than the encoder, 48; give at most that"),
        ("generator.hidden_size=20", "give a multiple of the encoder's head size, 16"),
        ("model.narrow_layers=2", "judges every token, so no layer can leave any out"),
    ],
)
def test_a_mistake_is_one_line(yaml, word, said):
    assert said in refused(planned, yaml, word)
