"""ELECTRA's discriminator (arXiv 2003.10555) of transformers: what a BERT that learnt to detect replaced tokens is there.

Where its embeddings are as wide as its layers, its encoder computes what BERT's does, and has the same names of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, ElectraConfig, ElectraForPreTraining, PreTrainedModel

from kernels.reference import ACTIVATIONS
from recipe.model.config import EncoderConfig

TYPE = "electra"  # model_type in config.json
# What `recipe.objectives.detector.Detector` of a BERT calls its parts, and ELECTRA.
_NAMES = (
    ("bert.bert.", "electra."),
    ("dense.", "discriminator_predictions.dense."),
    ("out.", "discriminator_predictions.dense_prediction."),
)
_FIELDS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("type_vocab_size", "pad_token_id", "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps"),
    *("initializer_range", "max_position_embeddings"),
)


def to_their_name(name: str) -> str:
    """What `ElectraForPreTraining` calls a parameter of a detector."""
    return next(theirs + name.removeprefix(ours) for ours, theirs in _NAMES if name.startswith(ours))


def from_their_name(name: str) -> str | None:
    """The inverse; None for what a detector does not have, such as a generator's head."""
    found = (ours + name.removeprefix(theirs) for ours, theirs in _NAMES if name.startswith(theirs))
    return next(found, None)


def config_of(bert: BertConfig) -> ElectraConfig:
    """Of the discriminator whose encoder is such a BERT."""
    same = {name: getattr(bert, name) for name in _FIELDS}
    return ElectraConfig(**same, embedding_size=bert.hidden_size, architectures=[ElectraForPreTraining.__name__])


def discriminator(model: nn.Module, bert: BertConfig) -> PreTrainedModel:
    """A detector on a BERT as transformers' own class, with copies of its weights."""
    with torch.no_grad():
        found = ElectraForPreTraining(config_of(bert))
        found.load_state_dict({to_their_name(name): tensor for name, tensor in model.state_dict().items()})
    return found


def recognise(values: Mapping[str, Any]) -> EncoderConfig | None:
    """The sizes that a config.json says, where it is ELECTRA's and the encoder is BERT's; None: it is another."""
    if values.get("model_type") != TYPE or values.get("is_decoder"):
        return None
    stated = {**ElectraConfig().to_dict(), **values}
    as_bert = stated["embedding_size"] == stated["hidden_size"] and stated["hidden_act"] in ACTIVATIONS
    if not as_bert or stated.get("position_embedding_type", "absolute") != "absolute":
        return None
    return EncoderConfig.from_dict(stated)


def named(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """An ELECTRA's tensors under the names of a detector on a BERT, and the names of those that it does not have."""
    found = {name: from_their_name(name) for name in tensors}
    left_out = [name for name, ours in found.items() if ours is None or name.endswith(".position_ids")]
    return {ours: tensors[name] for name, ours in found.items() if name not in left_out}, left_out
