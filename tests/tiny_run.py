"""The YAML of a small training run, for tests that differ in a few settings."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

PRICES = Path(__file__).resolve().parents[1] / "yamls/prices.yaml"


def write_yaml(folder: Path, dataset: Path, *words: str) -> Path:
    """`folder`/train.yaml, a run of seconds in `folder`/run; `words` as on the command line."""
    settings = {
        "out": str(folder / "run"),
        "data": {"path": str(dataset), "sequence_length": 48, "eval_documents": 16},
        "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
        "batch_size": 8,
        "cost": {"prices": str(PRICES)},
    }
    file = folder / "train.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.create(settings), OmegaConf.from_dotlist(list(words))), file)
    return file
