"""Runs whose word embeddings begin at counts of the text."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recipe.config import Data
from recipe.data.cache import open_dataset
from recipe.data.stream import open_documents
from recipe.model.architectures import architecture
from recipe.training import initial_words
from recipe.training.checkpoint import find_checkpoint
from tests.mistakes import refused
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run, stop_at

QUICK = ("data.sequence_length=32", "model.num_hidden_layers=1", "log_every=1", "schedule.warmup=1", "device=cpu")


@pytest.fixture
def yaml(tmp_path, tiny_dataset):
    return train_yaml(tmp_path, tiny_dataset, *QUICK, "precision=fp32", "duration=4ba", "autoresume=true")


@pytest.fixture
def frequencies(tiny_dataset) -> np.ndarray:
    data = Data(path=str(tiny_dataset))
    info = open_dataset(data, ("train",))
    documents = open_documents(data, info, "train")
    texts = np.concatenate(documents.read(np.arange(len(documents)), 30))
    return np.bincount(texts, minlength=info.vocabulary.size)


@pytest.mark.parametrize("model", ["mosaic_bert", "modern", "hf_bert"])
def test_the_first_loss_is_that_of_the_words_frequencies(yaml, tmp_path, model, frequencies):
    """Warm-up is the whole run, so its first step has a learning rate of 0."""
    words = (f"model.name={model}", "duration=1ba")
    for begin in initial_words.INITIAL_WORDS:
        run(yaml, *words, f"model.initial_words={begin}", f"out={tmp_path / begin}")
    shares = frequencies / frequencies.sum()
    entropy = -(shares[shares > 0] * np.log(shares[shares > 0])).sum()
    weights = {
        begin: find_checkpoint(str(tmp_path / begin), "").pretrained().weights for begin in initial_words.INITIAL_WORDS
    }
    word, *_, bias = architecture(model).vocabulary_rows
    assert not weights["random"][bias].any()
    for begin in ("frequencies", "counts"):
        assert losses(tmp_path / begin)[0] == pytest.approx(entropy, rel=0.1)
        expected = torch.from_numpy(np.log((frequencies + 1) / (frequencies.sum() + len(frequencies)))).float()
        torch.testing.assert_close(weights[begin][bias][: len(frequencies)], expected)
    assert losses(tmp_path / "random")[0] > 1.15 * entropy
    assert torch.equal(weights["frequencies"][word], weights["random"][word])
    seen = torch.from_numpy(frequencies > 0)
    same = (weights["counts"][word] == weights["random"][word]).all(dim=1)[: len(seen)]
    assert torch.equal(~same, seen), "rows of tokens that were never seen stay as they were"
    others = set(weights["random"]) - set(architecture(model).vocabulary_rows)
    assert others and all(torch.equal(weights["counts"][name], weights["random"][name]) for name in others)


def test_a_run_resumes_to_the_last_digit_and_its_bill_has_the_counting(yaml, tmp_path):
    words = ("model.initial_words=counts", "checkpoint_every=1ba", "optimizer.lr=1e-2", "schedule.warmup=0")
    whole = run(yaml, *words, f"out={tmp_path / 'whole'}")
    with pytest.raises(KeyboardInterrupt):
        run(yaml, *words, callbacks=[stop_at(2)])
    resumed = run(yaml, *words)
    assert losses(resumed) == losses(whole)
    begun = resumed["initial_words"]
    assert begun["tokens"] == whole["initial_words"]["tokens"] > 1000
    cost = resumed["cost"]
    assert 0 < begun["seconds"] < resumed["loss_curve"][0]["seconds"] <= cost["seconds"]
    assert cost["device_hours"] == pytest.approx(cost["seconds"] * resumed["device"]["count"] / 3600)
    kept = json.loads((tmp_path / "run/run.json").read_text())["initial_words"]
    assert kept == begun
    one, other = (load_file(tmp_path / name / "encoder/model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_detector_begins_at_counts_and_has_no_bias(yaml, tmp_path):
    for begin in ("random", "counts"):
        words = ("objective=replaced_tokens", "duration=1ba", f"model.initial_words={begin}")
        run(yaml, *words, f"out={tmp_path / begin}")
    one, other = (load_file(tmp_path / begin / "encoder/model.safetensors") for begin in ("random", "counts"))
    moved = [name for name in one if not torch.equal(one[name], other[name])]
    assert moved == ["encoder.embeddings.word.weight"]


def test_an_encoder_that_is_gone_on_from_has_words_of_its_own(yaml, tmp_path):
    run(yaml, "duration=1ba", f"out={tmp_path / 'first'}")
    said = refused(run, yaml, "model.initial_words=counts", f"init_from={tmp_path / 'first'}")
    assert said.startswith("model.initial_words=counts: the word embeddings of init_from would be lost")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["replaced_tokens", "swapped_tokens"])
def test_where_there_is_no_decoder_frequencies_begin_nothing(yaml, tmp_path, objective):
    said = refused(run, yaml, "model.initial_words=frequencies", f"objective={objective}")
    assert said.startswith(
        f"model.initial_words=frequencies begins the decoder's bias, and objective={objective} has no decoder"
    )
    assert not (tmp_path / "run").exists()
