"""`python -m recipe.prepare YAML [key=value ...]`: text to a tokenizer, MDS shards and `dataset.json`.

The unit of work is a `Part` (a file, a shard of a hub dataset, a slice of the embedded corpus): one process reads it
from start to end and writes `SPLIT/part-NNNNN`, independent of every other. Everything is written into `OUT.partial`,
which is renamed once it is whole, or with an `out` such as s3://BUCKET/FOLDER uploaded part by part; a run that was killed is
continued, and several machines can share the work (`shard_of`). `python -m recipe.prepare inspect DIR` shows what a dataset
holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.config import PrepareConfig, Source, run_main, to_dict
from recipe.corpus import doc_pairs, duplicates, histogram, inspection, ownership, parts, sources
from recipe.corpus.parts import Job
from recipe.corpus.sources import Part, Rejected
from recipe.data import shards, storage, tokenizer
from recipe.data.shards import DatasetInfo, Lengths, SourceInfo, Vocabulary
from recipe.data.storage import Mirror
from recipe.errors import UserError, end, exit_status
from recipe.settings import check_values
from recipe.system.files import locked, write_whole
from recipe.system.processes import resolve
from recipe.system.progress import ProgressLine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TRAIN, VALIDATION = "train", "validation"


def prepare(config: PrepareConfig) -> DatasetInfo | None:
    """Write the dataset that `config` describes, or return the finished one that is already there.

    A run that was killed is continued. With `shard_of`, only this machine's parts are written, and None is returned: a run
    without it, once the machines are done, writes what is missing, merges and finishes.

    Raises:
        UserError: before anything is written for what can be known then; later for damaged files, a full disk, a store that
            fails, text without a single document. `out` appears when it is whole, finished parts wait in `out.partial`.
    """
    started = time.monotonic()
    _check(config)
    origins = {key: sources.describe(source) for key, source in _sources(config).items()}
    existing = ownership.finished(config, origins)
    if existing:
        print(f"{config.out}: already prepared from this configuration and text, nothing to do")
        if config.tasks and not (Path(config.tasks) / doc_pairs.FILE).is_file():
            _write_tasks(config)
        _report(existing, config.out)
        return existing
    existing_tokenizer = tokenizer.load(config.tokenizer)
    all_parts = {key: sources.parts(source, resolve(config.processes)) for key, source in _sources(config).items()}
    with ownership.owned(config, ownership.plan(config, origins)) as mirror:
        try:
            if config.tasks and not config.shard_of:
                _write_tasks(config)
            info = _make(config, existing_tokenizer, all_parts, origins, mirror)
        except OSError as error:
            raise (parts.not_written(error, mirror.local) or error) from None
    if info:
        _report(info, config.out, time.monotonic() - started)
    return info


def _make(
    config: PrepareConfig,
    existing_tokenizer: PreTrainedTokenizerFast | None,
    all_parts: dict[str, list[Part]],
    origins: dict[str, Any],
    mirror: Mirror,
) -> DatasetInfo | None:
    """Tokenizer, copies, parts and, without `shard_of`, the whole."""
    processes = resolve(config.processes)
    vocabulary = _vocabulary(config, existing_tokenizer, all_parts[TRAIN], mirror)
    jobs = {key: _jobs(config, key, found, mirror) for key, found in all_parts.items()}
    mine = {key: _share_of(config, of_source) for key, of_source in jobs.items()}
    if config.drop_duplicates:  # validation's documents come first, so that training loses its copies of them
        duplicates.mark(sum(reversed(jobs.values()), []), sum(reversed(mine.values()), []), processes)
    for key, of_source in mine.items():
        whole = parts.are_whole(of_source)
        there = [job for job, is_whole in zip(of_source, whole, strict=True) if is_whole]
        missing = [job for job, is_whole in zip(of_source, whole, strict=True) if not is_whole]
        if there:
            print(f"{key}: {len(there)} of {len(of_source)} parts are there already", flush=True)
        parts.run(parts.write_part, missing, processes, key, there)
    if config.shard_of:
        print(f"share {config.shard_of} is written; when every share is, run this without shard_of to merge them")
        return None
    return _finish(config, vocabulary, origins, jobs, mirror)


def _write_tasks(config: PrepareConfig) -> None:
    """Of all entries that the split holds out, also where `max_documents` keeps most of them out of the dataset."""
    whole = dataclasses.replace(config, train=Source(embedded=config.train.embedded))
    print(f"minimal pairs of held-out documentation -> {doc_pairs.write(Path(config.tasks), whole)}", flush=True)


def _jobs(config: PrepareConfig, key: str, found: list[Part], mirror: Mirror) -> list[Job]:
    splits = (key,) if config.validation else (TRAIN, VALIDATION)
    return [Job(part, key, i, splits, config.validation_fraction, config, mirror) for i, part in enumerate(found)]


def _share_of(config: PrepareConfig, jobs: list[Job]) -> list[Job]:
    """This machine's parts."""
    if not config.shard_of:
        return jobs
    index, count = map(int, config.shard_of.split("/"))
    return jobs[index - 1 :: count]


