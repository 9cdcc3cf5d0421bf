"""Parts, the unit of work of a preparation: run side by side, each resumable, on one machine or on several.

A part is whole once its record stands in `state/`, which is written last. A part without one is written afresh, and one that
another process is writing is waited for, so machines that share a folder may even overlap.

    OUT.partial/state/plan.json             what is being prepared: parts of anything else are refused
    OUT.partial/state/train-00003.json      the record of a part: what it holds, what it left out
    OUT.partial/state/train-00003.SPLIT.npy lengths of its records
    OUT.partial/state/train-00003.drop.npy  which of its documents are copies (`recipe.data.duplicates`)
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from recipe.config import PrepareConfig
from recipe.data import shards, sources, tokenizer
from recipe.data.pool import CONTEXT, worker_pool
from recipe.data.shards import Lengths, ShardWriter
from recipe.data.sources import Part, Rejected
from recipe.errors import UserError

R = TypeVar("R")
_CHUNK_DOCUMENTS = 256  # tokenized at a time
DUPLICATE = "duplicate"  # why a document was left out


@dataclass(frozen=True)
class Job:
    """What a process needs to turn one part into shards."""

    part: Part
    key: str  # of its source: train, validation
    index: int  # of the part within its source
    splits: tuple[str, ...]  # (train, validation): by the hash of the text; one: all of it
    fraction: float  # of the documents that go to the second split
    config: PrepareConfig
    folder: Path

    def file(self, suffix: str) -> Path:
        """One of the part's files in `state/`."""
        return state_folder(self.folder) / f"{self.key}-{self.index:05d}.{suffix}"


Done = tuple[dict[str, Lengths], Rejected]


def state_folder(partial: Path) -> Path:
    return partial / "state"


