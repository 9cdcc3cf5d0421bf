"""The rivals of a training step, each a function of the same batches: Hugging Face's BERT, and checkouts of other projects.

A checkout is imported from the folder that the user names, by a process of its own whose PYTHONPATH holds it, run by an
interpreter in which what it needs is installed. Nothing of it is copied here, and nothing in it is changed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recipe.model.config import EncoderConfig

Loss = Callable[[dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Sizes:
    """Of a model, under Hugging Face's names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int = 30522
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.0


class Absent(Exception):
    """A rival cannot run here: why, in one line."""


def hf_bert(sizes: Sizes, length: int) -> tuple[nn.Module, Loss]:
    """`BertForMaskedLM` with SDPA and its own loss, its head on every position, as its users run it."""
    if importlib.util.find_spec("transformers") is None:
        raise Absent("the package transformers is not installed")
    from recipe.model.hf_bert import HFBertForMaskedLM

    model = HFBertForMaskedLM(EncoderConfig(**vars(sizes)), length).bert
    return model, lambda batch: padded_loss(model, batch)


def padded_loss(model: Callable, batch: dict[str, Any]) -> Tensor:
    keys = ("input_ids", "attention_mask", "labels")
    return model(**{key: batch[key] for key in keys}).loss


def folders(path: Path) -> list[Path]:
    """What PYTHONPATH must hold for a checkout.

    Raises:
        Absent: it is none that is known here.
    """
    if (path / "src" / "bert_layers.py").is_file():
        return [path / "src"]
    if (path / "src" / "bert_layers" / "model.py").is_file():
        return [path, path / "src"]
    raise Absent(f"{path} has neither src/bert_layers.py (mosaicml/examples) nor src/bert_layers/model.py (ModernBERT)")


def checkout(path: Path, sizes: Sizes, on_gpu: bool) -> tuple[nn.Module, Loss, str]:
    """The checkout's pretraining model, its loss, and what of it runs here."""
    if importlib.util.find_spec("einops") is None:
        raise Absent(f"einops is not installed in {Path(sys.executable).name}'s environment; see --python")
    if (path / "src" / "bert_layers.py").is_file():
        return mosaic_examples(sizes)
    return flex_bert(path, sizes, on_gpu)


def mosaic_examples(sizes: Sizes) -> tuple[nn.Module, Loss, str]:
    """mosaicml/examples' MosaicBERT. Its Triton attention is written for Triton 2 and is left out, as the code itself does
    where Triton cannot be imported."""
    sys.modules["flash_attn_triton"] = None  # type: ignore[assignment]
    from bert_layers import BertForMaskedLM
    from configuration_bert import BertConfig

    values = {**vars(sizes), "vocab_size": -(-sizes.vocab_size // 64) * 64}
    model = BertForMaskedLM(BertConfig(**values))
    note = "unpadded, head on masked positions; attention in plain torch: its Triton kernel needs Triton 2"
    return model, lambda batch: padded_loss(model, batch), note


def flex_bert(path: Path, sizes: Sizes, on_gpu: bool) -> tuple[nn.Module, Loss, str]:
    """ModernBERT's FlexBERT, unpadded, a gated unit as ours, its head on masked positions; rotary needs flash-attn."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sys.modules["src"] = _package(path / "src")  # its own __init__ imports its trainer and all that this needs
    from src.bert_layers.configuration_bert import FlexBertConfig
    from src.bert_layers.model import FlexBertForMaskedLM

    flash = on_gpu and importlib.util.find_spec("flash_attn") is not None
    values = {**vars(sizes), "vocab_size": -(-sizes.vocab_size // 64) * 64}
    dropout = values.pop("hidden_dropout_prob")
    names = ("attn_out_dropout_prob", "embed_dropout_prob", "mlp_dropout_prob")
    config = FlexBertConfig(
        **values, **dict.fromkeys(names, dropout),
        attention_layer="base", embedding_layer="absolute_pos", bert_layer="prenorm", mlp_layer="glu",
        normalization="layernorm", final_norm=True, padding="unpadded", masked_prediction=True,
        use_fa2=flash, use_sdpa_attn_mask=not flash,
        loss_function="cross_entropy", loss_kwargs={"reduction": "mean"}, hidden_act="gelu",
        init_method="default",
    )  # fmt: skip
    model = FlexBertForMaskedLM(config)
    attention = "FlashAttention 2" if flash else "torch's SDPA, padded inside: flash-attn is not here"
    note = f"unpadded, gated, absolute positions (its rotary needs flash-attn); attention by {attention}"
    return model, lambda batch: padded_loss(model, batch), note


def _package(folder: Path) -> Any:
    """A package of this folder whose __init__ is not run."""
    from types import ModuleType

    package = ModuleType("src")
    package.__path__ = [str(folder)]
    return package
