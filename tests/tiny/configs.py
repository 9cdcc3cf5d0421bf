"""Configs and YAML files of commands that take seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from recipe.config import Cost, GlueConfig, to_dict

PRICES = Path(__file__).resolve().parents[2] / "yamls/prices.yaml"


def write_yaml(file: Path, settings: dict[str, Any], words: Sequence[str] = ()) -> Path:
    """`settings` as a YAML file; `words` over them, as on the command line."""
    OmegaConf.save(OmegaConf.merge(OmegaConf.create(settings), OmegaConf.from_dotlist(list(words))), file)
    return file


def train_yaml(folder: Path, dataset: Path | str, *words: str) -> Path:
    """`folder`/train.yaml, a pretraining of seconds whose run is `folder`/run."""
    settings = {
        "out": str(folder / "run"),
        "data": {"path": str(dataset), "sequence_length": 48, "eval_documents": 16},
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "batch_size": 8,
        "cost": {"prices": str(PRICES)},
    }
    return write_yaml(folder / "train.yaml", settings, words)


def glue_config(folder: Path, **settings: Any) -> GlueConfig:
    """Of fine-tuning the run in `folder`/run on the tasks in `folder`/data, at a dollar per core-second."""
    defaults = {"checkpoint": str(folder / "run"), "data": str(folder / "data"), "max_length": 48, "seeds": 1,
                "lr_scale": 100.0, "epochs": 4.0, "device": "cpu", "precision": "fp32"}  # fmt: skip
    return GlueConfig(**{**defaults, "cost": Cost(usd_per_hour=3600.0), **settings})


def glue_yaml(folder: Path, **settings: Any) -> Path:
    """The same, as `folder`/glue.yaml."""
    return write_yaml(folder / "glue.yaml", to_dict(glue_config(folder, **settings)))
