"""Keys of `python -m recipe.prepare`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from recipe.settings import MISSING, setting

# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045


@dataclass
class Source:
    """Where documents come from: exactly one of `files`, `dataset`, `embedded`."""

    files: list[str] = setting(
        [],
        "globs of .txt (documents separated by blank lines), .jsonl, .json, .csv or .parquet files; "
        "all but .parquet also .gz and .zst",
    )
    text_key: str = setting("text", "the field, or column, that holds a document")
    dataset: Optional[str] = setting(None, "a Hugging Face dataset, such as allenai/c4")
    subset: Optional[str] = setting(None, "the configuration of that dataset, such as en")
    split: str = setting("train", "the split of that dataset")
    embedded: Optional[str] = setting(None, "the documentation of the installed packages", choices=("docstrings",))
    max_documents: Optional[int] = setting(None, "stop after so many documents", least=1)


@dataclass
class Tokenizer:
    """An existing vocabulary (`vocab_file`), a hub name or folder (`name`), or one trained here on the training split."""

    vocab_file: Optional[str] = setting(None, "a WordPiece vocabulary, one entry a line")
    name: Optional[str] = setting(None, "any fast tokenizer's name on the Hugging Face hub, or its folder")
    vocab_size: int = setting(30522, "entries of a vocabulary that is trained here", least=256, most=2**16)
    lowercase: bool = setting(
        True, "of a vocabulary file or one that is trained here: text is lowercased, accents removed"
    )
    sample_documents: int = setting(200_000, "documents that the training of a vocabulary reads", least=1)


@dataclass
class PrepareConfig:
    """`python -m recipe.prepare`: text to a tokenizer and MDS shards."""

    out: str = setting(
        MISSING,
        "the dataset's folder, here or in an object store (s3://BUCKET/FOLDER, gs, oci, azure, azure-dl)",
        result=False,
    )
    work: Optional[str] = setting(
        None,
        "with `out` in an object store, the local folder for parts not yet uploaded; none: FOLDER.partial",
        result=False,
    )
    tasks: Optional[str] = setting(
        None, "with train.embedded, the folder of minimal pairs made of held-out entries (recipe.pairs)", result=False
    )
    train: Source = setting(Source, "the training text")
    validation: Optional[Source] = setting(
        None, "text for evaluation; absent: `validation_fraction` of the training documents"
    )
    validation_fraction: float = setting(
        0.01, "share of the training documents held out where there is no `validation`", above=0, below=1
    )
    tokenizer: Tokenizer = setting(Tokenizer, "the vocabulary")
    max_tokens: int = setting(
        1022, "longest record, without [CLS] and [SEP]; training cuts again to its own length", least=1, most=2**16 - 1
    )
    long_documents: str = setting(
        "truncate",
        "a document beyond `max_tokens` loses its end, or becomes several records",
        choices=("truncate", "split"),
    )
    drop_duplicates: bool = setting(False, "keep the first of equal documents, over all files; reads the text twice")
    processes: int = setting(0, "processes that tokenize", least=0, special="0 for one per core", result=False)
    shard_of: Optional[str] = setting(
        None, "2/4: write every fourth part, from the second; run without it to merge", result=False
    )
    shard_mib: int = setting(64, "size of a shard before compression, in MiB", least=1, below=4096)
    seed: int = setting(17, "of the held-out documents and of the vocabulary's sample")