def _sources(config: PrepareConfig) -> dict[str, Any]:
    return {TRAIN: config.train} | ({VALIDATION: config.validation} if config.validation else {})


def _check(config: PrepareConfig) -> None:
    """Every mistake that can be found without reading the text."""
    check_values(config)
    if not storage.is_remote(config.out) and set(config.out) & set("#?"):
        raise UserError(f"`out: {config.out}`: give a folder without # and ?")
    if config.work and not storage.is_remote(config.out):
        raise UserError(
            f"`work` is {config.work}: it is for an `out` in an object store; a local one is made beside itself"
        )
    if config.tasks and not (config.train.embedded and config.validation is None):
        raise UserError("`tasks` are made of the embedded corpus: leave it out, or give train.embedded=docstrings only")
    if config.tasks and Path(config.out).resolve() in [
        Path(config.tasks).resolve(),
        *Path(config.tasks).resolve().parents,
    ]:
        raise UserError(f"`tasks` is {config.tasks}, inside `out`, which is written as a whole; give another folder")
    if config.validation == config.train:
        raise UserError("`validation` is the same text as `train`; leave it out to hold out `validation_fraction`")
    if config.shard_of is not None:
        match = re.fullmatch(r"(\d+)/(\d+)", config.shard_of)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(
                f"`shard_of` is {config.shard_of}; give this machine's number and how many there are, as 2/4"
            )
    tokenizer.check(config.tokenizer)
    for key, source in _sources(config).items():
        sources.check(source, key)
    if config.validation and config.validation.files and config.train.files:
        both = set(sources.files(config.train)) & set(sources.files(config.validation))
        if both:
            raise UserError(f"{min(both)}: is in `train.files` and in `validation.files`; narrow one of the globs")


def _train_tokenizer(config: PrepareConfig, train: list[Part]) -> PreTrainedTokenizerFast:
    texts: list[str] = []
    line = ProgressLine(sys.stderr, lambda: f"sample for the tokenizer: {len(texts):,} documents")
    try:
        for text in _sample(config, train):
            texts.append(text)
            line.show()
    finally:
        line.clear()
    if not texts:
        raise UserError("`train`: no document to train a tokenizer on; look at the files, or give tokenizer.vocab_file")
    print(f"training a vocabulary of {config.tokenizer.vocab_size:,} on {len(texts):,} documents", flush=True)
    return tokenizer.train(texts, config.tokenizer)


def _sample(config: PrepareConfig, train: list[Part]) -> Iterator[str]:
    """The leading training documents of every part, in equal shares; parts in hash order, should there be too many.

    Only the heads are read: a whole pass over a web corpus, for a vocabulary, would cost hours.
    """
    left = config.tokenizer.sample_documents
    salt = str(config.seed).encode()
    ordered = sorted(train, key=lambda part: hashlib.blake2b(part.name.encode(), key=salt).digest())
    for i, part in enumerate(ordered):
        share = math.ceil(left / (len(ordered) - i))
        for text in sources.documents(part, Rejected()):
            if share == 0:
                break
            if config.validation or not sources.held_out(text, config.validation_fraction, config.seed):
                yield text
                share -= 1
                left -= 1


