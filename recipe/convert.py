"""Weights in and out: files of tensors, the published MosaicBERT's names, and this project's own encoder folders.

An encoder folder holds `config.json`, `model.safetensors` and the tokenizer's files; no pickle, so it can be passed on. Others'
pickles (`pytorch_model.bin`) are read without executing what they name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
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
from recipe.system.pickles import read_tensors

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
_OUT_OF_REACH = -1e4  # a bias beside which no logit counts


def from_mosaicml_name(name: str) -> str | None:
    """This project's name of a reference parameter; None for the tied decoder's second copy.

    Raises:
        UserError: the reference MosaicBERT has no such parameter.
    """
    if name == _TIED:
        return None
    if renamed := _renamed(name):
        return renamed
    raise UserError(f"`{name}` is not a parameter of the reference MosaicBERT's masked-language model")


def _renamed(name: str) -> str | None:
    for pattern, replacement in _MOSAICML_NAMES:
        renamed, hits = re.subn("^" + pattern, replacement, name)
        if hits:
            return renamed
    return None


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
    model = MosaicBertForMaskedLM(config, backends)
    load_weights(model, named_by_mosaicml(tensors, str(path)), str(path))
    return model.eval()


def named_by_mosaicml(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors under this project's names; one that the reference does not have keeps its own, for `load_weights` to count. Those
    of an encoder without head may lack the prefix `bert.`.

    Raises:
        UserError: a decoder that is not tied to the word embeddings.
    """
    prefix = "" if any(name.startswith("bert.") for name in tensors) else "bert."
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    decoder, word = tensors.pop(_TIED, None), tensors.get("bert.embeddings.word_embeddings.weight")
    check_tied(_TIED, decoder, word, where)
    return {_renamed(name) or name: tensor for name, tensor in tensors.items()}


def check_tied(name: str, tensor: Tensor | None, word: Tensor | None, where: str) -> None:
    """Raise a `UserError` for a decoder's matrix that is another than the word embeddings'."""
    if tensor is not None and word is not None and not torch.equal(tensor, word):
        raise UserError(f"{where}: `{name}` is not the word embeddings' matrix, and this model has one for both")


def fit_rows(weights: dict[str, Tensor], names: Sequence[str], rows: int) -> tuple[dict[str, Tensor], int]:
    """The parameters `names`, which have a row per entry of the vocabulary, with so many rows; and how many they had.

    Rows that are added are no token's: their embedding is 0 and their bias keeps them out of the softmax, so the loss stays as it
    was. Those behind the last are taken away, which are no token's either. One with other rows than the embedding is left, for
    `load_weights` to refuse.
    """
    before = weights[names[0]].shape[0] if names and names[0] in weights else rows
    fitted = {}
    for name in set(names) & weights.keys():
        if weights[name].shape[0] != before:
            continue
        tensor = weights[name][:rows]
        more = tensor.new_full((rows - len(tensor), *tensor.shape[1:]), _OUT_OF_REACH if tensor.dim() == 1 else 0.0)
        fitted[name] = torch.cat([tensor, more])
    return weights | fitted, before


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
        first = [f"no weights for `{missing[0]}`"] if missing else []
        first += [f"the model has no `{unknown[0]}`"] if unknown else []
        raise UserError(f"{where}: {', '.join(first)} ({len(missing)} missing, {len(unknown)} unknown)")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(f"{where}: `{name}` is {tuple(tensor.shape)}; the model has {tuple(wanted[name].shape)}")
        if not tensor.is_floating_point():
            raise UserError(f"{where}: `{name}` is {tensor.dtype}; a weight is a floating-point number")
    model.load_state_dict(weights)


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of a model's files, safetensors or torch's.

    Raises:
        UserError: a file that is neither, or that holds more than tensors.
    """
    found: dict[str, Tensor] = {}
    for file in files:
        found |= read_tensors(file) if file.suffix == ".bin" else _read_safetensors(file)[0]
    return found


def read_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """The same, of every tensor its shape; of safetensors nothing else is read."""
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        if path.suffix == ".bin":
            found |= {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}
            continue
        with _opened(path) as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}  # no mapping
    return found


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with _opened(path) as file:
        names = list(file.keys())  # the file object is no mapping
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}


def _opened(path: Path) -> safe_open:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None


def load_encoder_weights(encoder: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """The encoder of a masked-language model's `weights` into an encoder alone; heads are left, and a pooler, which is one.

    Raises:
        UserError: as `load_weights`.
    """
    inner = {
        n: t for n, t in weights.items() if n.startswith(("encoder.", "bert.")) and not n.startswith("bert.pooler.")
    }
    load_weights(encoder, {n.removeprefix("encoder."): tensor for n, tensor in inner.items()}, where)
