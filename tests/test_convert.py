"""Weights in and out: a round trip is exact, and whatever is wrong with a file is one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recipe.convert import (
    from_mosaicml_name,
    load_encoder_weights,
    load_mosaicml,
    load_weights,
    read_encoder,
    save_encoder,
)
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Encoder
from recipe.model.heads import MosaicBertForMaskedLM
from tests.mistakes import refused

SIZES = dict(vocab_size=64, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=32)
LAYER = "bert.encoder.layer.{}."


def a_model(**sizes) -> MosaicBertForMaskedLM:
    torch.manual_seed(0)
    return MosaicBertForMaskedLM(EncoderConfig(**{**SIZES, **sizes})).eval()


def reference_weights() -> dict[str, torch.Tensor]:
    """Random weights under the reference implementation's names, written out from its description."""
    d, f, v = 24, 32, 64
    shapes = {
        "bert.embeddings.word_embeddings.weight": (v, d),
        "bert.embeddings.token_type_embeddings.weight": (2, d),
        "cls.predictions.transform.dense.weight": (d, d),
        "cls.predictions.transform.dense.bias": (d,),
        "cls.predictions.decoder.bias": (v,),
    }
    norms = ["bert.embeddings.LayerNorm.", "cls.predictions.transform.LayerNorm."]
    for layer in map(LAYER.format, range(2)):
        shapes |= {
            layer + "attention.self.Wqkv.weight": (3 * d, d),
            layer + "attention.self.Wqkv.bias": (3 * d,),
            layer + "attention.output.dense.weight": (d, d),
            layer + "attention.output.dense.bias": (d,),
            layer + "mlp.gated_layers.weight": (2 * f, d),
            layer + "mlp.wo.weight": (d, f),
            layer + "mlp.wo.bias": (d,),
        }
        norms += [layer + "attention.output.LayerNorm.", layer + "mlp.layernorm."]
    shapes |= {norm + part: (d,) for norm in norms for part in ("weight", "bias")}
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    weights["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
    return weights


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    def write_file(weights: dict[str, torch.Tensor], config: str | None = json.dumps(SIZES)) -> Path:
        save_file(weights, tmp_path / "model.safetensors", None if config is None else {"config": config})
        return tmp_path / "model.safetensors"

    return write_file


def test_every_reference_weight_finds_its_place(write):
    weights = reference_weights()
    model = load_mosaicml(write(weights))
    named = dict(model.named_parameters())
    assert {from_mosaicml_name(name) for name in weights} - {None} == set(named)
    for name, tensor in weights.items():
        if name != "cls.predictions.decoder.weight":
            assert torch.equal(named[from_mosaicml_name(name)], tensor), name
    assert not model.training and model.config.num_attention_heads == 3
    assert torch.isfinite(model.padded(torch.arange(12).reshape(2, 6)).logits).all()


@pytest.mark.parametrize("decoder", [True, False])
def test_prefix_and_other_entries(write, decoder):
    """`weight.` before the names, beside inputs and gradients; the decoder's copy may be left out."""
    weights = reference_weights()
    plain = load_mosaicml(write(weights)).state_dict()
    if not decoder:
        del weights["cls.predictions.decoder.weight"]
    prefixed = {f"weight.{name}": tensor for name, tensor in weights.items()}
    model = load_mosaicml(write({**prefixed, "input.input_ids": torch.arange(4), "grad.x": torch.ones(2)}))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in model.state_dict().items())


