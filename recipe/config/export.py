"""Keys of what hands an encoder over: `python -m recipe.export`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from recipe.settings import COPY, MISSING, setting

# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045


@dataclass
class ExportConfig:
    """`python -m recipe.export RUN out=FOLDER`: an encoder or a fine-tuned model, as other people's software loads it."""

    checkpoint: str = setting(
        MISSING,
        "a run's folder, one of its checkpoints, an encoder's folder, or what recipe.finetune wrote; the command's first word",
    )
    out: str = setting(MISSING, "the folder to write, which is not there yet or is empty", result=False, local=COPY)
    format: str = setting(
        "huggingface",
        "huggingface: for transformers' Auto classes; sentence: for sentence-transformers; onnx: for ONNX Runtime",
        choices=("huggingface", "sentence", "onnx"),
    )
    pooling: str = setting(
        "mean",
        "of a pretrained encoder as sentence encoder: mean: of all tokens' hidden states; cls: the first token's",
        choices=("mean", "cls"),
    )
    int8: Optional[str] = setting(
        None,
        "with onnx, of a pretrained encoder: quantise the weights to int8 too, and score both on these minimal pairs (BLiMP's "
        "form)",
    )
