"""ModernBERT's row (arXiv 2412.13663): the house's encoder, pre-norm, with rotary positions, windows and no biases.

Its folders are transformers' `modernbert` in both directions: published encoders are trained on and fine-tuned here, and what is
trained here loads there without code of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recipe import convert
from recipe.model.architecture import STREAM, Architecture, Export, Shapes
from recipe.model.config import EncoderConfig, changed
from recipe.model.encoder import Encoder
from recipe.model.examples import full_stream
from recipe.model.mosaic_bert import WORD, bare, masked_lm, own_backends

TYPE, THEIR_TYPE = "modern", "modernbert"  # model_type in config.json: ours, transformers'
SETTINGS: dict[str, Any] = {
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-5,
    "positions": "rope",
    "norm": "pre",
    "window": 128,
    "biases": False,
}
# Of a block, what transformers' class leaves open.
_OPEN = ("window", "global_every", "rope_theta", "local_rope_theta")
# Fields of EncoderConfig, and what transformers calls them.
_FIELDS = {
    **{name: name for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")},
    **{name: name for name in ("intermediate_size", "initializer_range", "pad_token_id")},
    "hidden_act": "hidden_activation",
    "hidden_dropout_prob": "mlp_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "layer_norm_eps": "norm_eps",
    "window": "local_attention",
    "global_every": "global_attn_every_n_layers",
    "rope_theta": "global_rope_theta",
    "local_rope_theta": "local_rope_theta",
}
# What a folder of theirs may say otherwise, and what is then left to their class.
_FIXED = {
    **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), False),
    "decoder_bias": True,
    "classifier_activation": "gelu",
    "tie_word_embeddings": True,
    "rope_scaling": None,
}
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"  # kinds of layers in transformers 5's config.json
_TIED, _WORD = "decoder.weight", "model.embeddings.tok_embeddings.weight"
# This project's names of parameters, and transformers'.
_NAMES = {WORD: _WORD, "head.bias": "decoder.bias"}
_PREFIXES = (
    ("encoder.embeddings.", "model.embeddings."),
    ("encoder.layers.", "model.layers."),
    ("encoder.final_norm.", "model.final_norm."),
)
_IN_LAYERS = {
    "attention.norm": "attn_norm",
    "attention.qkv": "attn.Wqkv",
    "attention.out": "attn.Wo",
    "feed_forward.norm": "mlp_norm",
    "feed_forward.gated": "mlp.Wi",
    "feed_forward.out": "mlp.Wo",
}


def _renamed(name: str, names: Mapping[str, str], prefixes: list[tuple[str, str]], in_layers: Mapping[str, str]) -> str:
    """By whole names, or by prefix and, in a layer, by what stands between its number and the last word. Else as it is."""
    if name in names:
        return names[name]
    for before, after in prefixes:
        if name.startswith(before):
            rest = name.removeprefix(before)
            if part := re.fullmatch(r"(\d+)\.(.+)\.(\w+)", rest):
                rest = f"{part[1]}.{in_layers.get(part[2], part[2])}.{part[3]}"
            return after + rest
    return name


def to_their_name(name: str) -> str:
    """What `ModernBertForMaskedLM` calls a parameter of ours."""
    return _renamed(name, _NAMES, list(_PREFIXES), _IN_LAYERS)


def from_their_name(name: str) -> str:
    """The inverse; a name that they do not have is left, for `convert.load_weights` to count."""
    names, in_layers = ({theirs: ours for ours, theirs in table.items()} for table in (_NAMES, _IN_LAYERS))
    return _renamed(name, names, [(theirs, ours) for ours, theirs in _PREFIXES], in_layers)


def _settings(sizes: EncoderConfig) -> dict[str, Any]:
    """Of transformers' own class. Which tokens begin and end a text, its tokenizer says."""
    found = changed(sizes, SETTINGS, _OPEN)
    if found or sizes.type_vocab_size:
        raise ValueError(f"{found or 'token types'}: transformers' ModernBert has no such block")
    named = {theirs: getattr(sizes, ours) for ours, theirs in _FIELDS.items()}
    if sizes.window is None:  # which has a window in any case
        named |= {"local_attention": EncoderConfig(**SETTINGS).window, "global_attn_every_n_layers": 1}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    return {**named, "embedding_dropout": sizes.hidden_dropout_prob, **special}


def _recognise(values: Mapping[str, Any], shapes: Shapes) -> EncoderConfig | None:
    if values.get("model_type") == TYPE:
        return EncoderConfig.from_dict(dict(values))
    if values.get("model_type") != THEIR_TYPE:
        return None
    found = {ours: values[theirs] for ours, theirs in _FIELDS.items() if values.get(theirs) is not None}
    found |= _thetas(values, found)
    if isinstance(found.get("window"), int):
        found["window"] -= found["window"] % 2  # they take half of it, rounded down
    sizes = EncoderConfig(**{**SETTINGS, "hidden_dropout_prob": 0.0, **found})
    kinds = [_LOCAL if sizes.is_local(layer) else _GLOBAL for layer in range(sizes.num_hidden_layers)]
    fixed = {**_FIXED, "layer_types": kinds}
    kept = all(values.get(name, value) == value for name, value in fixed.items())
    angles = (values.get("rope_parameters") or {}).values()
    return sizes if kept and all(one.get("rope_type", "default") == "default" for one in angles) else None


def _thetas(values: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The bases of the angles, as transformers 5 writes them, or as 4 understands that there is one."""
    angles = values.get("rope_parameters")
    if angles:
        return {"rope_theta": angles[_GLOBAL]["rope_theta"], "local_rope_theta": angles[_LOCAL]["rope_theta"]}
    one_for_both = "local_rope_theta" in values and values["local_rope_theta"] is None and "rope_theta" in found
    return {"local_rope_theta": found["rope_theta"]} if one_for_both else {}


def _named(tensors: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Of `ModernBertForMaskedLM`, or of `ModernBertModel`, whose names have no prefix."""
    if WORD in tensors:
        return tensors, []
    prefix = "" if any(name.startswith("model.") for name in tensors) else "model."
    found = {prefix + name: tensor for name, tensor in tensors.items()}
    convert.check_tied(_TIED, found.pop(_TIED, None), found.get(_WORD), where)
    return {from_their_name(name): tensor for name, tensor in found.items()}, []


def _save(model: nn.Module, folder: Path) -> None:
    convert.save_encoder(model, model.config, folder, TYPE)


MODERN = Architecture(
    name=TYPE,
    form=STREAM,
    gated=True,
    backends=own_backends,
    masked_lm=masked_lm,
    largest_batch=full_stream,
    save=_save,
    save_sizes=lambda model, folder: model.config.save(folder, TYPE),
    recognise=_recognise,
    named=_named,
    encoder=Encoder,
    bare=bare,
    settings=SETTINGS,
    export=Export("ModernBert", _settings, to_their_name),
    vocabulary_rows=(WORD, "head.bias"),
)
