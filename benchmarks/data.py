"""`python -m benchmarks.data text=GLOB vocabulary=FILE`: preparation and loader, beside what they cannot beat and what others do.

    corpus       the whole text prepared on every core, then streamed and hashed once through each batching
    preparation  one core, beside the tokenizer alone on the same text, in turns
    loader       real tokens/s of one core, by batching, masking and length, beside what tokenises while training
    resume       seconds to the first batch of a run that has seen a billion tokens
    memory       peak of a process over some text and over ten times as much

Keys: `text` (a glob of C4-like files), `vocabulary` (one entry per line), `documents` (of the parts that need not all), `seconds`
(of each row of the loader), `out` (JSON). Nothing else should run meanwhile.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.measurement import Stopwatch, in_turns, peak_mem_gib, ratios, spread, timed, write
from recipe.config import Data, PrepareConfig, Source
from recipe.config import Tokenizer as TokenizerSettings
from recipe.corpus import sources
from recipe.corpus.sources import Part, Rejected
from recipe.data import tokenizer
from recipe.data.batch import Samples, count_sequences, count_tokens
from recipe.data.packing import PackedBatchSampler
from recipe.data.sampler import EpochSampler
from recipe.data.shards import LENGTHS, DatasetInfo, read_info
from recipe.data.stream import Loader, open_loader
from recipe.errors import UserError, end, exit_status
from recipe.prepare import prepare
from recipe.system.processes import resolve

CHUNK = 256  # documents that are tokenised at a time, as in preparation
BATCH = 256  # sequences
ROUNDS = 5  # of preparation and the tokenizer, in turns
SEQUENCE_LENGTHS = (128, 512)
LOADERS = (
    ("sequences", "token"), ("sequences", "word"), ("sequences", "span"), ("tokens", "token"), ("padded", "token"),
)  # fmt: skip
BATCHINGS = ("sequences", "tokens", "padded")
RESUME_AT_TOKENS = 1_000_000_000
TIMES = 10  # as much text, for memory


@dataclass(frozen=True)
class Settings:
    text: str = ""
    vocabulary: str = ""
    documents: int = 6_000
    seconds: float = 5.0
    out: str = "benchmarks/results/data.json"


def main(words: list[str]) -> None:
    settings = _settings(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = _corpus(settings, folder)
        # read by the tokenizers library at its first call in a process: all that follows is of one core
        os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
        texts = _texts(settings)
        results = {
            "corpus": corpus,
            "preparation": _preparation(texts, settings, folder),
            "loader": _loaders(texts, settings, folder),
            "resume": _resume(folder),
            "memory": _memory(texts, settings, folder),
        }
    record = write(Path(settings.out), {"settings": dataclasses.asdict(settings), **results})
    print(f"\n{table(record)}\n\n{settings.out}")


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
    for key in ("text", "vocabulary"):
        if not values.get(key):
            raise UserError(f"{key}=...: give what to prepare, text=GLOB of C4-like files, and vocabulary=FILE for it")
    return Settings(**values)


def _texts(settings: Settings) -> list[str]:
    source = Source(files=[settings.text])
    parts = [Part(str(path), source) for path in sources.files(source)]
    documents = itertools.chain.from_iterable(sources.documents(part, Rejected()) for part in parts)
    return list(itertools.islice(documents, settings.documents))


def _config(settings: Settings, text: str, out: Path, processes: int) -> PrepareConfig:
    known = TokenizerSettings(vocab_file=settings.vocabulary)
    return PrepareConfig(out=str(out), train=Source(files=[text]), tokenizer=known, processes=processes)


def _corpus(settings: Settings, folder: Path) -> dict[str, Any]:
    """All of the text, prepared with a process a core, and every batching's epoch once, as a hash over all of its batches."""
    config = _config(settings, settings.text, folder / "corpus", processes=0)
    seconds, _ = timed(lambda: prepare(config))
    split = read_info(config.out).split("train")
    cores = resolve(0)
    return {
        "documents": split.documents,
        "tokens": split.tokens,
        "truncated": split.truncated,
        "cores": cores,
        "prepared_s": seconds,
        "documents_per_s_core": split.documents / seconds / cores,
        "epochs": [
            _epoch(config.out, batching, length) for length in SEQUENCE_LENGTHS for batching in BATCHINGS
        ],
    }  # fmt: skip


