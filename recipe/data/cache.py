"""Where a dataset lies on this machine: in its own folder or, for one in an object store, in the cache that the config names."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from recipe.config import Data
from recipe.data import storage, tokenizer
from recipe.data.shards import LENGTHS, DatasetInfo, read_info
from recipe.errors import UserError
from recipe.system.files import locked

_INFO = "dataset.json"


def local_folder(data: Data) -> Path:
    """The dataset's folder on this machine, there or still to be filled.

    Raises:
        UserError: a remote dataset without a cache, or a cache without a remote dataset.
    """
    if not storage.is_remote(data.path):
        if data.cache or data.cache_gib:
            raise UserError(f"data.cache is for a dataset in an object store, and data.path={data.path}; leave it out")
        return Path(data.path)
    if not data.cache:
        raise UserError(f"data.path={data.path}: set data.cache to a local folder for what is read of it")
    if data.cache_gib < 0:
        raise UserError(f"data.cache_gib={data.cache_gib}: give a size, or 0 to keep all that was read")
    return Path(data.cache)


def open_dataset(data: Data, splits: Sequence[str]) -> DatasetInfo:
    """What the dataset is. Of a remote one all that training needs, but for the shards, is brought into the cache.

    Raises:
        UserError: no dataset, a split that it does not have, a cache that holds another one, a store that fails.
    """
    folder = local_folder(data)
    remote = storage.is_remote(data.path)
    if remote:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "description.lock"):  # of ranks, and runs, that start together
            _fetch_info(data.path, folder)
            for name in tokenizer.files(read_info(folder).vocabulary):
                storage.fetch(data.path, f"tokenizer/{name}", folder)
    info = read_info(folder)
    for split in splits:
        info.split(split)
    if remote:
        with locked(folder / "description.lock"):
            for split in splits:
                for name in ("index.json", LENGTHS):
                    storage.fetch(data.path, f"{split}/{name}", folder)
    return info


def _fetch_info(remote: str, folder: Path) -> None:
    """Bring `dataset.json`, which says whether the cache is of this dataset."""
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        try:
            found = storage.fetch(remote, _INFO, Path(fresh))
        except storage.Absent:
            raise UserError(
                f"{remote}: holds no {_INFO}; python -m recipe.prepare YAML writes a dataset there"
            ) from None
        mine = folder / _INFO
        if mine.is_file() and mine.read_bytes() != found.read_bytes():
            raise UserError(
                f"{folder}: holds files of another dataset than {remote} is now; remove it, or set another data.cache"
            )
        found.replace(mine)
