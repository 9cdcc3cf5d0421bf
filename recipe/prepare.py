"""`python -m recipe.prepare YAML [key=value ...]`: text to a tokenizer, MDS shards and `dataset.json`.

The unit of work is a `Part` (a file, a shard of a hub dataset, a slice of the embedded corpus): one process reads it
from start to end and writes `SPLIT/part-NNNNN`, independent of every other. Everything is written into `OUT.partial`,
which is renamed once it is whole.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import itertools
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from recipe.config import PrepareConfig, run_main, to_dict
from recipe.data import shards, sources, tokenizer
from recipe.data.pool import CONTEXT, resolve, worker_pool
from recipe.data.shards import DatasetInfo, Lengths, ShardWriter, SourceInfo, Vocabulary
from recipe.data.sources import Part, Rejected
from recipe.errors import UserError

if TYPE_CHECKING:
    from transformers import BertTokenizerFast

TRAIN, VALIDATION = "train", "validation"
_CHUNK_DOCUMENTS = 256  # tokenized at a time
_PACKAGES = ("tokenizers", "transformers", "mosaicml-streaming", "datasets", "pyarrow", "numpy")


@dataclass(frozen=True)
class _Job:
    """What a process needs to turn one part into shards."""

    part: Part
    index: int  # of the part within its split
    splits: tuple[str, ...]  # (train, validation): by the hash of the text; one: all of it
    config: PrepareConfig
    vocabulary: Vocabulary
    folder: Path


_Done = tuple[dict[str, Lengths], Rejected]


def prepare(config: PrepareConfig) -> DatasetInfo:
    """Write the dataset that `config` describes, or return the finished one that is already there.

    Raises:
        UserError: before anything is written for what can be known then; later for damaged files and text without a
            single document. No half-written dataset is left at `out`.
    """
    started = time.monotonic()
    _check(config)
    out = Path(config.out)
    origins = {key: sources.describe(source) for key, source in _sources(config).items()}
    existing = _existing(config, origins)
    if existing:
        print(f"{out}: already prepared from this configuration and text, nothing to do")
        _report(existing, out)
        return existing
    existing_tokenizer = tokenizer.load(config.tokenizer)

    processes = resolve(config.processes)
    parts = {key: sources.parts(source, processes) for key, source in _sources(config).items()}
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        used = existing_tokenizer or _train_tokenizer(config, parts[TRAIN])
        vocabulary = _save_tokenizer(used, partial / "tokenizer")
        done = _write_shards(config, parts, vocabulary, partial, processes)
        info = _info(config, vocabulary, origins, done)
        shards.write_info(info, partial)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _report(info, out, time.monotonic() - started)
    return info


def _sources(config: PrepareConfig) -> dict[str, Any]:
    return {TRAIN: config.train} | ({VALIDATION: config.validation} if config.validation else {})


def _check(config: PrepareConfig) -> None:
    """Every mistake that can be found without reading the text."""
    for key, least in (("max_tokens", 1), ("processes", 0), ("shard_mib", 1)):
        if getattr(config, key) < least:
            raise UserError(f"`{key}` is {getattr(config, key)}; give at least {least}")
    if config.shard_mib >= 4096:
        raise UserError(f"`shard_mib` is {config.shard_mib}; a shard is below 4096 MiB, 64 is a good size")
    if "://" in config.out or set(config.out) & set("#?"):
        raise UserError(f"`out: {config.out}`: give a local folder without # and ?; copy it elsewhere afterwards")
    if config.validation is None and not 0 < config.validation_fraction < 1:
        raise UserError(
            f"`validation_fraction` is {config.validation_fraction}; give a share between 0 and 1, or `validation`"
        )
    if config.validation == config.train:
        raise UserError("`validation` is the same text as `train`; leave it out to hold out `validation_fraction`")
    tokenizer.check(config.tokenizer)
    for key, source in _sources(config).items():
        sources.check(source, key)
    if config.validation and config.validation.files and config.train.files:
        both = set(sources.files(config.train)) & set(sources.files(config.validation))
        if both:
            raise UserError(f"{min(both)}: is in `train.files` and in `validation.files`; narrow one of the globs")


def _existing(config: PrepareConfig, origins: dict[str, Any]) -> DatasetInfo | None:
    """The dataset at `out` if it is the one asked for, None if there is nothing; anything else is an error."""
    out = Path(config.out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    remedy = f"choose another `out`, or remove {out}"
    if not (out / "dataset.json").is_file():
        raise UserError(f"{out}: exists and holds no dataset; {remedy}")
    info = shards.read_info(out)
    wanted, found = _identity(to_dict(config)), _identity(info.config)
    different = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if different:
        raise UserError(f"{out}: holds a dataset of another configuration (`{'`, `'.join(different)}`); {remedy}")
    if {key: source.origin for key, source in info.sources.items()} != origins:
        raise UserError(f"{out}: its text has changed since (files, sizes or package versions); {remedy}")
    return info


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What the bytes of a dataset depend on."""
    return {key: value for key, value in config.items() if key not in ("out", "processes")}


