"""`python -m recipe.prepare inspect DIR`: what a prepared dataset holds, and a few of its documents as text."""

from __future__ import annotations

from pathlib import Path

from recipe.data import shards, tokenizer
from recipe.errors import UserError

_DOCUMENTS = 3  # of each split
_TOKENS = 60  # shown of each


def main(words: list[str]) -> None:
    """Print statistics and documents of the dataset in the folder that `words` names."""
    if len(words) != 1:
        raise UserError("inspect: give one folder, the `out` of a preparation")
    folder = Path(words[0])
    info = shards.read_info(folder)
    vocabulary = info.vocabulary
    print(f"{folder}: vocabulary {vocabulary.size:,}, {'lower case' if vocabulary.lowercase else 'cased'}")
    decoder = tokenizer.encoder(folder / "tokenizer")
    for name, split in info.splits.items():
        lengths = "  ".join(f"{key} {value:,}" for key, value in split.lengths.items())
        print(f"\n{name}: {split.documents:,} documents, {split.tokens:,} tokens; lengths: {lengths}")
        print(f"  cut at {info.max_tokens}: {split.truncated:.2%} of tokens lost; [UNK]: {split.unknown:.2%}")
        for number, tokens in shards.some_records(folder, name, _DOCUMENTS):
            more = "" if len(tokens) <= _TOKENS else " ..."
            print(f"  {number:,} ({len(tokens):,} tokens): {decoder.decode(tokens[:_TOKENS].tolist())}{more}")
    for name, source in info.sources.items():
        for kind, count in source.rejected.items():
            print(f"\n{name}: {count:,} records left out, {kind}: {', '.join(source.rejected_examples[kind])}")