def _open(path: str | Path, batching: str, length: int, masking: str = "token", workers: int = 0) -> Loader:
    data = Data(path=str(path), batching=batching, masking=masking, sequence_length=length)
    info = read_info(path)
    return open_loader(data, info, train=True, batch_size=BATCH, seed=17, batching=batching, workers=workers)


def _epoch(path: str, batching: str, length: int) -> dict[str, Any]:
    digest, documents, tokens, slots, batches = hashlib.sha256(), 0, 0, 0, 0
    watch = Stopwatch("cpu")
    for batch in _open(path, batching, length, workers=1):
        for name in sorted(name for name, value in batch.items() if torch.is_tensor(value)):
            digest.update(batch[name].numpy().tobytes())
        documents, batches = documents + count_sequences(batch), batches + 1
        tokens, slots = tokens + count_tokens(batch)["total"], slots + batch["input_ids"].numel()
    watch.lap()
    return {
        "batching": batching,
        "sequence_length": length,
        "batches": batches,
        "documents": documents,
        "tokens": tokens,
        "filled": tokens / slots,
        "sha256": digest.hexdigest(),
        "seconds": watch.read()[0],
    }


def _preparation(texts: list[str], settings: Settings, folder: Path) -> dict[str, Any]:
    """`recipe.prepare` on one process, and the tokenizer alone on the same text, in turns."""
    _write_text(texts, folder / "text.json.gz")
    mb = sum(len(text.encode()) for text in texts) / 1e6
    folders = (folder / f"data-{number}" for number in itertools.count())

    def whole() -> float:
        config = _config(settings, str(folder / "text.json.gz"), next(folders), processes=1)
        return timed(lambda: prepare(config))[0]

    def alone() -> float:
        encoder = tokenizer.encoder(folder / "data-0" / "tokenizer")
        return timed(lambda: _tokenize(encoder, texts))[0]

    seconds = in_turns({"prepare": whole, "tokenizer": alone}, ROUNDS, warm_up=0)
    rates = {f"{name}_mb_per_s": [mb / s for s in values] for name, values in seconds.items()}
    measured = {**rates, "share": ratios(seconds["tokenizer"], seconds["prepare"], ROUNDS)}
    rounds = [dict(zip(measured, of_round, strict=True)) for of_round in zip(*measured.values(), strict=True)]
    median = {name: spread(values)["p50"] for name, values in measured.items()}
    documents_per_s = len(texts) / mb * median["prepare_mb_per_s"]
    return {"documents": len(texts), "documents_per_s": documents_per_s, **median, "rounds": rounds}


def _tokenize(encoder: Tokenizer, texts: list[str]) -> None:
    for start in range(0, len(texts), CHUNK):
        encoder.encode_batch_fast(texts[start : start + CHUNK], add_special_tokens=False)


def _write_text(texts: list[str], file: Path, times: int = 1) -> None:
    with gzip.open(file, "wt", 6, "utf-8") as stream:
        for _ in range(times):
            stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def _loaders(texts: list[str], settings: Settings, folder: Path) -> list[dict[str, Any]]:
    rows = []
    for length in SEQUENCE_LENGTHS:
        for batching, masking in LOADERS:
            batches = _forever(_open(folder / "corpus", batching, length, masking))
            rows.append(_row(f"{batching}, {masking}", length, batches, settings.seconds))
        info = read_info(folder / "corpus")
        ours = _from_text(texts, folder, info, length)
        rows.append(_row("this collator, tokenising while training", length, ours, settings.seconds))
        theirs = _hugging_face(texts, folder, length)
        rows.append(_row("Hugging Face's tokenizer and collator while training", length, theirs, settings.seconds))
    return rows


def _forever(loader: Loader) -> Iterator[dict]:
    while True:
        yield from loader


