"""Parts, the unit of work of a preparation: run side by side, each resumable, on one machine or on several.

A part is whole once its record stands in `state/`, which is written last: with a remote `out`, once the store has all else. A
part without one is written afresh. On one file system, a part that another process is writing is waited for; machines that
share nothing but a store may write one twice, and to the same bytes.

    OUT.partial/state/plan.json             what is being prepared: parts of anything else are refused
    OUT.partial/state/train-00003.json      the record of a part: what it holds, what it left out
    OUT.partial/state/train-00003.SPLIT.npy lengths of its records
    OUT.partial/state/train-00003.drop.npy  which of its documents are copies (`recipe.corpus.duplicates`)

With a remote `out` the same names lie in the store, and OUT.partial is a local folder for what is being made.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recipe.config import PrepareConfig
from recipe.corpus import sources
from recipe.corpus.progress import PartsProgress, Tally
from recipe.corpus.sources import Part, Position, Rejected, Unreadable
from recipe.data import shards, tokenizer
from recipe.data.shards import Lengths, ShardWriter, Vocabulary
from recipe.data.storage import Mirror
from recipe.errors import UserError
from recipe.system.files import DISK_FULL, READ_ONLY, locked, write_whole
from recipe.system.private import private
from recipe.system.processes import WorkerPool, end_if_stopped

_CHUNK_DOCUMENTS = 256  # tokenized at a time
_MOST_FAILURES = 20  # parts that cannot be read; beyond, it is not the files
STATE = "state"  # the folder of the records
VOCABULARY = f"{STATE}/vocabulary.json"  # what the tokenizer is, once there is one
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
    mirror: Mirror

    def name(self, suffix: str) -> str:
        """One of the part's files in `state/`."""
        return f"{STATE}/{self.key}-{self.index:05d}.{suffix}"

    def file(self, suffix: str) -> Path:
        """Its place on this machine."""
        return self.mirror.local / self.name(suffix)


Done = tuple[dict[str, Lengths], Rejected]


