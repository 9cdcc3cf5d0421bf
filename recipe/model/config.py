"""What an encoder is made of: the numbers that a checkpoint must carry to be rebuilt."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kernels.backends import Requirements
from kernels.reference import ACTIVATIONS
from recipe.block import BLOCK
from recipe.system.files import write_whole

SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
)
POSITIONS, NORMS = ("alibi", "rope"), ("post", "pre")
MOST, MOST_LABELS, MOST_LAYERS = 1 << 24, 1 << 20, 1 << 10  # any number, and those of what is made one by one
VOCAB_MULTIPLE = 64  # the decoder's matrix product is fastest when its width is a multiple of this


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of an encoder, under Hugging Face's names, and what its blocks are made of. The defaults are MosaicBERT-Base.

    `vocab_size` counts the rows of the embedding: the vocabulary rounded up by `padded_vocab_size`.
    """

    vocab_size: int = 30528
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    type_vocab_size: int = 2  # 0: the texts of a pair are not told apart by an embedding
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0  # Hugging Face's BERT keeps this row of its word embeddings at zero
    positions: str = "alibi"  # what tells the order of tokens
    norm: str = "post"  # LayerNorm after a sum with the residual, or before attention and feed-forward, and at the end
    embedding_norm: bool = True
    window: int | None = (
        None  # tokens around one that a local layer sees, half of them on each side; none: all layers are global
    )
    global_every: int = 3  # with a window, layers 0, n, 2 n, ... see the whole sequence
    biases: bool = True  # of projections and LayerNorms; the gated product never has one, the decoder always
    rope_theta: float = 160_000.0  # base of the angles in global layers
    local_rope_theta: float = 10_000.0
    # Last layers that pretraining computes at masked positions alone. Folders leave it out: what is kept is the plain encoder.
    narrow_layers: int = 1

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r}: give a whole number of at least 1")
        if type(self.type_vocab_size) is not int or self.type_vocab_size < 0:
            raise ValueError(f"type_vocab_size={self.type_vocab_size!r}: give a whole number, 0 for no token types")
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
        self._check_block()

    def _check_block(self) -> None:
        for name, known in (("positions", POSITIONS), ("norm", NORMS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: known are {', '.join(known)}")
        for name in ("embedding_norm", "biases"):
            if type(getattr(self, name)) is not bool:
                raise ValueError(f"{name}={getattr(self, name)!r}: give true or false")
        window, every = self.window, self.global_every
        if window is not None and (type(window) is not int or window < 2 or window % 2):
            raise ValueError(f"window={window!r}: give an even number of at least 2, half of it lies on each side")
        if type(every) is not int or every < 1:
            raise ValueError(f"global_every={every!r}: give a whole number of at least 1, 1 for global layers only")
        for name in ("rope_theta", "local_rope_theta"):
            if not isinstance(getattr(self, name), (int, float)) or not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)!r}: give a number above 0")
        if self.positions == "rope" and self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim}, hidden_size / num_attention_heads: positions=rope turns pairs, so it must be even"
            )

        if type(self.narrow_layers) is not int or not 1 <= self.narrow_layers <= self.num_hidden_layers:
            raise ValueError(f"narrow_layers={self.narrow_layers!r}: give 1 to {self.num_hidden_layers}, the layers")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def is_local(self, layer: int) -> bool:
        """Whether the tokens of a layer, counted from 0, see only those in their window."""
        return self.window is not None and layer % self.global_every != 0

    def requirements(self, device: str, dtype: torch.dtype) -> Requirements:
        """What it asks of its backends, for activations of that dtype."""
        return Requirements(
            device,
            dtype,
            self.head_dim,
            self.attention_probs_dropout_prob,
            alibi=self.positions == "alibi",
            window=any(map(self.is_local, range(self.num_hidden_layers))),
        )

    def save(self, folder: Path, model_type: str = "mosaic_bert") -> None:
        """Write `config.json`; `model_type` is the architecture's name."""
        values = {"model_type": model_type, **dataclasses.asdict(self)}
        del values["narrow_layers"]
        text = json.dumps(values, indent=2)
        write_whole(folder / "config.json", text + "\n")

    @classmethod
    def from_dict(cls, values: dict) -> EncoderConfig:
        """From a dictionary that may hold more, as a Hugging Face config does."""
        names = {f.name for f in dataclasses.fields(cls)} - {"narrow_layers"}  # which a run says
        if values.get("pad_token_id", 0) is None:  # Hugging Face's word for none
            names.remove("pad_token_id")
        return cls(**{name: value for name, value in values.items() if name in names})


def changed(sizes: EncoderConfig, settings: Mapping[str, Any], free: tuple[str, ...] = ()) -> str:
    """What of a block differs from a row's `settings`, in words: `norm=pre, window=64`; but for the fields that are `free`."""
    own = EncoderConfig(**settings)
    found = ((name, getattr(sizes, name)) for name in BLOCK if name not in free)
    return ", ".join(f"{name}={value}" for name, value in found if value != getattr(own, name))


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