def run(action: Callable[[Any], R], jobs: list[Any], processes: int, what: str) -> Iterator[R]:
    """Run `action` on every job side by side, showing progress; yields the results in the order of the jobs."""
    if not jobs:
        return
    workers = min(processes, len(jobs))
    counters = CONTEXT.Array("q", 4)
    # cores that no part occupies serve the threads of the tokenizers
    pool = worker_pool(workers, _share, (counters, processes // workers))
    with pool, tqdm(total=len(jobs), desc=what, unit=" parts") as bar:
        try:
            pending = [pool.submit(action, job) for job in jobs]
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
        bar.set_postfix_str(
            f"{counters[_DOCUMENTS]:,} documents, {counters[_REJECTED]:,} left out, {mb_per_s:.1f} MB/s", refresh=False
        )
        bar.update(len(finished))
        for job in finished:
            job.result()


# What processes share with the one that shows progress; `_STOP` tells them to give up.
_DOCUMENTS, _BYTES, _REJECTED, _STOP = range(4)
_counters: Any = None


class _Stopped(Exception):
    """Another part failed, or the user interrupted."""


def _share(counters: Any, threads: int) -> None:
    global _counters
    _counters = counters
    if multiprocessing.parent_process():  # read by the tokenizers library, at its first call in a process
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(threads)


def count(texts: list[str], rejected: int = 0) -> None:
    """Add to the progress line; ends this part if the run is to end."""
    with _counters.get_lock():
        _counters[_DOCUMENTS] += len(texts)
        _counters[_BYTES] += sum(len(text.encode()) for text in texts)
        _counters[_REJECTED] += rejected
    end_if_stopped()


def end_if_stopped() -> None:
    if _counters[_STOP]:
        raise _Stopped


@contextlib.contextmanager
def alone(lock: Path, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold this lock file; another process that holds it is waited for. The system frees a dead process's lock."""
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                while_waiting()
                time.sleep(0.2)
        yield


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file that appears under its name only when it is whole."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    write(draft)
    draft.replace(file)


def is_whole(job: Job) -> bool:
    """Whether this part, as its text is now, has been written."""
    try:
        return json.loads(job.file("json").read_text("utf-8"))["part"] == _identity(job)
    except FileNotFoundError:
        return False


def write_part(job: Job) -> Done:
    """Tokenize one part and write its shards, one folder a split, unless that has been done; returns its counts."""
    try:
        with alone(job.file("lock"), end_if_stopped):
            if not is_whole(job):
                _write(job)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{job.folder}: {error.strerror}; free some space and run the same command again, finished parts are kept"
            ) from None
        raise
    return read_part(job)


def _write(job: Job) -> None:
    config, rejected = job.config, Rejected()
    encoder = tokenizer.encoder(job.folder / "tokenizer")
    unk_id, windows = encoder.token_to_id("[UNK]"), config.long_documents == "split"
    writers = {}
    for split in job.splits:
        folder = shards.part_folder(job.folder, split, job.index)
        shutil.rmtree(folder, ignore_errors=True)  # a killed run's
        writers[split] = ShardWriter(folder, config.max_tokens, unk_id, config.shard_mib, windows)
    documents, reported = kept_documents(job, rejected), 0
    while texts := list(itertools.islice(documents, _CHUNK_DOCUMENTS)):
        encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.ids:
                writers[_split(job, text)].write(encoding.ids)
            else:  # control characters and the like
                rejected.add("no tokens", f"{job.part.name}: {text[:20]!r}")
        count(texts, rejected.counts.total() - reported)
        reported = rejected.counts.total()
    for split, writer in writers.items():
        writer.finish()
        lengths = np.array(writer.of_records, np.uint16)
        write_whole(job.file(f"{split}.npy"), lambda draft, lengths=lengths: save_array(draft, lengths))
    record = {
        "part": _identity(job),
        "splits": {s: [w.lengths.read_tokens, w.lengths.unknown_tokens] for s, w in writers.items()},
        "rejected": rejected.counts,
        "rejected_examples": rejected.examples,
    }
    write_whole(job.file("json"), lambda draft: draft.write_text(json.dumps(record), "utf-8"))


def save_array(file: Path, values: np.ndarray) -> None:
    with file.open("wb") as stream:  # np.save would add a suffix to a path
        np.save(stream, values)


def _identity(job: Job) -> dict[str, Any]:
    part = job.part
    size = Path(part.name).stat().st_size if part.source.files else None
    return {"name": part.name, "bytes": size, "shard": list(part.shard), "limit": part.limit}


def kept_documents(job: Job, rejected: Rejected) -> Iterator[str]:
    """The documents of a part, without those that are marked as copies."""
    documents = sources.documents(job.part, rejected)
    if not job.config.drop_duplicates:
        yield from documents
        return
    copies = np.load(job.file("drop.npy"))
    for copy, text in zip(copies, documents, strict=True):
        if copy:
            rejected.add(DUPLICATE, f"{job.part.name}: {text[:20]!r}")
        else:
            yield text


def _split(job: Job, text: str) -> str:
    if len(job.splits) == 1:
        return job.splits[0]
    return job.splits[sources.held_out(text, job.fraction, job.config.seed)]


def read_part(job: Job) -> Done:
    """The counts of a part that is whole, from its record."""
    record = json.loads(job.file("json").read_text("utf-8"))
    lengths = {}
    for split in job.splits:
        lengths[split] = Lengths(job.config.max_tokens)
        of_records = np.load(job.file(f"{split}.npy"))
        lengths[split].histogram += np.bincount(of_records, minlength=job.config.max_tokens + 1)
        lengths[split].read_tokens, lengths[split].unknown_tokens = record["splits"][split]
    return lengths, Rejected(Counter(record["rejected"]), record["rejected_examples"])


def merge_lengths(jobs: list[Job], split: str, records: int) -> None:
    """Write `lengths.npy` of a split from those of its parts, one part in memory at a time."""
    file = jobs[0].folder / split / shards.LENGTHS
    merged, start = np.lib.format.open_memmap(file, "w+", np.uint16, (records,)), 0
    for job in jobs:
        lengths = np.load(job.file(f"{split}.npy"))
        merged[start : start + len(lengths)] = lengths
        start += len(lengths)
    merged.flush()