def _from_text(texts: list[str], folder: Path, info: DatasetInfo, length: int) -> Iterator[dict]:
    """Batches of the same kind, each text tokenised when it is its turn."""
    collate = _open(folder / "corpus", "sequences", length).dataset.stages[0].collate
    encoder = tokenizer.encoder(folder / "corpus" / "tokenizer")
    for start in itertools.cycle(range(0, max(len(texts) - BATCH, 0) + 1, BATCH)):
        encodings = encoder.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
        numbers = np.arange(start, start + len(encodings))
        yield collate(Samples([np.array(e.ids, np.uint16) for e in encodings], numbers, 0, 0))


def _hugging_face(texts: list[str], folder: Path, length: int) -> Iterator[dict]:
    """What the library's own examples do: tokenise, cut, pad, mask in its collator."""
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    fast = BertTokenizerFast.from_pretrained(folder / "corpus" / "tokenizer")
    collate = DataCollatorForLanguageModeling(fast, mlm_probability=0.3)
    for start in itertools.cycle(range(0, max(len(texts) - BATCH, 0) + 1, BATCH)):
        encoded = fast(
            texts[start : start + BATCH], truncation=True, max_length=length, return_special_tokens_mask=True
        )
        yield dict(collate([{key: encoded[key][i] for key in encoded} for i in range(len(encoded["input_ids"]))]))


def _row(name: str, length: int, batches: Iterator[dict], seconds: float) -> dict[str, Any]:
    """Real tokens a second over all batches, and over each: p20, p50, p80. The first, with the shards' unpacking, is left out."""
    next(batches)
    tokens, took = [], []
    while sum(took) < seconds or len(took) < 3:
        second, batch = timed(lambda: next(batches))
        took.append(second)
        # the library's own batches carry no counts
        tokens.append(count_tokens(batch)["total"] if "counts" in batch else int(batch["attention_mask"].sum()))
    rates = [n / s for n, s in zip(tokens, took, strict=True)]
    return {
        "loader": name,
        "sequence_length": length,
        "batches": len(took),
        "tokens_per_s": {"all": sum(tokens) / sum(took), **spread(rates)},
    }


def _resume(folder: Path) -> dict[str, Any]:
    """A dataset of more than a billion tokens, the corpus's shards listed again and again under other names, continued there."""
    many, tokens = _repeated(folder / "corpus", folder / "many", RESUME_AT_TOKENS)
    rows = []
    for batching in BATCHINGS:
        loader = _open(many, batching, 128)
        lengths = loader.dataset.documents.lengths
        seen = int(len(lengths) * RESUME_AT_TOKENS / tokens)  # a batch may begin at any document
        loader.dataset.load_state_dict({"epoch": 0, "sample_in_epoch": seen})
        seconds, _ = timed(lambda loader=loader: next(iter(loader)))
        rows.append({"batching": batching, "at_document": seen, "seconds": seconds})
    numbers = (block.numbers for block in EpochSampler([len(lengths)], None, 0).after(0))
    plan = PackedBatchSampler(lengths, 128, bins=512).batches(numbers, 0)
    list(itertools.islice(plan, 20))  # warm-up
    seconds, planned = timed(lambda: list(itertools.islice(plan, 20)))
    return {
        "documents": len(lengths),
        "tokens": tokens,
        "loaders": rows,
        "planning_documents_per_s": sum(len(p.numbers) for p in planned) / seconds,
    }


def _repeated(dataset: Path, out: Path, tokens: int) -> tuple[Path, int]:
    """The training split with its shards as often as it takes; every repetition is a folder of links."""
    split = read_info(dataset).split("train")
    times = tokens // split.tokens + 2
    index = json.loads((dataset / "train" / "index.json").read_text())
    shards = []
    (out / "train").mkdir(parents=True)
    for name in ("dataset.json", "tokenizer"):
        (out / name).symlink_to(dataset / name)
    for i in range(times):
        (out / "train" / str(i)).mkdir()
        for part in (dataset / "train").glob("part-*"):
            (out / "train" / str(i) / part.name).symlink_to(part)
        for shard in index["shards"]:
            files = {
                key: {**shard[key], "basename": f"{i}/{shard[key]['basename']}"} for key in ("raw_data", "zip_data")
            }
            shards.append({**shard, **files})
    (out / "train" / "index.json").write_text(json.dumps({**index, "shards": shards}))
    np.save(out / "train" / LENGTHS, np.tile(np.load(dataset / "train" / LENGTHS), times))
    return out, times * split.tokens


