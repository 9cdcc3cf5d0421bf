"""Weights in and out: the published MosaicBERT's names, and this project's own encoder folders.

An encoder folder holds `config.json`, `model.safetensors` and the tokenizer's files; no pickle, so it can be passed on.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from recipe.errors import UserError
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.system.files import write_whole

# The reference implementation's names, left, and this project's.
_MOSAICML_NAMES = (
    (r"bert\.embeddings\.word_embeddings\.", "encoder.embeddings.word."),
    (r"bert\.embeddings\.token_type_embeddings\.", "encoder.embeddings.token_type."),
    (r"bert\.embeddings\.LayerNorm\.", "encoder.embeddings.norm."),
    (r"bert\.encoder\.layer\.(\d+)\.attention\.self\.Wqkv\.", r"encoder.layers.\1.attention.qkv."),
    (r"bert\.encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"encoder.layers.\1.attention.out."),
    (r"bert\.encoder\.layer\.(\d+)\.attention\.output\.LayerNorm\.", r"encoder.layers.\1.attention.norm."),
    (r"bert\.encoder\.layer\.(\d+)\.mlp\.gated_layers\.", r"encoder.layers.\1.feed_forward.gated."),
    (r"bert\.encoder\.layer\.(\d+)\.mlp\.wo\.", r"encoder.layers.\1.feed_forward.out."),
    (r"bert\.encoder\.layer\.(\d+)\.mlp\.layernorm\.", r"encoder.layers.\1.feed_forward.norm."),
    (r"cls\.predictions\.transform\.dense\.", "head.dense."),
    (r"cls\.predictions\.transform\.LayerNorm\.", "head.norm."),
    (r"cls\.predictions\.decoder\.bias", "head.bias"),
)
_TIED = "cls.predictions.decoder.weight"  # the same matrix as the word embeddings


def from_mosaicml_name(name: str) -> str | None:
    """This project's name of a reference parameter; None for the tied decoder's second copy.

    Raises:
        UserError: the reference MosaicBERT has no such parameter.
    """
    if name == _TIED:
        return None
    for pattern, replacement in _MOSAICML_NAMES:
        renamed, hits = re.subn("^" + pattern, replacement, name)
        if hits:
            return renamed
    raise UserError(f"`{name}` is not a parameter of the reference MosaicBERT's masked-language model")


def to_mosaicml_name(name: str) -> str:
    """The reference's name of one of this project's parameters of a masked-language model; the inverse of the above."""
    for pattern, replacement in _MOSAICML_NAMES:
        ours = re.escape(replacement).replace(r"\\1", r"(\d+)")
        theirs = pattern.replace(r"\.", ".").replace(r"(\d+)", r"\1")
        renamed, hits = re.subn("^" + ours, theirs, name)
        if hits:
            return renamed
    raise UserError(f"`{name}` is not a parameter of MosaicBERT's masked-language model")


def load_mosaicml(path: str | Path, backends: Backends | None = None) -> MosaicBertForMaskedLM:
    """The model whose reference-named weights a safetensors file holds, its sizes in the metadata under `config`.

    A prefix `weight.` before the names is allowed, as in a file that also holds inputs and outputs. Dropout is 0 unless the file
    states it. Names, shapes and dtypes are checked; nothing is left at its random initialisation.

    Raises:
        UserError: no such file, no sizes in it, or a parameter missing, unknown or of another shape.
    """
    tensors, metadata = _read_safetensors(Path(path))
    if "config" not in metadata:
        raise UserError(f"{path}: no `config` in the file's metadata, so the encoder's sizes are not known")
    config = _sizes(metadata["config"], f"{path}: the `config` in its metadata", hidden_dropout_prob=0.0)
    if any(name.startswith("weight.") for name in tensors):
        tensors = {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")}
    decoder = tensors.pop(_TIED, None)
    named = {from_mosaicml_name(name): tensor for name, tensor in tensors.items()}
    word = named.get("encoder.embeddings.word.weight")
    if decoder is not None and word is not None and not torch.equal(decoder, word):
        raise UserError(f"{path}: `{_TIED}` is not the word embeddings' matrix, and this model has one for both")
    model = MosaicBertForMaskedLM(config, backends)
    load_weights(model, named, str(path))
    return model.eval()


def save_encoder(model: nn.Module, config: EncoderConfig, folder: Path, model_type: str = "mosaic_bert") -> None:
    """Write `config.json` and `model.safetensors` into `folder`; `model_type` is the architecture's name."""
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder, model_type)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_whole(folder / "model.safetensors", partial(save_file, state))


def read_encoder(folder: Path) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Sizes and weights of an encoder folder that `save_encoder` wrote."""
    tensors, _ = _read_safetensors(folder / "model.safetensors")
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    return _sizes(file.read_text("utf-8", errors="replace"), str(file)), tensors


def _sizes(text: str, where: str, **defaults: float) -> EncoderConfig:
    """The encoder that a JSON object describes; what it does not state is `defaults` or Base's."""
    try:
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("expected an object")
        return EncoderConfig.from_dict({**defaults, **values})
    except ValueError as error:
        raise UserError(f"{where} is not the configuration of an encoder: {error}") from None


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Copy `weights` into `model`, every parameter of it, in the model's dtype.

    Raises:
        UserError: a parameter of the model is missing in `weights` or has another shape, or the model has none of that name.
    """
    wanted = model.state_dict()
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or unknown:
        problem = f"no weights for `{missing[0]}`" if missing else f"the model has no `{unknown[0]}`"
        raise UserError(f"{where}: {problem} ({len(missing)} missing, {len(unknown)} unknown)")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(f"{where}: `{name}` is {tuple(tensor.shape)}; the model has {tuple(wanted[name].shape)}")
        if not tensor.is_floating_point():
            raise UserError(f"{where}: `{name}` is {tensor.dtype}; a weight is a floating-point number")
    model.load_state_dict(weights)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())  # the file object is no mapping
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None


def load_encoder_weights(encoder: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """The encoder of a masked-language model's `weights` into an encoder alone.

    Raises:
        UserError: as `load_weights`.
    """
    load_weights(
        encoder, {n.removeprefix("encoder."): t for n, t in weights.items() if n.startswith("encoder.")}, where
    )
