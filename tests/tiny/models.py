"""Encoders that are small enough to be fine-tuned in a second, as pretraining leaves them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import nn

from recipe.config import Tokenizer
from recipe.convert import save_encoder
from recipe.data import tokenizer
from recipe.data.batch import split_batch
from recipe.finetune.kinds import CLASSIFICATION
from recipe.finetune.kinds.kind import Kind
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.model.encoder import Backends, Encoder, initialize
from recipe.model.heads import FineTuned, MosaicBertForMaskedLM
from recipe.model.hf_bert import HFBertForMaskedLM
from recipe.model.modern import MODERN
from tests.tiny.records import record_run
from tests.tiny.tasks import TEXTS


def odd_sizes(**changes: object) -> EncoderConfig:
    """Of a model without dropout."""
    odd = dict(vocab_size=320, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=80)
    return EncoderConfig(**{**odd, "hidden_dropout_prob": 0.0, **changes})


def with_head(
    sizes: EncoderConfig, outputs: int, kind: Kind = CLASSIFICATION, backends: Backends | None = None
) -> FineTuned:
    """A new encoder with a new head."""
    encoder = Encoder(sizes, backends)
    head = kind.head(sizes.hidden_size, outputs, sizes.hidden_dropout_prob)
    model = FineTuned(encoder, head, kind.keep, kind.pool)
    initialize(model, sizes.initializer_range)
    return model


def mean_of_pieces(model: nn.Module, batch: dict, sequences: int) -> dict[str, float]:
    """A model's losses and metrics of a batch that is cut into microbatches, each weighed by its labels."""
    pieces = split_batch(batch, sequences)
    counts = [int(piece["counts"][:, 3].sum()) for piece in pieces]
    with torch.no_grad():
        parts = [model(piece) for piece in pieces]
    return {name: np.average([float(part[name]) for part in parts], weights=counts) for name in parts[0]}


def write_tokenizer(folder: Path) -> int:
    """A vocabulary of the tasks' words; returns its size."""
    trained = tokenizer.train(TEXTS, Tokenizer(vocab_size=300))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(trained, folder)
    return len(trained)


def write_encoder(folder: Path, model: str = "mosaic_bert", positions: int = 64) -> EncoderConfig:
    """An encoder folder with random weights, as a pretraining run leaves it."""
    vocabulary = padded_vocab_size(write_tokenizer(folder))
    sizes = EncoderConfig(vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                          intermediate_size=64)  # fmt: skip
    torch.manual_seed(3)
    if model == "hf_bert":
        HFBertForMaskedLM(sizes, positions).bert.save_pretrained(folder)
    elif model == "modern":
        sizes = dataclasses.replace(sizes, **{**MODERN.settings, "window": 8})
        MODERN.save(MODERN.masked_lm(sizes, positions, Backends()), folder)
    else:
        save_encoder(MosaicBertForMaskedLM(sizes), sizes, folder)
    return sizes


def write_run(folder: Path, model: str = "mosaic_bert") -> Path:
    """A finished pretraining run's folder."""
    write_encoder(folder / "encoder", model)
    record_run(folder.parent, folder.name, model, batches=7)
    return folder
