"""`python -m recipe.prepare inspect DIR`: what a prepared dataset holds, and a few of its documents as text.

DIR may be in an object store; of its shards only the first of each split is then fetched.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from recipe.data import shards, storage, tokenizer
from recipe.data.shard_files import read_index
from recipe.data.shards import DatasetInfo
from recipe.errors import UserError

_DOCUMENTS = 3  # of each split
_TOKENS = 60  # shown of each


def main(words: list[str]) -> None:
    """Print statistics and documents of the dataset in the folder that `words` names."""
    if len(words) != 1:
        raise UserError("inspect: give one folder, the `out` of a preparation")
    if not storage.is_remote(words[0]):
        show(words[0], Path(words[0]))
        return
    with tempfile.TemporaryDirectory() as folder:
        _fetch(words[0], Path(folder))
        show(words[0], Path(folder))


def _fetch(remote: str, folder: Path) -> None:
    """What `show` reads."""
    try:
        storage.fetch(remote, "dataset.json", folder)
    except storage.Absent:
        raise UserError(
            f"{remote}: holds no dataset.json; python -m recipe.prepare YAML writes a dataset there"
        ) from None
    storage.fetch(remote, "tokenizer/tokenizer.json", folder)
    info = shards.read_info(folder)
    for split in info.splits:
        storage.fetch(remote, f"{split}/index.json", folder)
        for shard in read_index(folder / split, info.dtype)[:1]:
            storage.fetch(remote, f"{split}/{(shard['zip_data'] or shard['raw_data'])['basename']}", folder)


def print_vocabulary(name: str, info: DatasetInfo, took: str = "") -> None:
    """Its size and case; on a second line why it is smaller than was asked for, if it was trained and is."""
    size, asked = info.vocabulary.size, info.config["tokenizer"]
    print(f"{name}: vocabulary {size:,}, {'lower case' if info.vocabulary.lowercase else 'cased'}{took}")
    if not (asked["vocab_file"] or asked["name"]) and size < asked["vocab_size"]:
        print(
            f"  fewer entries than the {asked['vocab_size']:,} asked for: no further pair of pieces occurs twice in the text it "
            f"was trained on (at most tokenizer.sample_documents={asked['sample_documents']:,}); more text gives more"
        )


def show(name: str, folder: Path) -> None:
    """Print what the dataset in this folder holds."""
    from recipe.data.documents import some_records  # brings in the streaming library, which takes seconds

    info = shards.read_info(folder)
    print_vocabulary(name, info)
    decoder = tokenizer.encoder(folder / "tokenizer")
    for name, split in info.splits.items():
        lengths = "  ".join(f"{key} {value:,}" for key, value in split.lengths.items())
        print(f"\n{name}: {split.documents:,} documents, {split.tokens:,} tokens; lengths: {lengths}")
        print(f"  cut at {info.max_tokens}: {split.truncated:.2%} of tokens lost; [UNK]: {split.unknown:.2%}")
        for number, tokens in some_records(folder, name, _DOCUMENTS, info.dtype):
            more = "" if len(tokens) <= _TOKENS else " ..."
            print(f"  {number:,} ({len(tokens):,} tokens): {decoder.decode(tokens[:_TOKENS].tolist())}{more}")
    for name, source in info.sources.items():
        for kind, count in source.rejected.items():
            print(f"\n{name}: {count:,} records left out, {kind}: {', '.join(source.rejected_examples[kind])}")
