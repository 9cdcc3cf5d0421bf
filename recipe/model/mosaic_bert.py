"""MosaicBERT's row in the table of architectures; the model itself is `recipe.model.encoder` and `recipe.model.heads`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from kernels.backends import Requirements, resolve
from recipe import convert
from recipe.block import BLOCK
from recipe.model.architecture import STREAM, Architecture, Export, Shapes
from recipe.model.config import EncoderConfig, changed, padded_vocab_size
from recipe.model.encoder import Backends, Encoder
from recipe.model.examples import full_stream
from recipe.model.heads import MosaicBertForMaskedLM

TYPE, PUBLISHED_TYPE = (
    "mosaic_bert",
    "bert",
)  # model_type in config.json: ours, and in the published repositories, beside code
WORD = "encoder.embeddings.word.weight"
SETTINGS: dict[str, Any] = {}  # `EncoderConfig` is MosaicBERT's
# Of a fine-tuned model, in the shipped file.
HEADS = {"head.pooler": "bert.pooler.dense", "head.classifier": "classifier"}
_PUBLISHED_WORD, _PUBLISHED_ATTENTION = "bert.embeddings.word_embeddings.weight", "attention.self.Wqkv.weight"


def own_backends(attention: str, kernels: str, needs: Requirements) -> Backends:
    return Backends(resolve("attention", attention, needs), resolve("kernels", kernels, needs))


def masked_lm(sizes: EncoderConfig, length: int, backends: Backends) -> nn.Module:
    return MosaicBertForMaskedLM(sizes, backends)  # its positions have no longest length


def bare(sizes: EncoderConfig, length: int, backends: Backends) -> nn.Module:
    return Encoder(sizes, backends)


def _save(model: nn.Module, folder: Path) -> None:
    convert.save_encoder(model, model.config, folder)


def _exported_code() -> ModuleType:
    from recipe.export import modeling_mosaic_bert

    return modeling_mosaic_bert


def _settings(sizes: EncoderConfig) -> dict[str, Any]:
    """Of the shipped class, which has one kind of block."""
    if found := changed(sizes, SETTINGS):
        raise ValueError(
            f"{found}: neither transformers nor the file that ships with the weights has such a mosaic_bert"
        )
    return {name: value for name, value in dataclasses.asdict(sizes).items() if name not in BLOCK}


def _recognise(values: Mapping[str, Any], shapes: Shapes) -> EncoderConfig | None:
    """The published repositories say 30,522 in config.json and have 30,528 rows: the tensors are believed."""
    kind = values.get("model_type")
    if kind not in (TYPE, PUBLISHED_TYPE) or values.get("is_decoder"):
        return None
    found = shapes()
    if kind == PUBLISHED_TYPE and not any(name.endswith(_PUBLISHED_ATTENTION) for name in found):
        return None
    sizes = EncoderConfig.from_dict(dict(values))
    rows = next((found[name][0] for name in (WORD, _PUBLISHED_WORD) if name in found), sizes.vocab_size)
    rounded_up = sizes.vocab_size <= rows <= padded_vocab_size(sizes.vocab_size)
    return dataclasses.replace(sizes, vocab_size=rows) if rounded_up else sizes


def _named(tensors: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    return (tensors if WORD in tensors else convert.named_by_mosaicml(tensors, where)), []


MOSAIC_BERT = Architecture(
    name="mosaic_bert",
    form=STREAM,
    gated=True,
    backends=own_backends,
    masked_lm=masked_lm,
    largest_batch=full_stream,
    save=_save,
    save_sizes=lambda model, folder: model.config.save(folder),
    recognise=_recognise,
    named=_named,
    encoder=Encoder,
    bare=bare,
    settings=SETTINGS,
    export=Export("MosaicBert", _settings, convert.to_mosaicml_name, _exported_code, HEADS),
    vocabulary_rows=(WORD, "head.bias"),
)