def test_half_precision_weights_become_the_models(write):
    weights = {name: tensor.bfloat16() for name, tensor in reference_weights().items()}
    model = load_mosaicml(write(weights))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    word = weights["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(model.encoder.embeddings.word.weight, word.float())


def test_dropout_is_what_the_file_states(write):
    assert load_mosaicml(write(reference_weights())).config.hidden_dropout_prob == 0
    stated = json.dumps({**SIZES, "hidden_dropout_prob": 0.1, "architectures": ["BertForMaskedLM"]})
    assert load_mosaicml(write(reference_weights(), stated)).config.hidden_dropout_prob == 0.1


def test_missing_unknown_and_misshapen_weights(write):
    weights = reference_weights()
    name = LAYER.format(1) + "mlp.wo.bias"
    without = {n: t for n, t in weights.items() if n != name}
    assert re.search(
        r"model\.safetensors: no weights for `encoder\.layers\.1\.feed_forward\.out\.bias` \(1 missing, 0 unknown\)",
        refused(load_mosaicml, write(without)),
    )
    pooled = {**weights, "bert.pooler.dense.weight": torch.ones(24, 24)}
    assert "the model has no `bert.pooler.dense.weight` (0 missing, 1 unknown)" in refused(load_mosaicml, write(pooled))
    deeper = {**weights, LAYER.format(7) + "mlp.wo.bias": torch.ones(24)}
    message = refused(load_mosaicml, write(deeper))
    assert "the model has no `encoder.layers.7.feed_forward.out.bias` (0 missing, 1 unknown)" in message
    odd = {**weights, name: torch.ones(25)}
    message = refused(load_mosaicml, write(odd))
    assert "`encoder.layers.1.feed_forward.out.bias` is (25,); the model has (24,)" in message
    fewer_layers = json.dumps({**SIZES, "num_hidden_layers": 1})
    assert "11 unknown" in refused(load_mosaicml, write(weights, fewer_layers))


@pytest.mark.parametrize(
    "name",
    ["cls.predictions.decoder.weight2", "", "x.bert.embeddings.LayerNorm.weight"],
)
def test_names_that_the_reference_does_not_have(name):
    assert name in refused(from_mosaicml_name, name)


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{",
        "[1]",
        "3",
        json.dumps({**SIZES, "hidden_size": "24"}),
        json.dumps({**SIZES, "num_attention_heads": 5}),
        json.dumps({**SIZES, "num_attention_heads": 0}),
        json.dumps({**SIZES, "hidden_size": None}),
    ],
)
def test_bad_sizes_in_the_metadata(write, config):
    assert "model.safetensors" in refused(load_mosaicml, write(reference_weights(), config))


def test_an_activation_that_the_kernels_do_not_have(write):
    """Found when the file is read, and not at the first forward pass."""
    config = json.dumps({**SIZES, "hidden_act": "gelu_new"})
    assert "gelu_new" in refused(load_mosaicml, write(reference_weights(), config))


def test_a_decoder_that_is_not_tied(write):
    """This model has one matrix for both; a file with two different ones would silently become another model."""
    weights = reference_weights()
    weights["cls.predictions.decoder.weight"] += 1
    assert "decoder.weight" in refused(load_mosaicml, write(weights))


def test_weights_of_another_kind(write):
    weights = {**reference_weights(), "cls.predictions.decoder.bias": torch.ones(64, dtype=torch.int64)}
    assert "int64" in refused(load_mosaicml, write(weights))


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 100, None])
def test_not_a_weights_file(tmp_path, content):
    file = tmp_path / "model.safetensors"
    if content is not None:
        file.write_bytes(content)
    expected = "no such file" if content is None else "not a safetensors file"
    assert expected in refused(load_mosaicml, file)
    assert "no such file" in refused(load_mosaicml, tmp_path)


@pytest.mark.parametrize("heads", [3, 12])
def test_encoder_folder_round_trip(tmp_path, heads):
    model = a_model(num_attention_heads=heads, hidden_dropout_prob=0.25)
    save_encoder(model, model.config, tmp_path / "a" / "encoder")
    config, weights = read_encoder(tmp_path / "a" / "encoder")
    assert config == model.config
    again = MosaicBertForMaskedLM(config).eval()
    load_weights(again, weights, "here")
    ids = torch.arange(20).reshape(4, 5)
    assert torch.equal(again.padded(ids).logits, model.padded(ids).logits)
    assert sorted(file.name for file in (tmp_path / "a" / "encoder").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("damage", ["absent", "{", "[]", '{"hidden_size": "24"}', '{"num_attention_heads": 7}'])
def test_damaged_encoder_folder(tmp_path, damage):
    model = a_model()
    save_encoder(model, model.config, tmp_path)
    file = tmp_path / "config.json"
    file.unlink() if damage == "absent" else file.write_text(damage)
    assert "config.json" in refused(read_encoder, tmp_path)


def test_encoder_folder_without_weights(tmp_path):
    assert "model.safetensors: no such file" in refused(read_encoder, tmp_path)


def test_an_encoder_from_pretraining_weights():
    model = a_model()
    encoder = Encoder(model.config)
    load_encoder_weights(encoder, model.state_dict(), "here")
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, model.state_dict()[f"encoder.{name}"]), name


def test_an_encoder_from_weights_that_do_not_fit():
    model, where = a_model(), "run/encoder"
    fewer = {name: t for name, t in model.state_dict().items() if "layers.1.feed_forward.out.bias" not in name}
    encoder = Encoder(model.config)
    message = refused(load_encoder_weights, encoder, fewer, where)
    assert message.startswith(where) and "layers.1.feed_forward.out.bias" in message
    wider = Encoder(a_model(vocab_size=128).config)
    message = refused(load_encoder_weights, wider, model.state_dict(), where)
    assert "(64, 24); the model has (128, 24)" in message
    before = wider.embeddings.norm.weight.detach().clone()
    assert torch.equal(wider.embeddings.norm.weight, before)
    assert "no weights" in refused(load_encoder_weights, encoder, {}, where)
