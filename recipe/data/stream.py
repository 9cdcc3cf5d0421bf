"""From shards to a loader of batches, resumable in the middle of an epoch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from streaming import StreamingDataLoader, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from recipe.config import Data
from recipe.data.batch import Batch, Collator, count_sequences
from recipe.data.masking import Masker
from recipe.data.shards import DatasetInfo
from recipe.errors import UserError


class Documents(StreamingDataset):
    """Tokenised documents, each with its number in the split and the epoch it is read in."""

    epoch = 0

    def _get_work(self, epoch: int, sample_in_epoch: int) -> NDArray[np.int64]:
        self.epoch = epoch  # the one place where a worker process learns it
        return super()._get_work(epoch, sample_in_epoch)

    def __getitem__(self, at: int) -> dict[str, Any]:
        """tokens (length,) uint16, id, epoch."""
        return {"tokens": super().__getitem__(at)["tokens"], "id": at, "epoch": self.epoch}


class EvaluationDocuments(Documents):
    """The same in every pass: its epoch, which masking depends on, is always 0."""

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {**super().__getitem__(at), "epoch": 0}


class Loader(StreamingDataLoader):
    def _get_batch_size(self, batch: Batch) -> int:
        return count_sequences(batch)


def free_shared_memory() -> None:
    """Remove what an interrupted run left in shared memory, so that this one can start."""
    clean_stale_shared_memory()


def check_vocabulary(path: str, info: DatasetInfo) -> None:
    """Raise a `UserError` if the tokenizer beside the shards is not the one that they were made with."""
    file = Path(path) / "tokenizer" / "vocab.txt"
    if not file.is_file():
        raise UserError(f"{file}: no such file, so the shards' tokens have no meaning; prepare the dataset again")
    if hashlib.sha256(file.read_bytes()).hexdigest() != info.vocabulary.sha256:
        raise UserError(
            f"{file} is not the vocabulary that the shards were made with (dataset.json has another sha256); "
            "put the old one back, or prepare the dataset again"
        )


def open_loader(
    data: Data, info: DatasetInfo, *, train: bool, batch_size: int, seed: int, padded: bool, workers: int
) -> Loader:
    """Batches of `batch_size` sequences a rank of the training or the evaluation split."""
    split = data.train_split if train else data.eval_split
    documents = (Documents if train else EvaluationDocuments)(
        local=str(Path(data.path) / split),
        shuffle=train,
        shuffle_seed=data.shuffle_seed,
        batch_size=batch_size,
        num_canonical_nodes=1 if not train else None,
    )
    vocabulary = info.vocabulary
    special = [vocabulary.pad_id, vocabulary.unk_id, vocabulary.cls_id, vocabulary.sep_id, vocabulary.mask_id]
    masker = Masker(
        rate=data.mask_rate if train else data.eval_mask_rate,
        mask_id=vocabulary.mask_id,
        ordinary_ids=np.setdiff1d(np.arange(vocabulary.size), special),
        seed=seed if train else 0,
    )
    collator = Collator(
        data.sequence_length, masker, vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id, padded=padded
    )
    return Loader(
        documents,
        batch_size=batch_size,
        collate_fn=collator,
        drop_last=train,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
