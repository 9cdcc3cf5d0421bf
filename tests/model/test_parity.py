"""The model against a stored run of the reference MosaicBERT: loss, logits, hidden states and every gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import kernels
from kernels.backends import Resolved
from recipe.convert import from_mosaicml_name, load_mosaicml
from recipe.model.encoder import Backends

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared/data/golden/mosaic_bert_4heads.safetensors"
TOLERANCE = dict(rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("the reference model's stored run is not here (shared/data/golden)")
    with safe_open(GOLDEN, framework="pt") as file:
        names = list(file.keys())  # the file object is no mapping
        return {name: file.get_tensor(name) for name in names}


def model_on(attention: str):
    return load_mosaicml(GOLDEN, Backends(attention=Resolved(attention, "test")))


def check_gradients(model, golden):
    named = dict(model.named_parameters())
    expected = {n.removeprefix("grad."): t for n, t in golden.items() if n.startswith("grad.")}
    assert {from_mosaicml_name(n) for n in expected} - {None} == set(named)
    for name, gradient in expected.items():
        torch.testing.assert_close(named[from_mosaicml_name(name)].grad, gradient, **TOLERANCE)


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_padded_call(golden, attention):
    model = model_on(attention)
    inputs = {n.removeprefix("input."): t for n, t in golden.items() if n.startswith("input.")}
    output = model.padded(**inputs)
    output.loss.backward()
    torch.testing.assert_close(output.loss, golden["output.loss"], **TOLERANCE)
    torch.testing.assert_close(output.logits, golden["output.logits"], **TOLERANCE)
    torch.testing.assert_close(output.last_hidden_state, golden["output.last_hidden_state"], **TOLERANCE)
    check_gradients(model, golden)


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_stream(golden, attention):
    model = model_on(attention)
    mask = golden["input.attention_mask"]
    ids, indices, cu_seqlens, max_seqlen = kernels.unpad(golden["input.input_ids"], mask)
    types = golden["input.token_type_ids"].flatten()[indices]
    labels = golden["input.labels"].flatten()[indices]
    masked = (labels != -100).nonzero().flatten()
    batch = {"input_ids": ids, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen, "token_type_ids": types}
    hidden = model.encoder(batch, masked)
    loss, _ = kernels.masked_cross_entropy(
        model.head(hidden), model.encoder.embeddings.word.weight, model.head.bias, labels[masked]
    )
    loss.backward()
    torch.testing.assert_close(loss, golden["output.loss"], **TOLERANCE)
    torch.testing.assert_close(hidden, golden["output.last_hidden_state"].flatten(0, 1)[indices][masked], **TOLERANCE)
    check_gradients(model, golden)
