"""Swapped tokens: what a batch shows, what is asked of every token, and whole runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recipe import train
from recipe.config import TrainConfig, load
from recipe.data.batch import IGNORED_LABEL
from recipe.finetune.kinds import CLASSIFICATION
from recipe.model.encoder import Backends
from recipe.objectives import OBJECTIVES
from recipe.objectives.detector import labels_of, no_detector
from recipe.objectives.objective import Counts
from recipe.training.checkpoint import find_checkpoint
from recipe.training.preflight import Plan, make_plan
from tests.mistakes import refused
from tests.tiny.configs import train_yaml
from tests.tiny.models import mean_of_pieces
from tests.tiny.runs import losses, run, stop_at
from tests.toys.bag_of_words import BAG_OF_WORDS


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    words = ("data.sequence_length=32", "model.num_hidden_layers=1", "duration=6ba", "log_every=1", "schedule.warmup=0")
    words = (*words, "model.hidden_dropout_prob=0", "checkpoint_every=2ba", "autoresume=true", "optimizer.lr=1e-2")
    return train_yaml(tmp_path, tiny_dataset, *words, "device=cpu", "precision=fp32")


def planned(yaml, *words: str) -> Plan:
    return make_plan(load(TrainConfig, str(yaml), words))


def first_batch(plan: Plan) -> dict:
    return next(iter(train.data_spec(plan, train=True, batch_size=8).dataloader))


@pytest.mark.parametrize("name", ["swapped_lm", "swapped_tokens"])
def test_what_is_chosen_becomes_a_random_token_and_nothing_else_changes(yaml, name):
    usual, swapped = planned(yaml), planned(yaml, f"objective={name}")
    a, b = first_batch(usual), first_batch(swapped)
    assert torch.equal(a["masked_indices"], b["masked_indices"]) and torch.equal(a["labels"], b["labels"])
    chosen = b["masked_indices"]
    shown, mask = b["input_ids"][chosen], swapped.info.vocabulary.mask_id
    assert (a["input_ids"][chosen] == mask).any() and not (shown == mask).any()
    assert not np.isin(shown.numpy(), swapped.info.vocabulary.special_ids).any()
    assert float((shown == b["labels"]).float().mean()) < 0.1 and len(shown.unique()) > len(shown) / 3
    rest = torch.ones(len(b["input_ids"]), dtype=bool)
    rest[chosen] = False
    assert torch.equal(a["input_ids"][rest], b["input_ids"][rest])


def one_by_one(model, batch: dict, shown: torch.Tensor) -> tuple[float, float]:
    """Loss and share found of the chosen tokens, token by token in float64."""
    was = dict(zip(batch["masked_indices"].tolist(), labels_of(batch).tolist(), strict=True))
    loss, right, chosen = 0.0, 0, 0
    with torch.no_grad():
        logits = model.logits({**batch, "input_ids": shown}).double()
    ids = batch["input_ids"].flatten()
    for place, (token, logit) in enumerate(zip(shown.flatten().tolist(), logits, strict=True)):
        labelled = was.get(place, IGNORED_LABEL) != IGNORED_LABEL
        replaced = labelled and token != was[place]
        if ids[place] == model.config.pad_token_id:
            continue
        loss += float(F.softplus(-logit if replaced else logit))
        chosen += labelled
        right += labelled and (float(logit) > 0) == replaced
    return loss / chosen, right / chosen


@pytest.mark.parametrize("batching", ["sequences", "tokens", "padded"])
def test_every_real_token_is_judged_and_a_swapped_original_is_original(yaml, batching):
    words = ["model.name=hf_bert"] if batching == "padded" else []
    plan = planned(yaml, "objective=swapped_tokens", f"data.batching={batching}", *words)
    batch, model = first_batch(plan), train.build_model(plan).eval()
    with torch.no_grad():
        model.out.weight *= 30  # judgements of either kind
        found = model(batch)
    assert (float(found["loss"]), float(found["found"])) == pytest.approx(one_by_one(model, batch, batch["input_ids"]))
    assert 0 < float(found["found"]) < 1 and float(found["loss"]) > 1
    same = {**batch, "input_ids": batch["input_ids"].clone()}
    labelled = labels_of(batch) != IGNORED_LABEL
    same["input_ids"].view(-1)[batch["masked_indices"][labelled]] = labels_of(batch)[labelled]
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.fill_(-20.0)  # all original
        said, swapped = model(same), model(batch)
    assert float(said["loss"]) < 1e-6 and float(said["found"]) == 1.0
    assert float(swapped["found"]) == pytest.approx(0.0, abs=0.05)


def test_microbatches_change_nothing(yaml):
    plan = planned(yaml, "objective=swapped_tokens")
    batch, model = first_batch(plan), train.build_model(plan).eval()
    with torch.no_grad():
        whole = {name: float(value) for name, value in model(batch).items()}
    assert mean_of_pieces(model, batch, 3) == pytest.approx(whole, rel=1e-5)


def test_a_run_learns_resumes_and_is_fine_tuned(yaml, tmp_path):
    words = ("objective=swapped_tokens", "data.batching=tokens", "duration=48sp", "average.steps=0")
    with pytest.raises(KeyboardInterrupt):
        run(yaml, *words, callbacks=[stop_at(3)])
    resumed, whole = run(yaml, *words), run(yaml, *words, f"out={tmp_path / 'whole'}")
    assert len(resumed["resumed"]) == 1 and losses(resumed) == losses(whole) and resumed["eval"] == whole["eval"]
    assert losses(whole)[-1] < losses(whole)[0] - 0.3 and set(whole["eval"]) >= {"loss", "found"}
    found = find_checkpoint(str(tmp_path / "run"))
    tuned = found.fine_tuned(CLASSIFICATION, 2, Backends())
    word = found.pretrained().weights["encoder.embeddings.word.weight"]
    assert torch.equal(tuned.encoder.embeddings.word.weight, word)
    assert "without a head for masked language modelling" in refused(found.masked_lm, Backends())


def test_operations_are_the_layers_and_a_head_on_every_token(yaml):
    plan = planned(yaml, "objective=swapped_tokens")
    sizes, counts = dataclasses.asdict(plan.encoder), Counts(tokens=100, squared_lengths=1000, masked=30)
    layers = OBJECTIVES["masked_lm"]({}).flops(plan.architecture, sizes, dataclasses.replace(counts, masked=0))
    width = plan.encoder.hidden_size
    assert plan.objective.flops(plan.architecture, sizes, counts) == layers + 3 * 100 * 2 * width * (width + 1)


def test_rows_that_give_no_state_of_every_token_cannot_detect(yaml):
    said = no_detector("swapped_tokens", BAG_OF_WORDS, planned(yaml).encoder)
    assert said.startswith("objective=swapped_tokens: ") and "bag_of_words does not give" in said
    assert run(yaml, "objective=swapped_lm", "model.name=hf_bert", "duration=1ba")["batches"] == 1