def _train_tokenizer(config: PrepareConfig, parts: list[Part]) -> BertTokenizerFast:
    with tqdm(desc="sample for the tokenizer", unit=" documents", leave=False) as bar:
        texts = []
        for text in _sample(config, parts):
            texts.append(text)
            bar.update()
    if not texts:
        raise UserError("`train`: no document to train a tokenizer on; look at the files, or give tokenizer.vocab_file")
    print(f"training a vocabulary of {config.tokenizer.vocab_size:,} on {len(texts):,} documents", flush=True)
    return tokenizer.train(texts, config.tokenizer)


def _sample(config: PrepareConfig, parts: list[Part]) -> Iterator[str]:
    """The leading training documents of every part, in equal shares; parts in hash order, should there be too many.

    Only the heads are read: a whole pass over a web corpus, for a vocabulary, would cost hours.
    """
    left = config.tokenizer.sample_documents
    salt = str(config.seed).encode()
    ordered = sorted(parts, key=lambda part: hashlib.blake2b(part.name.encode(), key=salt).digest())
    for i, part in enumerate(ordered):
        share = math.ceil(left / (len(ordered) - i))
        for text in sources.documents(part, Rejected()):
            if share == 0:
                break
            if config.validation or not sources.held_out(text, config.validation_fraction, config.seed):
                yield text
                share -= 1
                left -= 1


def _save_tokenizer(used: BertTokenizerFast, folder: Path) -> Vocabulary:
    tokenizer.save(used, folder)
    return Vocabulary(
        size=max(used.get_vocab().values()) + 1,
        lowercase=bool(used.do_lower_case),
        sha256=hashlib.sha256((folder / "vocab.txt").read_bytes()).hexdigest(),
        pad_id=used.pad_token_id,
        unk_id=used.unk_token_id,
        cls_id=used.cls_token_id,
        sep_id=used.sep_token_id,
        mask_id=used.mask_token_id,
    )


def _write_shards(
    config: PrepareConfig, parts: dict[str, list[Part]], vocabulary: Vocabulary, folder: Path, processes: int
) -> dict[str, _Done]:
    """Write every part of every source, merge the indexes; returns counts and rejected records by source."""
    done = {}
    for key, of_source in parts.items():
        splits = (key,) if config.validation else (TRAIN, VALIDATION)
        jobs = [_Job(part, i, splits, config, vocabulary, folder) for i, part in enumerate(of_source)]
        lengths, rejected = {split: Lengths(config.max_tokens) for split in splits}, Rejected()
        for part_lengths, part_rejected in _run(jobs, processes, key):
            rejected.merge(part_rejected)
            for split in splits:
                lengths[split].merge(part_lengths[split])
        for split in splits:
            if not lengths[split].histogram.any():
                raise UserError(_no_documents(split, key, rejected))
            shards.merge_parts(folder, split, len(jobs))
        done[key] = (lengths, rejected)
    return done


def _no_documents(split: str, key: str, rejected: Rejected) -> str:
    if split != key:
        return "the validation split is empty: too few documents; raise `validation_fraction` or give `validation`"
    reasons = ", ".join(f"{count} {kind}" for kind, count in rejected.counts.items()) or "nothing in it"
    first = next(iter(rejected.examples.values()), [""])[0]
    return f"`{key}`: not one document ({reasons}; first at {first}); look at the files and at {key}.text_key"