def _vocabulary(
    config: PrepareConfig, existing: PreTrainedTokenizerFast | None, train: list[Part], mirror: Mirror
) -> Vocabulary:
    """Save the tokenizer and say what it is, unless a run before this one has done so."""
    local, files = mirror.local, [f"tokenizer/{file}" for file in tokenizer.FILES]
    if mirror.pull(parts.VOCABULARY):
        mirror.pull_all(files)
        return parts.read_vocabulary(local)
    used = existing or _train_tokenizer(config, train)
    draft = local / parts.STATE / f"tokenizer.{os.getpid()}"
    tokenizer.save(used, draft)
    with locked(local / parts.STATE / "tokenizer.lock"):
        if not (local / "tokenizer").exists():  # another machine's is the same, byte for byte
            draft.rename(local / "tokenizer")
    vocabulary = tokenizer.describe(used, local / "tokenizer")
    mirror.push(*(name for name in files if (local / name).is_file()))
    write_whole(local / parts.VOCABULARY, json.dumps(dataclasses.asdict(vocabulary)))
    mirror.push(parts.VOCABULARY)
    return vocabulary


def _finish(
    config: PrepareConfig,
    vocabulary: Vocabulary,
    origins: dict[str, Any],
    jobs: dict[str, list[Job]],
    mirror: Mirror,
) -> DatasetInfo:
    """Merge the parts, describe the whole, and give it its name."""
    local = mirror.local
    parts.gather(sum(jobs.values(), []))
    lengths, rejected = {}, {}
    for key, of_source in jobs.items():
        rejected[key] = Rejected()
        lengths |= {split: Lengths(config.max_tokens) for split in of_source[0].splits}
        for job in of_source:
            part_lengths, part_rejected = parts.read_part(job)
            rejected[key].merge(part_rejected)
            for split, of_split in part_lengths.items():
                lengths[split].merge(of_split)
        for split in of_source[0].splits:
            records = int(lengths[split].histogram.sum())
            if not records:
                shutil.rmtree(local)  # there is nothing in it to go on with
                raise UserError(_no_documents(split, key, rejected[key]))
            shards.merge_parts(local, split, len(of_source))
            parts.merge_lengths(of_source, split, records)
    info = DatasetInfo(
        vocabulary=vocabulary,
        max_tokens=config.max_tokens,
        splits={split: of_split.info() for split, of_split in lengths.items()},
        sources={key: SourceInfo(origins[key], dict(r.counts), r.examples) for key, r in rejected.items()},
        config=to_dict(config),
        packages=ownership.packages(),
        dtype=vocabulary.dtype,
    )
    histogram.draw(lengths, local / histogram.NAME)
    shards.write_info(info, local)
    of_splits = [f"{split}/{name}" for split in lengths for name in ("index.json", shards.LENGTHS)]
    mirror.push(*of_splits, histogram.NAME, ownership.INFO)  # the last one says that all is there
    if not mirror.remote:
        shutil.rmtree(local / parts.STATE)
        out = Path(config.out)
        if out.exists():
            out.rmdir()  # an empty one, `ownership.finished` has checked
        local.rename(out)
    return info


def _no_documents(split: str, key: str, rejected: Rejected) -> str:
    if split != key:
        return "the validation split is empty: too few documents; raise `validation_fraction` or give `validation`"
    reasons = ", ".join(f"{count} {kind}" for kind, count in rejected.counts.items()) or "nothing in it"
    first = next(iter(rejected.examples.values()), [""])[0]
    return f"`{key}`: not one document ({reasons}; first at {first}); look at the files and at {key}.text_key"


def _report(info: DatasetInfo, out: str, seconds: float | None = None) -> None:
    """Print what the dataset holds, and what was left out of it."""
    took = "" if seconds is None else f" in {seconds:.0f} s"
    inspection.print_vocabulary(out, info, took)
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
    """`YAML [key=value ...]`, or `inspect DIR`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its processes end with it
    words = sys.argv[1:]
    if words[:1] == ["inspect"]:
        return exit_status(lambda: inspection.main(words[1:]))
    return run_main(PrepareConfig, prepare)


if __name__ == "__main__":
    end(main)
