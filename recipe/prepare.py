"""`python -m recipe.prepare YAML [key=value ...]`: text to a tokenizer, MDS shards and `dataset.json`.

The unit of work is a `Part` (a file, a shard of a hub dataset, a slice of the embedded corpus): one process reads it
from start to end and writes `SPLIT/part-NNNNN`, independent of every other. Everything is written into `OUT.partial`,
which is renamed once it is whole; a run that was killed is continued there, and several machines can share it
(`shard_of`). `python -m recipe.prepare inspect DIR` shows what a dataset holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
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

from tqdm import tqdm

from recipe.config import PrepareConfig, exit_status, run_main, to_dict
from recipe.data import duplicates, histogram, inspection, parts, shards, sources, tokenizer
from recipe.data.parts import Job
from recipe.data.pool import resolve
from recipe.data.shards import DatasetInfo, Lengths, SourceInfo, Vocabulary
from recipe.data.sources import Part, Rejected
from recipe.errors import UserError

if TYPE_CHECKING:
    from transformers import BertTokenizerFast

TRAIN, VALIDATION = "train", "validation"
MAX_LENGTH = 2**16 - 1  # tokens of a record
_PACKAGES = ("tokenizers", "transformers", "mosaicml-streaming", "datasets", "pyarrow", "numpy")


def prepare(config: PrepareConfig) -> DatasetInfo | None:
    """Write the dataset that `config` describes, or return the finished one that is already there.

    A run that was killed is continued. With `shard_of`, only this machine's parts are written, and None is returned: a run
    without it, once the machines are done, writes what is missing, merges and finishes.

    Raises:
        UserError: before anything is written for what can be known then; later for damaged files, a full disk, text without
            a single document. `out` appears when it is whole, finished parts wait in `out.partial`.
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
    all_parts = {key: sources.parts(source, processes) for key, source in _sources(config).items()}
    partial = out.with_name(f"{out.name}.partial")
    with _claimed(partial, config, origins):
        vocabulary = _vocabulary(config, existing_tokenizer, all_parts[TRAIN], partial)
        jobs = {key: _jobs(config, key, found, partial) for key, found in all_parts.items()}
        mine = {key: _share_of(config, of_source) for key, of_source in jobs.items()}
        if config.drop_duplicates:  # validation's documents come first, so that training loses its copies of them
            duplicates.mark(sum(reversed(jobs.values()), []), sum(reversed(mine.values()), []), processes)
        for key, of_source in mine.items():
            missing = [job for job in of_source if not parts.is_whole(job)]
            if len(missing) < len(of_source):
                print(f"{key}: {len(of_source) - len(missing)} of {len(of_source)} parts are there already", flush=True)
            for _ in parts.run(parts.write_part, missing, processes, key):
                pass
        if config.shard_of:
            print(f"share {config.shard_of} is written; when every share is, run this without shard_of to merge them")
            return None
        info = _finish(config, vocabulary, origins, jobs, partial)
    _report(info, out, time.monotonic() - started)
    return info


@contextlib.contextmanager
def _claimed(partial: Path, config: PrepareConfig, origins: dict[str, Any]) -> Iterator[None]:
    """Hold the folder of an unfinished preparation, which must be of the same one.

    Runs with `shard_of` share it, a run without it has it alone.
    """
    state, plan = parts.state_folder(partial), _plan(config, origins)
    file = state / "plan.json"
    remedy = f"remove {partial}, or choose another `out`"
    if partial.exists() and any(partial.iterdir()) and not state.is_dir():
        raise UserError(f"{partial}: is in the way and no unfinished preparation; {remedy}")
    if file.is_file() and (found := json.loads(file.read_text("utf-8"))) != plan:
        different = sorted(key for key in plan if plan[key] != found.get(key))
        raise UserError(
            f"{partial}: holds an unfinished preparation of other settings or text (`{'`, `'.join(different)}`); {remedy}"
        )
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if config.shard_of else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{partial}: another run is at work on it; wait for it, then run this again") from None
        if not file.is_file():
            parts.write_whole(file, lambda draft: draft.write_text(json.dumps(plan), "utf-8"))
        try:
            yield
        except UserError:
            if not config.shard_of and not any(state.glob("*-*.json")):  # not one part to go on with
                shutil.rmtree(partial, ignore_errors=True)  # `_finish` may have done so
            raise


def _plan(config: PrepareConfig, origins: dict[str, Any]) -> dict[str, Any]:
    """What the bytes of the parts depend on. A part knows its own file's size; where it depends on every file, all count."""
    plan = _identity(to_dict(config)) | {"packages": _packages(), "text": origins}
    given = config.tokenizer.vocab_file or config.tokenizer.name
    if given and not config.drop_duplicates:
        plan["text"] = {
            key: [file["path"] for file in origin["files"]] if "files" in origin else origin
            for key, origin in origins.items()
        }
    return plan


