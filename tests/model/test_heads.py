"""What sits on the encoder: both ways of calling it say the same, and losses are the textbook's."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from recipe.finetune.kinds import CLASSIFICATION, REGRESSION
from recipe.model.heads import MosaicBertForMaskedLM
from tests.tiny.models import odd_sizes, with_head

CONFIG = odd_sizes(initializer_range=0.2)  # so that outputs differ visibly
LENGTHS = torch.tensor([7, 1, 12, 3])
CLOSE = dict(rtol=1e-9, atol=1e-9)


@pytest.fixture
def padded() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(12) < LENGTHS[:, None]).long()
    ids = torch.randint(320, mask.shape, generator=generator)
    types = torch.randint(2, mask.shape, generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


def as_stream(padded: dict[str, torch.Tensor]) -> dict:
    real = padded["attention_mask"].bool()
    bounds = F.pad(LENGTHS.cumsum(0), (1, 0)).int()
    streams = {name: padded[name][real] for name in ("input_ids", "token_type_ids")}
    return {**streams, "cu_seqlens": bounds, "max_seqlen": 12}


@pytest.fixture
def masked_lm() -> MosaicBertForMaskedLM:
    torch.manual_seed(1)
    return MosaicBertForMaskedLM(CONFIG).double().eval()


def test_masked_lm_is_the_padded_calls(masked_lm, padded):
    real = padded["attention_mask"].bool()
    labels = torch.full_like(padded["input_ids"], -100)
    labels[0, 2], labels[2, 11], labels[2, 0], labels[1, 0] = 5, 6, 319, 0
    del padded["token_type_ids"]
    output = masked_lm.padded(**padded, labels=labels)
    stream = as_stream({**padded, "token_type_ids": torch.zeros_like(labels)})
    masked = (labels[real] != -100).nonzero().flatten()
    batch = {**stream, "masked_indices": masked, "labels": labels[real][masked]}
    loss, accuracy = masked_lm(batch).values()
    assert loss.item() == pytest.approx(output.loss.item(), rel=1e-6)
    right = output.logits.argmax(-1) == labels
    assert accuracy.item() == pytest.approx(right[labels != -100].double().mean().item())
    # with the model's own guesses for labels, accuracy is 1
    guesses = output.logits.argmax(-1)[real][masked]
    assert masked_lm({**batch, "labels": guesses})["masked_accuracy"].item() == 1.0


def test_no_masked_token_costs_nothing(masked_lm, padded):
    empty = torch.empty(0, dtype=torch.long)
    loss, accuracy = masked_lm({**as_stream(padded), "masked_indices": empty, "labels": empty}).values()
    assert loss.item() == accuracy.item() == 0
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in masked_lm.parameters())


def test_padding_does_not_change_logits(masked_lm, padded):
    """Neither what stands there, nor how much of it, nor on which side."""
    real = padded["attention_mask"].bool()
    expected = masked_lm.padded(**padded).logits
    other = {**padded, "input_ids": torch.where(real, padded["input_ids"], 17)}
    torch.testing.assert_close(masked_lm.padded(**other).logits[real], expected[real], **CLOSE)
    wider = {name: F.pad(value, (0, 5)) for name, value in padded.items()}
    torch.testing.assert_close(masked_lm.padded(**wider).logits[:, :12][real], expected[real], **CLOSE)
    flipped = {name: F.pad(value, (3, 0)) for name, value in padded.items()}
    torch.testing.assert_close(masked_lm.padded(**flipped).logits[:, 3:][real], expected[real], **CLOSE)
    assert (masked_lm.padded(**padded).last_hidden_state[~real] == 0).all()


def test_optional_arguments(masked_lm, padded):
    ids = padded["input_ids"]
    alone = masked_lm.padded(ids)
    assert alone.loss is None and alone.logits.shape == (4, 12, 320)
    ones, zeros = torch.ones_like(ids), torch.zeros_like(ids)
    torch.testing.assert_close(masked_lm.padded(ids, ones, zeros).logits, alone.logits, **CLOSE)
    assert not torch.allclose(masked_lm.padded(ids, ones, ones).logits, alone.logits)
    torch.testing.assert_close(masked_lm.padded(ids, ones.bool()).logits, alone.logits, **CLOSE)


def test_the_decoder_is_the_embedding(masked_lm, padded):
    output = masked_lm.padded(**padded)
    hidden = masked_lm.head(output.last_hidden_state)
    torch.testing.assert_close(output.logits, hidden @ masked_lm.encoder.embeddings.word.weight.T + masked_lm.head.bias)
    output.logits.sum().backward()
    unused = torch.ones(320, dtype=torch.bool)
    unused[padded["input_ids"].unique()] = False
    assert masked_lm.encoder.embeddings.word.weight.grad[unused].abs().sum() > 0


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_classification_reads_the_first_tokens(padded, classes):
    torch.manual_seed(2)
    model = with_head(CONFIG, classes).double().eval()
    stream = as_stream(padded)
    logits = model(stream)
    assert logits.shape == (4, classes)
    first = model.encoder(stream)[F.pad(LENGTHS.cumsum(0), (1, 0))[:-1]]
    torch.testing.assert_close(model.head.classifier(torch.tanh(model.head.pooler(first))), logits, **CLOSE)
    del stream["token_type_ids"]
    assert not torch.allclose(model(stream), logits)


def test_dropout_before_the_classifier(padded):
    torch.manual_seed(0)
    model, stream = with_head(CONFIG, 2), as_stream(padded)
    model.head.dropout.p = 0.5
    model.train()
    assert not torch.allclose(model(stream), model(stream))
    model.eval()
    assert torch.equal(model(stream), model(stream))


def test_classification_loss():
    logits, labels = torch.tensor([[2.0, 0.0, -1.0], [0.0, 0.0, 0.0]]), torch.tensor([0, 2])
    by_hand = (-math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-1))) + math.log(3)) / 2
    assert CLASSIFICATION.loss(logits, labels).item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_regression_loss(dtype):
    logits, labels = torch.tensor([[2.0], [0.5], [-1.0]]), torch.tensor([0, 1, 5], dtype=dtype)
    loss = REGRESSION.loss(logits, labels)
    assert loss.item() == pytest.approx((4 + 0.25 + 36) / 3, rel=1e-6) and loss.dtype == torch.float32


@pytest.mark.parametrize("kind", [CLASSIFICATION, REGRESSION], ids=lambda kind: kind.name)
def test_losses_are_float32_from_bf16(kind):
    logits = torch.randn(5, kind.outputs(["a", "b", "c"])).bfloat16()
    labels = torch.zeros(5, dtype=torch.int64)
    loss = kind.loss(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, kind.loss(logits.float(), labels))
