"""Copies of a document, found over all parts in two passes: hashes of every part, then the copies of every part.

Memory: while hashing, eight bytes a document of one part; while marking, one byte a document of the whole corpus, and some
40 bytes of each of the 8 million documents that are compared at a time. A document is known by 64 bits of its text: among the
365 million of C4, one that is no copy is dropped with a chance of 0.4 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from recipe.corpus import sources
from recipe.corpus.parts import STATE, Job, not_written, run, save_array
from recipe.corpus.progress import Tally
from recipe.corpus.sources import Position, Rejected
from recipe.system.files import locked, write_whole
from recipe.system.processes import end_if_stopped

BUCKET = 2**23  # documents that are compared at a time
_CHUNK_DOCUMENTS = 1024


def mark(jobs: list[Job], first: list[Job], processes: int) -> None:
    """Write each part's `drop.npy`: (documents,) bool, true for the copies of an earlier document.

    Earlier is: in a job before, or in the same one before. Jobs of `first` are read first, the others may well be done by
    other machines meanwhile.
    """
    mirror, done = jobs[0].mirror, f"{STATE}/duplicates.done"
    if mirror.pull(done):
        return
    mine = {id(job) for job in first}
    run(hash_part, [*first, *(job for job in jobs if id(job) not in mine)], processes, "hashes")
    with locked(mirror.local / STATE / "duplicates.lock"):
        if not mirror.pull(done):
            _mark(jobs)
            mirror.push(*(job.name("drop.npy") for job in jobs))
            (mirror.local / done).touch()
            mirror.push(done)


def hash_part(job: Job) -> None:
    """Write the part's `hash`: (documents,) uint64."""
    try:
        with locked(job.file("lock"), end_if_stopped):
            if not job.mirror.pull(job.name("hash")):
                hashes = np.fromiter(_hashes(job), np.uint64)
                # np.tofile would not say that it is the disk that is full
                write_whole(job.file("hash"), lambda draft: draft.write_bytes(hashes.data))
                job.mirror.push(job.name("hash"))
    except OSError as error:
        raise (not_written(error, job.mirror.local) or error) from None


def _hashes(job: Job) -> Iterator[int]:
    rejected, position = Rejected(), Position()
    documents, tally = sources.documents(job.part, rejected, position), Tally(job.part, rejected, position)
    while texts := list(islice(documents, _CHUNK_DOCUMENTS)):
        yield from (sources.text_hash(text) for text in texts)
        tally.add(texts)
    tally.finish()


def _mark(jobs: list[Job]) -> None:
    hashes = [_read(job.file("hash")) for job in jobs]
    drops = [np.zeros(len(of_part), bool) for of_part in hashes]
    bits = max(1, math.ceil(math.log2(max(sum(map(len, hashes)) / BUCKET, 1))))
    for bucket in range(2**bits):  # by the leading bits: a shift is seven times as fast as a remainder
        places = [np.flatnonzero(of_part >> np.uint64(64 - bits) == bucket) for of_part in hashes]
        values = np.concatenate([of_part[at] for of_part, at in zip(hashes, places, strict=True)])
        order = np.argsort(values, kind="stable")  # so that of equal ones the earliest comes first
        again = values[order[1:]] == values[order[:-1]]
        copies = np.zeros(len(values), bool)
        copies[order[1:][again]] = True
        ends = np.cumsum([len(at) for at in places])[:-1]
        for drop, at, of_part in zip(drops, places, np.split(copies, ends), strict=True):
            drop[at[of_part]] = True
    for job, drop in zip(jobs, drops, strict=True):
        write_whole(job.file("drop.npy"), lambda draft, drop=drop: save_array(draft, drop))


def _read(file: Path) -> np.ndarray:
    # an empty file cannot be mapped
    return np.memmap(file, np.uint64, "r") if file.stat().st_size else np.empty(0, np.uint64)
