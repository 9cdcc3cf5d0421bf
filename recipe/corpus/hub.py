"""Datasets of the Hugging Face hub, or of a folder in its layout, streamed shard by shard; their faults in one line."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from typing import Any

from recipe.config import Source
from recipe.errors import UserError, one_line


def check(source: Source) -> None:
    """Raise a `UserError` for a dataset that cannot be reached or has no such field."""
    dataset = open_dataset(source)
    columns = dataset.column_names or list(next(iter(dataset), {}))
    if source.text_key not in columns:
        raise UserError(
            f"dataset {source.dataset}: no field `{source.text_key}`; it has {', '.join(columns)}: set text_key"
        )


def open_dataset(source: Source) -> Any:
    """The dataset, of which nothing has been read; it has `num_shards` and `shard`."""
    return _load(source.dataset, source.subset, source.split)


@functools.lru_cache(maxsize=4)  # the hub is asked a dozen things, and every part needs it
def _load(dataset: str, subset: str | None, split: str) -> Any:
    from datasets import load_dataset  # takes seconds, and only hub datasets need it

    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # it tells of every attempt; the last one is told below
    name = f"{dataset}{f' ({subset})' if subset else ''}, split {split}"
    try:
        return load_dataset(dataset, subset, split=split, streaming=True)
    except Exception as error:  # the library raises a dozen kinds: no network, no such dataset, subset or split
        raise UserError(f"dataset {name}: {one_line(error)}; check the name and that the hub can be reached") from None


def rows(source: Source, index: int, count: int) -> Iterator[dict[str, Any]]:
    """The records of one of `count` shards."""
    try:
        yield from open_dataset(source).shard(num_shards=count, index=index)
    except Exception as error:  # as above, after the library's own retries
        raise UserError(
            f"dataset {source.dataset} {index}: reading stopped: {one_line(error)}; run the same command again"
        ) from None