def run(
    action: Callable[[Job], object], jobs: list[Job], processes: int, what: str, before: Sequence[Job] = ()
) -> None:
    """Run `action` on every job side by side, showing progress; the jobs in `before` are done already.

    A part that cannot be read does not end the others.

    Raises:
        UserError: at once for what ends all of them, at the end for parts that could not be read.
    """
    if not jobs:
        return
    workers = min(processes, len(jobs))
    weight, done = (sum(sources.weight(job.part) for job in some) for some in (jobs, before))
    progress = PartsProgress(what, len(jobs) + len(before), weight + done, len(before), done)
    failures: dict[int, Unreadable] = {}
    try:
        # cores that no part occupies serve the threads of the tokenizers
        with WorkerPool(workers, _set_threads, (processes // workers,)) as pool:
            for place, future in pool.run(action, jobs, watch=progress.watch):
                try:
                    future.result()
                    progress.done += 1
                except Unreadable as error:
                    failures[place] = error
                    progress.fail(error)
                    if len(failures) == _MOST_FAILURES:
                        break
            if failures:
                more = f" (and {len(failures) - 1} more, named above)" if len(failures) > 1 else ""
                problem = f"{failures[min(failures)]}{more}"
                raise UserError(f"{problem}; then run the same command again, the other parts are kept")
    finally:
        progress.close()


def _set_threads(threads: int) -> None:
    if multiprocessing.parent_process():  # read by the tokenizers library, at its first call in a process
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
        os.environ["RAYON_NUM_THREADS"] = str(threads)


def are_whole(jobs: list[Job]) -> list[bool]:
    """Whether each part, as its text is now, has been written."""
    found = jobs[0].mirror.pull_all([job.name("json") for job in jobs]) if jobs else []
    return [there and _is_of(job, sources.size(job.part)) for job, there in zip(jobs, found, strict=True)]


def _is_of(job: Job, size: int | None) -> bool:
    return json.loads(job.file("json").read_text("utf-8"))["part"] == _identity(job, size)


def read_vocabulary(local: Path) -> Vocabulary:
    """That of the preparation at work in this folder."""
    return Vocabulary(**json.loads((local / VOCABULARY).read_text("utf-8")))


def write_part(job: Job) -> None:
    """Tokenize one part and write its shards, one folder a split, unless that has been done."""
    try:
        with locked(job.file("lock"), end_if_stopped):
            if not are_whole([job])[0]:
                _write(job)
    except OSError as error:
        raise (not_written(error, job.mirror.local) or error) from None


def not_written(error: OSError, folder: Path) -> UserError | None:
    """What to say where the disk is full, or nothing may be written into the folder any more."""
    if error.errno in DISK_FULL:
        remedy = "free some space"
    elif error.errno in READ_ONLY and str(error.filename).startswith(str(folder)):
        remedy = "make it writable"
    else:
        return None
    return UserError(f"{folder}: {error.strerror}; {remedy} and run the same command again, finished parts are kept")


def _write(job: Job) -> None:
    config, rejected, size = job.config, Rejected(), sources.size(job.part)
    encoder = tokenizer.encoder(job.mirror.local / "tokenizer")
    vocabulary, windows = read_vocabulary(job.mirror.local), config.long_documents == "split"
    writers, position = {}, Position()
    for split in job.splits:
        folder = shards.part_folder(job.mirror.local, split, job.index)
        shutil.rmtree(folder, ignore_errors=True)  # a killed run's
        writers[split] = ShardWriter(
            folder, config.max_tokens, vocabulary.unk_id, config.shard_mib, windows, vocabulary.dtype
        )
    documents, tally = kept_documents(job, rejected, position), Tally(job.part, rejected, position)
    while texts := list(itertools.islice(documents, _CHUNK_DOCUMENTS)):
        encodings = encoder.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            if ids := encoding.ids:
                writers[_split(job, text)].write(ids)
            else:  # control characters and the like
                rejected.add("no tokens", f"{job.part.name}: {text[:20]!r}")
        tally.add(texts)
    for split, writer in writers.items():
        writer.finish()
        lengths = np.array(writer.of_records, np.uint16)
        write_whole(job.file(f"{split}.npy"), lambda draft, lengths=lengths: save_array(draft, lengths))
    if sources.size(job.part) != size:
        raise Unreadable(f"{job.part.name}: has changed while it was read; wait until it is whole")
    record = {
        "part": _identity(job, size),
        "splits": {s: [w.lengths.read_tokens, w.lengths.unknown_tokens] for s, w in writers.items()},
        "rejected": rejected.counts,
        "rejected_examples": rejected.examples,
    }
    _publish(job, json.dumps(private(record)))
    tally.finish()


def _publish(job: Job, record: str) -> None:
    """Put the part into the store, if there is one, and last of all its record; its shards then need no more place here."""
    folders = [shards.part_folder(job.mirror.local, split, job.index) for split in job.splits]
    files = [file for folder in folders for file in sorted(folder.iterdir())]
    job.mirror.push(*(str(file.relative_to(job.mirror.local)) for file in files), *_lengths_names(job))
    write_whole(job.file("json"), record)
    job.mirror.push(job.name("json"))
    if job.mirror.remote:
        for file in files:
            file.unlink()


def _lengths_names(job: Job) -> list[str]:
    return [job.name(f"{split}.npy") for split in job.splits]


def gather(jobs: list[Job]) -> None:
    """Bring the small files of every part here: its lengths and its index."""
    names = [name for job in jobs for name in _lengths_names(job)]
    names += [f"{shards.part_name(split, job.index)}/index.json" for job in jobs for split in job.splits]
    for name, there in zip(names, jobs[0].mirror.pull_all(names), strict=True):
        if not there:
            raise UserError(f"{jobs[0].mirror}/{name}: is not there, and the part's record says so; prepare anew")


def save_array(file: Path, values: np.ndarray) -> None:
    with file.open("wb") as stream:  # np.save would add a suffix to a path
        np.save(stream, values)


def _identity(job: Job, size: int | None) -> dict[str, Any]:
    part = job.part
    return {"name": part.name, "bytes": size, "shard": list(part.shard), "limit": part.limit}


def kept_documents(job: Job, rejected: Rejected, position: Position) -> Iterator[str]:
    """The documents of a part, without those that are marked as copies."""
    documents = sources.documents(job.part, rejected, position)
    if not job.config.drop_duplicates:
        yield from documents
        return
    job.mirror.pull(job.name("drop.npy"))
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
    # not through a memory map, in which a full disk is a fatal signal
    with (jobs[0].mirror.local / split / shards.LENGTHS).open("wb") as stream:
        head = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint16)), "fortran_order": False, "shape": (records,)}
        np.lib.format.write_array_header_1_0(stream, head)
        for job in jobs:
            stream.write(np.load(job.file(f"{split}.npy")).data)
