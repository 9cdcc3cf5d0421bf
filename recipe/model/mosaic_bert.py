"""MosaicBERT's row in the table of architectures; the model itself is `recipe.model.encoder` and `recipe.model.heads`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

from torch import nn

from kernels.backends import Requirements, resolve
from recipe import convert
from recipe.model.architecture import STREAM, Architecture, Export
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends, Encoder
from recipe.model.examples import full_stream
from recipe.model.heads import MosaicBertForMaskedLM


def _backends(attention: str, kernels: str, needs: Requirements) -> Backends:
    return Backends(resolve("attention", attention, needs), resolve("kernels", kernels, needs))


def _masked_lm(sizes: EncoderConfig, length: int, backends: Backends) -> nn.Module:
    return MosaicBertForMaskedLM(sizes, backends)  # ALiBi has no longest length


def _save(model: nn.Module, folder: Path) -> None:
    convert.save_encoder(model, model.config, folder)


def _exported_code() -> ModuleType:
    from recipe.export import modeling_mosaic_bert

    return modeling_mosaic_bert


MOSAIC_BERT = Architecture(
    name="mosaic_bert",
    form=STREAM,
    gated=True,
    predicts_all=False,
    backends=_backends,
    masked_lm=_masked_lm,
    largest_batch=full_stream,
    save=_save,
    save_sizes=lambda model, folder: model.config.save(folder),
    read=convert.read_encoder,
    encoder=Encoder,
    export=Export("MosaicBert", dataclasses.asdict, convert.to_mosaicml_name, _exported_code),
)