def _packages() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def _jobs(config: PrepareConfig, key: str, found: list[Part], partial: Path) -> list[Job]:
    splits = (key,) if config.validation else (TRAIN, VALIDATION)
    return [Job(part, key, i, splits, config.validation_fraction, config, partial) for i, part in enumerate(found)]


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
    if config.max_tokens > MAX_LENGTH:
        raise UserError(f"`max_tokens` is {config.max_tokens}; at most {MAX_LENGTH:,}, lengths are stored as uint16")
    if config.long_documents not in ("truncate", "split"):
        raise UserError(f"`long_documents` is {config.long_documents}; give truncate or split")
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


def _existing(config: PrepareConfig, origins: dict[str, Any]) -> DatasetInfo | None:
    """The dataset at `out` if it is the one asked for, None if there is nothing; anything else is an error."""
    out = Path(config.out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    remedy = f"choose another `out`, or remove {out}"
    if not (out / "dataset.json").is_file():
        raise UserError(f"{out}: exists and holds no dataset; {remedy}")
    info = shards.read_info(out)
    # a key that is newer than the dataset had its default's meaning then
    wanted, found = _identity(to_dict(config)), _identity(to_dict(PrepareConfig()) | info.config)
    different = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if different:
        raise UserError(f"{out}: holds a dataset of another configuration (`{'`, `'.join(different)}`); {remedy}")
    if {key: source.origin for key, source in info.sources.items()} != origins:
        raise UserError(f"{out}: its text has changed since (files, sizes or package versions); {remedy}")
    return info


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What the bytes of a dataset depend on."""
    return {key: value for key, value in config.items() if key not in ("out", "processes", "shard_of")}


def _train_tokenizer(config: PrepareConfig, train: list[Part]) -> BertTokenizerFast:
    with tqdm(desc="sample for the tokenizer", unit=" documents", leave=False) as bar:
        texts = []
        for text in _sample(config, train):
            texts.append(text)
            bar.update()
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
    config: PrepareConfig, existing: BertTokenizerFast | None, train: list[Part], partial: Path
) -> Vocabulary:
    """Save the tokenizer and say what it is, unless a run before this one has done so."""
    state = parts.state_folder(partial)
    file, draft = state / "vocabulary.json", state / f"tokenizer.{os.getpid()}"
    if file.is_file():
        return Vocabulary(**json.loads(file.read_text("utf-8")))
    used = existing or _train_tokenizer(config, train)
    tokenizer.save(used, draft)
    with parts.alone(state / "tokenizer.lock"):
        if not (partial / "tokenizer").exists():  # another machine's is the same, byte for byte
            draft.rename(partial / "tokenizer")
    vocabulary = Vocabulary(
        size=max(used.get_vocab().values()) + 1,
        lowercase=bool(used.do_lower_case),
        sha256=hashlib.sha256((partial / "tokenizer" / "vocab.txt").read_bytes()).hexdigest(),
        pad_id=used.pad_token_id,
        unk_id=used.unk_token_id,
        cls_id=used.cls_token_id,
        sep_id=used.sep_token_id,
        mask_id=used.mask_token_id,
    )
    parts.write_whole(file, lambda draft: draft.write_text(json.dumps(dataclasses.asdict(vocabulary)), "utf-8"))
    return vocabulary


def _finish(
    config: PrepareConfig,
    vocabulary: Vocabulary,
    origins: dict[str, Any],
    jobs: dict[str, list[Job]],
    partial: Path,
) -> DatasetInfo:
    """Merge the parts, describe the whole, and give it its name."""
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
                shutil.rmtree(partial)  # there is nothing in it to go on with
                raise UserError(_no_documents(split, key, rejected[key]))
            shards.merge_parts(partial, split, len(of_source))
            parts.merge_lengths(of_source, split, records)
    info = DatasetInfo(
        vocabulary=vocabulary,
        max_tokens=config.max_tokens,
        splits={split: of_split.info() for split, of_split in lengths.items()},
        sources={key: SourceInfo(origins[key], dict(r.counts), r.examples) for key, r in rejected.items()},
        config=to_dict(config),
        packages=_packages(),
    )
    histogram.draw(lengths, partial / histogram.NAME)
    shards.write_info(info, partial)
    shutil.rmtree(parts.state_folder(partial))
    out = Path(config.out)
    if out.exists():
        out.rmdir()  # an empty one, `_existing` has checked
    partial.rename(out)
    return info


def _no_documents(split: str, key: str, rejected: Rejected) -> str:
    if split != key:
        return "the validation split is empty: too few documents; raise `validation_fraction` or give `validation`"
    reasons = ", ".join(f"{count} {kind}" for kind, count in rejected.counts.items()) or "nothing in it"
    first = next(iter(rejected.examples.values()), [""])[0]
    return f"`{key}`: not one document ({reasons}; first at {first}); look at the files and at {key}.text_key"


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
    """`YAML [key=value ...]`, or `inspect DIR`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its processes end with it
    words = sys.argv[1:]
    if words[:1] == ["inspect"]:
        return exit_status(lambda: inspection.main(words[1:]))
    return run_main(PrepareConfig, prepare)


if __name__ == "__main__":
    raise SystemExit(main())
