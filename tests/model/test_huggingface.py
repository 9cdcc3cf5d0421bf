"""The baseline is Hugging Face's BERT, no more and no less."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from recipe.model.hf_bert import HFBertForMaskedLM
from recipe.model.huggingface import HFFineTuned, read_family
from tests.tiny.models import odd_sizes

CONFIG = odd_sizes(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.2, initializer_range=0.07)


@pytest.fixture
def model() -> HFBertForMaskedLM:
    torch.manual_seed(0)
    return HFBertForMaskedLM(CONFIG, max_length=16).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(16) < torch.tensor([16, 3, 9])[:, None]).long()
    ids = torch.randint(320, mask.shape, generator=generator)
    labels = torch.full_like(ids, -100)
    labels[0, 4], labels[0, 15], labels[2, 1] = 7, 0, 319
    masked = (labels.flatten() != -100).nonzero()[:, 0]
    rows = {"input_ids": ids, "attention_mask": mask, "labels": labels, "masked_indices": masked}
    return {**rows, "document_ids": torch.arange(3)}


def test_sizes(model):
    config = model.bert.config
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(config, name) == getattr(CONFIG, name)
    assert config.max_position_embeddings == 16 and config.layer_norm_eps == CONFIG.layer_norm_eps
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.1, 0.2)
    assert isinstance(model.bert, BertForMaskedLM)
    assert model.bert.bert.encoder.layer[0].output.dense.weight.std().item() == pytest.approx(0.07, rel=0.1)


def test_loss_and_accuracy(model, batch):
    loss, accuracy = model(batch).values()
    logits = model.bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    labelled = batch["labels"] != -100
    torch.testing.assert_close(loss, F.cross_entropy(logits[labelled], batch["labels"][labelled]))
    assert accuracy.item() == (logits.argmax(-1) == batch["labels"])[labelled].float().mean().item()
    guesses = torch.where(labelled, logits.argmax(-1), -100)
    assert model({**batch, "labels": guesses})["masked_accuracy"].item() == 1.0
    assert loss.dtype == torch.float32


def test_loss_is_float32_under_autocast(model, batch):
    full, _ = model(batch).values()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = model(batch).values()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(full.item(), rel=2**-6)


def test_padding_does_not_change_the_loss(model, batch):
    other = {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 9)}
    torch.testing.assert_close(model(other)["loss"], model(batch)["loss"])


def test_no_label_costs_nothing(model, batch):
    """A microbatch of short documents may hold none; a NaN there would stand in the run's loss curve."""
    none = {"labels": torch.full_like(batch["labels"], -100), "masked_indices": batch["masked_indices"][:0]}
    loss, accuracy = model({**batch, **none}).values()
    assert loss.item() == accuracy.item() == 0


def test_save_and_load(model, batch, tmp_path):
    model.bert.save_pretrained(tmp_path / "encoder")
    assert {"config.json", "model.safetensors"} <= {file.name for file in (tmp_path / "encoder").iterdir()}
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "encoder", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(loaded.eval()(**inputs).logits, model.bert(**inputs).logits)
    assert read_family(tmp_path / "encoder").longest == 16


def test_classification_starts_from_the_saved_encoder(model, batch, tmp_path):
    model.bert.save_pretrained(tmp_path)
    classifier = HFFineTuned(tmp_path, "AutoModelForSequenceClassification", 3).eval()
    encoder = dict(classifier.model.bert.named_parameters())
    for name, parameter in model.bert.bert.named_parameters():
        assert torch.equal(parameter, encoder[name]), name
    types = (torch.arange(16) > 4).long().expand(3, 16)
    logits = classifier({**batch, "token_type_ids": types})
    assert logits.shape == (3, 3)
    other = classifier({**batch, "token_type_ids": torch.zeros_like(types)})
    assert not torch.allclose(logits, other)  # token types are passed on
    with pytest.raises(RuntimeError):
        long = {**batch, "token_type_ids": types}
        classifier({name: value.repeat(1, 2) for name, value in long.items() if value.dim() == 2})
