"""Texts, vocabularies and datasets that are made in a second, and loaders of them."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.soak_subjects import paragraphs
from recipe.config import Data, PrepareConfig, Source, Tokenizer
from recipe.data.cache import open_dataset
from recipe.data.sampler import Stage
from recipe.data.stream import Loader, open_loader
from recipe.data.tokenizer import SPECIAL
from recipe.prepare import prepare

WORDS = [
    "the",
    "cat",
    "cats",
    "dog",
    "sat",
    "on",
    "mat",
    "under",
    "tree",
    "while",
    "it",
    "rained",
    "and",
    "why",
    "birds",
]


def make_text(count: int, seed: int) -> list[str]:
    """Documents of up to 80 of WORDS, no two alike."""
    draw = random.Random(seed)
    return [f"Entry {seed} {i}. " + " ".join(draw.choices(WORDS, k=draw.randint(1, 80))) + "." for i in range(count)]


def write_text(file: Path, documents: Iterable[str]) -> None:
    """A `.jsonl` or `.jsonl.gz` file of these documents."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(gzip.compress(lines, 1) if file.suffix == ".gz" else lines)


def write_vocabulary(folder: Path, words: Iterable[str] = ("entry", ".", *WORDS)) -> Tokenizer:
    """A vocabulary that needs no training, as a configuration."""
    file = folder / "vocab.txt"
    file.write_text("".join(f"{entry}\n" for entry in (*SPECIAL, *words)))
    return Tokenizer(vocab_file=str(file))


def write_dataset(folder: Path, tokenizer: Tokenizer) -> Path:
    """`folder`/dataset, of the `.jsonl` files in `folder`, a tenth of whose documents are held out."""
    source = Source(files=[str(folder / "*.jsonl")])
    out = folder / "dataset"
    prepare(PrepareConfig(out=str(out), train=source, validation_fraction=0.1, tokenizer=tokenizer, processes=1))
    return out


def write_tiny_dataset(folder: Path) -> Path:
    """The same of the language reference's paragraphs: some 2,000 documents, a vocabulary of 1,024."""
    write_text(folder / "topics.jsonl", paragraphs())
    return write_dataset(folder, Tokenizer(vocab_size=1024))


def write_shards(folder: Path, shards: int, documents: int) -> Path:
    """The same of so many shards of about so many documents, all of WORDS."""
    for i in range(shards):
        write_text(folder / f"{i}.jsonl", make_text(documents, seed=i))
    return write_dataset(folder, write_vocabulary(folder))


def packed_copy(dataset: Path, folder: Path) -> Path:
    """A dataset as it was prepared, its shards still packed."""
    shutil.copytree(dataset, folder)
    for unpacked in folder.rglob("*.mds"):
        unpacked.unlink()
    return folder


def open_batches(
    data: Data,
    batch_size: int = 32,
    batching: str = "sequences",
    *,
    train: bool = True,
    workers: int = 0,
    seed: int = 17,
    run_documents: int | None = None,
    stages: Sequence[Stage] = (),
) -> Loader:
    """A loader as a run has it; `run_documents` where the masking rate changes."""
    info = open_dataset(data, (data.train_split, data.eval_split))
    return open_loader(
        data, info, train=train, batch_size=batch_size, seed=seed, batching=batching, workers=workers,
        run_documents=run_documents, stages=stages,
    )  # fmt: skip
