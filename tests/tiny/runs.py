"""YAML files of tiny runs, and these runs in the test's own process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composer import Callback
from omegaconf import OmegaConf

from recipe import train
from recipe.config import TrainConfig, load
from recipe.records import read_record
from recipe.training.callbacks import AfterBatch

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


def run(yaml: Path, *words: str, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train as the file and the words say; returns the record."""
    return train.train(load(TrainConfig, str(yaml), words), callbacks)


def stop_at(batch: int, error: BaseException | type[BaseException] = KeyboardInterrupt) -> AfterBatch:
    """A callback that raises after so many batches."""

    def stop(state) -> None:
        if state.timestamp.batch == batch:
            raise error

    return AfterBatch(stop)


def losses(record: dict[str, Any] | Path) -> list[float]:
    """The loss curve of a record, or of the run in a folder."""
    record = read_record(record) if isinstance(record, Path) else record
    return [row["loss"] for row in record["loss_curve"]]
