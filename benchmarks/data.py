"""`python -m benchmarks.data [key=value ...]`: what preparation and the loader do on one core, against what they cannot beat.

Preparation is compared with the tokenizer alone on the same text, the loader with tokenising the text while training. One
process, one thread: the figures are of a core. Keys: `text` (a glob of C4-like files), `documents`, `batches`, `out` (JSON).
"""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipe.config import Data, PrepareConfig, Source, exit_status
from recipe.config import Tokenizer as TokenizerSettings
from recipe.cost.records import provenance
from recipe.data import sources, tokenizer
from recipe.data.batch import count_tokens
from recipe.data.packing import EpochOrder, Packer
from recipe.data.shards import DatasetInfo, read_info
from recipe.data.sources import Part, Rejected
from recipe.data.stream import open_loader
from recipe.errors import UserError
from recipe.prepare import prepare

CHUNK = 256  # documents that are tokenised at a time, as in preparation
BATCH = 256  # sequences
LOADERS = (
    ("sequences", "token"), ("sequences", "word"), ("sequences", "span"), ("tokens", "token"), ("padded", "token"),
)  # fmt: skip
C4_DOCUMENTS, C4_FILES = 364_868_892, 1_024  # English, training
RESUME_AT_TOKENS = 1_000_000_000


@dataclass(frozen=True)
class Settings:
    text: str = "../shared/data/corpus/books-train.00000*.json.gz"
    documents: int = 6_000
    batches: int = 60
    out: str = "benchmarks/results/data.json"


def main(words: list[str]) -> None:
    settings = _settings(words)
    # read by the tokenizers library at its first call: everything below is of one core
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        texts = _texts(settings)
        results = {
            "preparation": _preparation(texts, Path(folder)),
            "loader": _loaders(texts, Path(folder), settings.batches),
        }
        results["resume"] = _resume()
    record = {"settings": dataclasses.asdict(settings), "cores": 1, "provenance": provenance(), **results}
    file = Path(settings.out)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    print(f"\n{table(record)}\n\n{file}")


def _settings(words: list[str]) -> Settings:
    values: dict[str, Any] = {}
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    for word in words:
        key, _, value = word.partition("=")
        if key not in kinds:
            raise UserError(f"`{word}`: known are {', '.join(f'{name}=...' for name in kinds)}")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise UserError(f"`{word}`: give a number") from None
    return Settings(**values)


def _texts(settings: Settings) -> list[str]:
    source = Source(files=[settings.text])
    parts = [Part(str(path), source) for path in sources.files(source)]
    documents = itertools.chain.from_iterable(sources.documents(part, Rejected()) for part in parts)
    return list(itertools.islice(documents, settings.documents))


def _preparation(texts: list[str], folder: Path) -> dict[str, Any]:
    """Documents and megabytes a second of `recipe.prepare` on one process, and of the tokenizer alone on the same text."""
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "text.json.gz").write_bytes(gzip.compress(lines.encode(), 6))
    config = PrepareConfig(
        out=str(folder / "data"),
        train=Source(files=[str(folder / "text.json.gz")]),
        tokenizer=TokenizerSettings(vocab_size=30522),
        processes=1,
    )
    prepare(config)
    trained = TokenizerSettings(name=str(folder / "data" / "tokenizer"))
    again = dataclasses.replace(config, out=str(folder / "again"), tokenizer=trained)
    whole = _seconds(lambda: prepare(again))  # a tokenizer that is there: its training is no part of the rate
    encoder = tokenizer.encoder(folder / "data" / "tokenizer")
    alone = _seconds(lambda: [encoder.encode_batch_fast(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)])
    mb = sum(len(text.encode()) for text in texts) / 1e6
    return {
        "documents": len(texts),
        "documents_per_s": len(texts) / whole,
        "mb_per_s": mb / whole,
        "tokenizer_mb_per_s": mb / alone,
        "share_of_tokenizer": alone / whole,
    }


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _loaders(texts: list[str], folder: Path, batches: int) -> list[dict[str, Any]]:
    info = read_info(folder / "data")
    rows = []
    for batching, masking in LOADERS:
        data = Data(path=str(folder / "data"), batching=batching, masking=masking)
        rows.append(_row(f"{batching}, {masking}", _epochs(data, info, batching), batches))
    rows.append(_row("text, tokenised while training", _from_text(texts, folder, info), batches))
    return rows


def _epochs(data: Data, info: DatasetInfo, batching: str) -> Iterator[dict]:
    loader = open_loader(data, info, train=True, batch_size=BATCH, seed=17, batching=batching, workers=0)
    while True:
        yield from loader


def _from_text(texts: list[str], folder: Path, info: DatasetInfo) -> Iterator[dict]:
    """Batches of the same kind, each text tokenised when it is its turn."""
    data = Data(path=str(folder / "data"))
    collate = open_loader(data, info, train=True, batch_size=BATCH, seed=17, batching="sequences", workers=0).collate_fn
    encoder = tokenizer.encoder(folder / "data" / "tokenizer")
    for start in itertools.cycle(range(0, len(texts) - BATCH + 1, BATCH)):
        encodings = encoder.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
        yield collate(
            [{"tokens": np.array(e.ids, np.uint16), "id": start + i, "epoch": 0} for i, e in enumerate(encodings)]
        )


def _row(name: str, batches: Iterator[dict], count: int) -> dict[str, Any]:
    """Real tokens a second over all batches, and over each: p20, p50, p80. The first, with the shards' unpacking, is left out.

    Streaming reads ahead in bursts, so the whole is what counts, and less than the median batch.
    """
    next(batches)
    tokens, seconds = [], []
    for _ in range(count):
        start = time.perf_counter()
        tokens.append(count_tokens(next(batches))["total"])
        seconds.append(time.perf_counter() - start)
    fifths = statistics.quantiles([n / s for n, s in zip(tokens, seconds, strict=True)], n=5, method="inclusive")
    each = {
        "p20": fifths[0],
        "p50": statistics.median(n / s for n, s in zip(tokens, seconds, strict=True)),
        "p80": fifths[3],
    }
    return {"loader": name, "tokens_per_s": {"all": sum(tokens) / sum(seconds), **each}}


def _resume() -> dict[str, Any]:
    """Seconds until the plan of the next packed batch of an epoch of C4's size is known, so many tokens in."""
    sizes = [C4_DOCUMENTS // C4_FILES] * C4_FILES
    lengths = np.broadcast_to(np.uint16(126), (sum(sizes),))  # each fills a sequence of 128
    packer, at = Packer(lengths, 128, bins=512), RESUME_AT_TOKENS // 128
    seconds = _seconds(lambda: next(packer.batches(EpochOrder(sizes, 17, 0), at)))
    return {"documents": sum(sizes), "at_document": at, "seconds": seconds}


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    made, resume = record["preparation"], record["resume"]
    rows = [
        "| one core | figure |",
        "|---|---|",
        f"| preparation | {made['documents_per_s']:,.0f} documents/s, {made['mb_per_s']:.2f} MB/s |",
        f"| the tokenizer alone | {made['tokenizer_mb_per_s']:.2f} MB/s; preparation is {made['share_of_tokenizer']:.0%} |",
        *(
            f"| loader: {row['loader']} | {row['tokens_per_s']['all'] / 1e6:.2f} M real tokens/s |"
            for row in record["loader"]
        ),
        f"| next batch's plan, {RESUME_AT_TOKENS / 1e9:.0f} B tokens into C4 | {resume['seconds']:.2f} s |",
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    raise SystemExit(exit_status(lambda: main(sys.argv[1:])))
