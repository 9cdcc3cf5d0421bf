"""Pretraining in the test's own process, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Trainer
from torch import nn

from recipe import train
from recipe.config import TrainConfig, load
from recipe.records import read_record
from recipe.training.callbacks import AfterBatch
from recipe.training.composer_model import Pretraining


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


def composer_checkpoint(run: Path, model: nn.Module) -> Path:
    """A checkpoint of `model` before its first batch, in the folder of a run."""
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = Trainer(
        model=Pretraining(model, "cpu", None), optimizers=optimizer, device="cpu", progress_bar=False, seed=1
    )
    saved = trainer.save_checkpoint(str(run / "checkpoints" / "ba0-rank0.pt"))
    trainer.close()
    return Path(saved)