def _memory(texts: list[str], settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """The peak of fresh processes, because a peak never falls."""
    rows = []
    for times in (1, TIMES):
        file = folder / f"times-{times}.json.gz"
        _write_text(texts, file, times)
        config = _config(settings, str(file), folder / f"times-{times}", processes=1)
        rows.append({"what": "preparation", "documents": len(texts) * times, "peak_gib": _peak_gib(_prepare, config)})
    # beyond the shards of three blocks, which are mapped, nothing may grow
    for path, times in ((folder / "corpus", 1), (folder / "many", TIMES), (folder / "many", 2 * TIMES)):
        documents = read_info(folder / "corpus").split("train").documents * times
        for batching in BATCHINGS[:2]:
            peak = _peak_gib(_stream, path, batching, documents)
            rows.append({"what": f"loader, {batching}", "documents": documents, "peak_gib": peak})
    return rows


def _peak_gib(action: Callable[..., None], *arguments: Any) -> float:
    context = get_context("spawn")
    answer, question = context.Pipe(duplex=False)
    process = context.Process(target=_tell_peak, args=(question, action, arguments))
    process.start()
    question.close()
    try:
        return answer.recv()
    finally:
        process.join()


def _tell_peak(question: Any, action: Callable[..., None], arguments: tuple) -> None:
    action(*arguments)
    question.send(peak_mem_gib())


def _prepare(config: PrepareConfig) -> None:
    prepare(config)


def _stream(path: Path, batching: str, documents: int) -> None:
    for batch in _open(path, batching, 128):
        documents -= count_sequences(batch)
        if documents < BATCH * 8:
            return


def table(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    corpus, made, resume = record["corpus"], record["preparation"], record["resume"]
    size, deep = f"{corpus['documents']:,} documents, {corpus['tokens']:,} tokens", resume["tokens"] / 1e9
    rows = [("what", "figure"), ("---", "---")]
    rows.append((f"the whole text, {size}", f"prepared in {corpus['prepared_s']:.0f} s on {corpus['cores']} cores"))
    for e in corpus["epochs"]:
        held = f"{e['documents']:,} documents, {e['tokens']:,} real tokens, {e['filled']:.1%} of all places"
        rows.append((f"an epoch, {e['batching']}, {e['sequence_length']}", f"{held}; sha256 {e['sha256'][:12]}"))
    rate = f"{made['documents_per_s']:,.0f} documents/s, {made['prepare_mb_per_s']:.2f} MB/s"
    rows.append(("preparation, one core", rate))
    alone = f"{made['tokenizer_mb_per_s']:.2f} MB/s; preparation is {made['share']:.0%} of it"
    rows.append(("the tokenizer alone, one core", alone))
    for row in record["loader"]:
        rate = f"{row['tokens_per_s']['all'] / 1e6:.2f} M real tokens/s"
        rows.append((f"one core, {row['sequence_length']}: {row['loader']}", rate))
    for row in resume["loaders"]:
        what = f"first batch, {RESUME_AT_TOKENS / 1e9:.3g} B of {deep:.3g} B tokens in: {row['batching']}"
        rows.append((what, f"{row['seconds']:.2f} s"))
    planned = f"{resume['planning_documents_per_s']:,.0f} documents/s"
    rows.append(("packed batches planned, which every worker does for all ranks", planned))
    for row in record["memory"]:
        rows.append((f"peak memory, {row['what']}, {row['documents']:,} documents", f"{row['peak_gib']:.2f} GiB"))
    return "\n".join(f"| {what} | {figure} |" for what, figure in rows)


if __name__ == "__main__":
    end(lambda: exit_status(lambda: main(sys.argv[1:])))