def _run(jobs: list[_Job], processes: int, what: str) -> Iterator[_Done]:
    """Run jobs side by side, showing progress; yields their results in the order of the jobs."""
    workers = min(processes, len(jobs))
    counters = CONTEXT.Array("q", 3)
    # cores that no part occupies serve the threads of the tokenizers
    pool = worker_pool(workers, _share, (counters, processes // workers))
    with pool, tqdm(total=len(jobs), desc=what, unit=" parts") as bar:
        try:
            pending = [pool.submit(_write_part, job) for job in jobs]
            _watch(pending, counters, bar)
        except BrokenProcessPool:
            raise UserError("a process died, most likely out of memory; run again with a smaller `processes`") from None
        finally:
            counters[_STOP] = 1
            pool.shutdown(wait=True, cancel_futures=True)
    yield from (job.result() for job in pending)


def _watch(pending: list[futures.Future], counters: Any, bar: tqdm) -> None:
    """Update the bar until every job is done; raise the error of the first that fails."""
    started, left = time.monotonic(), set(pending)
    while left:
        finished, left = futures.wait(left, timeout=0.5, return_when=futures.FIRST_COMPLETED)
        mb_per_s = counters[_BYTES] / 1e6 / max(time.monotonic() - started, 1e-3)
        bar.set_postfix_str(f"{counters[_DOCUMENTS]:,} documents, {mb_per_s:.1f} MB/s", refresh=False)
        bar.update(len(finished))
        for job in finished:
            job.result()


# What processes share with the one that shows progress; `_STOP` tells them to give up.
_DOCUMENTS, _BYTES, _STOP = range(3)
_counters: Any = None


class _Stopped(Exception):
    """Another part failed, or the user interrupted."""


def _share(counters: Any, threads: int) -> None:
    global _counters
    _counters = counters
    if multiprocessing.parent_process():  # read by the tokenizers library, at its first call in a process
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(threads)


def _write_part(job: _Job) -> _Done:
    """Tokenize one part and write its shards, one folder a split."""
    config, rejected = job.config, Rejected()
    encoder = tokenizer.encoder(job.folder / "tokenizer")
    writers = {}
    for split in job.splits:
        folder = shards.part_folder(job.folder, split, job.index)
        writers[split] = ShardWriter(folder, config.max_tokens, job.vocabulary.unk_id, config.shard_mib)
    documents = sources.documents(job.part, rejected)
    while texts := list(itertools.islice(documents, _CHUNK_DOCUMENTS)):
        encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.ids:
                writers[_split(job, text)].write(encoding.ids)
            else:  # control characters and the like
                rejected.add("no tokens", f"{job.part.name}: {text[:20]!r}")
        _count(texts)
    for writer in writers.values():
        writer.finish()
    return {split: writer.lengths for split, writer in writers.items()}, rejected


def _split(job: _Job, text: str) -> str:
    if len(job.splits) == 1:
        return job.splits[0]
    return VALIDATION if sources.held_out(text, job.config.validation_fraction, job.config.seed) else TRAIN


def _count(texts: list[str]) -> None:
    with _counters.get_lock():
        _counters[_DOCUMENTS] += len(texts)
        _counters[_BYTES] += sum(len(text.encode()) for text in texts)
        if _counters[_STOP]:
            raise _Stopped


def _info(
    config: PrepareConfig, vocabulary: Vocabulary, origins: dict[str, Any], done: dict[str, _Done]
) -> DatasetInfo:
    return DatasetInfo(
        vocabulary=vocabulary,
        max_tokens=config.max_tokens,
        splits={split: lengths.info() for of_source, _ in done.values() for split, lengths in of_source.items()},
        sources={
            key: SourceInfo(origins[key], dict(rejected.counts), rejected.examples)
            for key, (_, rejected) in done.items()
        },
        config=to_dict(config),
        packages={name: importlib.metadata.version(name) for name in _PACKAGES},
    )


def _report(info: DatasetInfo, out: Path, seconds: float | None = None) -> None:
    """Print what the dataset holds, and what was left out of it."""
    took = "" if seconds is None else f" in {seconds:.0f} s"
    print(f"{out}: vocabulary {info.vocabulary.size:,}, {'lower case' if info.vocabulary.lowercase else 'cased'}{took}")
    for name, split in info.splits.items():
        print(
            f"  {name}: {split.documents:,} documents, {split.tokens:,} tokens, median {split.lengths['p50']}, "
            f"mean {split.lengths['mean']:.0f}, longest {split.lengths['max']}; cut at {info.max_tokens}: "
            f"{split.truncated:.1%} of tokens lost; [UNK]: {split.unknown:.2%}"
        )
    for name, source in info.sources.items():
        for kind, count in source.rejected.items():
            print(f"  {name}: {count:,} records left out, {kind}: {', '.join(source.rejected_examples[kind])}")


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that it cleans up as it does for Ctrl-C
    return run_main(PrepareConfig, prepare)


if __name__ == "__main__":
    sys.exit(main())
