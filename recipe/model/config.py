"""What an encoder is made of: the numbers that a checkpoint must carry to be rebuilt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.reference import ACTIVATIONS
from recipe.system.files import write_whole

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "type_vocab_size",
)
MOST, MOST_LABELS, MOST_LAYERS = 1 << 24, 1 << 20, 1 << 10  # any number, and those of what is made one by one
VOCAB_MULTIPLE = 64  # the decoder's matrix product is fastest when its width is a multiple of this


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, under Hugging Face's names. The defaults are Base.

    `vocab_size` counts the rows of the embedding: the vocabulary rounded up by `padded_vocab_size`.
    """

    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0  # Hugging Face's BERT keeps this row of its word embeddings at zero

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < 1:
                raise ValueError(f"{name}={value!r}: give a number from 0 to below 1")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act={self.hidden_act!r}: known are {', '.join(ACTIVATIONS)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def save(self, folder: Path, model_type: str = "mosaic_bert") -> None:
        """Write `config.json`; `model_type` is the architecture's name."""
        text = json.dumps({"model_type": model_type, **dataclasses.asdict(self)}, indent=2)
        write_whole(folder / "config.json", text + "\n")

    @classmethod
    def from_dict(cls, values: dict) -> EncoderConfig:
        """From a dictionary that may hold more, as a Hugging Face config does."""
        names = {f.name for f in dataclasses.fields(cls)}
        if values.get("pad_token_id", 0) is None:  # Hugging Face's word for none
            names.remove("pad_token_id")
        return cls(**{name: value for name, value in values.items() if name in names})


def check_sizes(values: Mapping[str, Any]) -> None:
    """Raise a `ValueError` for a number in anybody's config.json that would fill the memory before the model is built: layers and
    labels are made one by one.
    """
    for name, value in values.items():
        most = MOST_LAYERS if "layer" in name and "norm" not in name else MOST_LABELS if name == "num_labels" else MOST
        if isinstance(value, int) and abs(value) > most:
            raise ValueError(f"{name}={value}: at most {most:,}")


def padded_vocab_size(vocab_size: int) -> int:
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
