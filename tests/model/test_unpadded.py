"""Hugging Face's encoders without their padding: what they say with it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from recipe.model.huggingface import HFEncoder, HFFineTuned
from recipe.model.unpadded import MODEL_TYPES, Unpadded, unpad_for_prediction

LENGTHS = (9, 1, 4, 12)
HEADS = {"AutoModelForSequenceClassification": 4, "AutoModelForTokenClassification": sum(LENGTHS)}


def config(model_type: str, **more):
    sizes = dict(vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48,
                 max_position_embeddings=20, type_vocab_size=2, pad_token_id=1, num_labels=5)  # fmt: skip
    return transformers.AutoConfig.for_model(model_type, **{**sizes, **more})


def batch() -> dict:
    torch.manual_seed(5)
    real = torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]
    ids, types = torch.randint(2, 60, real.shape), torch.randint(0, 2, real.shape)
    return {"input_ids": ids.where(real, 1), "attention_mask": real.long(), "token_type_ids": types * real,
            "indices": real.flatten().nonzero()[:, 0]}  # fmt: skip


def headed(auto: str, settings) -> HFFineTuned:
    """As a folder would make it, without the folder."""
    module = HFFineTuned.__new__(HFFineTuned)
    nn.Module.__init__(module)
    module.auto_class, module.token_types = getattr(transformers, auto), True
    module.model = module.auto_class.from_config(settings)
    return spread(module)


def spread(module: nn.Module) -> nn.Module:
    """Weights at which every part moves the output."""
    torch.manual_seed(4)
    for parameter in module.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return module.eval()


@pytest.mark.parametrize("auto", HEADS)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_what_comes_out_is_the_librarys_own(model_type, auto):
    more = {"embedding_size": 16} if model_type == "electra" else {}
    module = headed(auto, config(model_type, **more))
    names = [name for name, _ in module.named_parameters()]
    with torch.no_grad():
        own = module(batch())
        unpad_for_prediction(module, "cpu", torch.float32)
        assert isinstance(module.model.base_model, Unpadded) and len(names) == len([*module.parameters()])
        found = module(batch())
    assert own.shape == (HEADS[auto], 5) and own.std() > 0.05
    torch.testing.assert_close(found, own, atol=1e-5, rtol=1e-5)


def test_a_head_of_ours_and_low_precision():
    encoder = HFEncoder.__new__(HFEncoder)
    nn.Module.__init__(encoder)
    encoder.token_types, encoder.model = True, transformers.AutoModel.from_config(config("bert", hidden_act="relu"))
    whole = nn.Sequential(spread(encoder))
    with torch.no_grad():
        own, first = encoder(batch()), encoder(batch(), torch.tensor([0, 12, 24, 36]))
        unpad_for_prediction(whole, "cpu", torch.bfloat16)
        assert isinstance(encoder.model, Unpadded)
        torch.testing.assert_close(encoder(batch()), own, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(encoder(batch(), torch.tensor([0, 12, 24, 36])), first, atol=1e-5, rtol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert (encoder(batch()).float() - own).abs().max() < 0.1 * own.abs().max()


def test_only_what_a_head_reads_is_computed():
    """Of the last layer, the first tokens; of those below, no padding."""
    module, seen = headed("AutoModelForSequenceClassification", config("bert")), []
    unpad_for_prediction(module, "cpu", torch.float32)
    for layer in module.model.base_model.model.encoder.layer:
        layer.intermediate.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[0]))
    with torch.no_grad():
        module(batch())
    assert seen == [sum(LENGTHS), sum(LENGTHS), len(LENGTHS)]


@pytest.mark.parametrize("settings", [config("distilbert"), config("bert")], ids=["others", "positions"])
def test_what_is_not_such_a_model_stays_as_it_is(settings):
    if settings.model_type == "bert":
        settings = SimpleNamespace(model_type="bert", position_embedding_type="relative_key")
    encoder = HFEncoder.__new__(HFEncoder)
    nn.Module.__init__(encoder)
    encoder.model = nn.Linear(2, 2)
    encoder.model.config = settings
    unpad_for_prediction(encoder, "cpu", torch.float32)
    assert isinstance(encoder.model, nn.Linear)
