"""Damaged datasets: each fault is one line with the file and the remedy, and nothing is skipped in silence."""

from __future__ import annotations

import errno
import json
import multiprocessing
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

from recipe.config import Data
from recipe.data import documents
from recipe.data.shard_files import check_files
from recipe.data.shards import LENGTHS
from recipe.system.files import locked
from tests.mistakes import refused
from tests.tiny.texts import open_batches, packed_copy

SHARD = "train/part-00000/shard.00000.mds.zstd"


@pytest.fixture
def copy(tiny_dataset, tmp_path) -> Path:
    return packed_copy(tiny_dataset, tmp_path / "dataset")


def batches(folder: Path, workers: int = 0, batching: str = "sequences") -> Iterator[dict]:
    check_files(folder, "train")
    data = Data(path=str(folder), sequence_length=64)
    return iter(open_batches(data, batching=batching, workers=workers))


def test_a_whole_dataset_passes(copy):
    check_files(copy, "train")
    next(batches(copy))
    check_files(copy, "train")  # unpacked now


def test_a_missing_shard(copy):
    (copy / SHARD).unlink()
    assert f"{copy / SHARD}: no such file, and the index lists it; copy the file again" in refused(
        check_files, copy, "train"
    )


@pytest.mark.parametrize("unpacked", [False, True])
def test_a_truncated_shard(copy, unpacked):
    file = copy / SHARD
    if unpacked:
        next(batches(copy))
        file = file.with_suffix("")
    whole = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(whole - 7)
    said = refused(check_files, copy, "train")
    assert said.startswith(f"{file}: {whole - 7:,} bytes, the index says {whole:,}; copy the file again")


@pytest.mark.parametrize("batching", ["sequences", "tokens"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("unpacked", [False, True])
def test_a_flipped_bit(copy, workers, batching, unpacked, capfd):
    """Its name and size are right, so it is found when the shard is opened."""
    file = copy / SHARD
    if unpacked:
        next(batches(copy))
        file = file.with_suffix("")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    said = refused(lambda: next(batches(copy, workers, batching)))
    assert said.startswith(f"{file}: its hash") and "is not the one in the index" in said
    assert "Traceback" not in capfd.readouterr().err
    if unpacked:  # the remedy works
        file.unlink()
        next(batches(copy))


def test_a_shard_emptied_after_the_start(copy):
    next(batches(copy))
    opened = batches(copy)
    (copy / SHARD).with_suffix("").write_bytes(b"")
    assert "its hash or its size is not the one in the index" in refused(lambda: next(opened))


def test_lengths_of_another_dataset(copy):
    file = copy / "train" / LENGTHS
    lengths = np.load(file)
    np.save(file, np.roll(lengths, 1))
    assert f"not of the lengths in {copy / 'train'}; copy both again" in refused(lambda: next(batches(copy)))
    np.save(file, lengths[1:])
    assert f"{file}: uint16 ({len(lengths) - 1},), the index has {len(lengths):,}" in refused(lambda: batches(copy))
    file.write_bytes(b"no array")
    assert f"{file}: not an array of lengths" in refused(lambda: batches(copy))
    file.unlink()
    assert f"{file}: no such file, and the batches are planned by it" in refused(lambda: batches(copy))


def test_a_folder_that_cannot_be_written(copy, monkeypatch):
    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(documents, "locked", read_only)
    assert "Read-only file system; shards are unpacked beside it, so copy the dataset" in refused(
        lambda: next(batches(copy))
    )


def _on_a_small_disk(folder: Path, most: int, answer) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))  # the system refuses to write more, as on a full disk
    answer.send(refused(lambda: next(batches(folder))))


def test_a_full_disk(copy):
    context = multiprocessing.get_context("fork")
    said, answer = context.Pipe(duplex=False)
    packed = (copy / SHARD).stat().st_size
    process = context.Process(target=_on_a_small_disk, args=(copy, packed, answer))
    process.start()
    assert said.poll(60), "no answer"
    assert said.recv() == f"{copy / SHARD}: File too large; free some space and start again"
    process.join(60)
    next(batches(copy))  # once there is space


def test_foreign_columns_are_refused_unread(tmp_path):
    for name, columns in (("pickled", {"tokens": "pkl"}), ("other", {"tokens": "ndarray:int64"})):
        with MDSWriter(out=str(tmp_path / name), columns=columns):
            pass
        index = tmp_path / name / "index.json"
        shard = {
            "column_names": ["tokens"],
            "column_encodings": list(columns.values()),
            "raw_data": {"basename": "shard.00000.mds"},
            "zip_data": None,
        }
        index.write_text(json.dumps({"version": 2, "shards": [shard]}))
        said = refused(lambda name=name: check_files(tmp_path, name))
        assert f"{index}: columns tokens ({columns['tokens']}), only tokens (ndarray:uint16) is read here" in said
        assert ("could execute code" in said) == (name == "pickled")


def test_an_index_that_points_elsewhere(copy):
    index = copy / "train" / "index.json"
    for other in ("../../elsewhere.mds", "/etc/passwd"):
        content = json.loads(index.read_text())
        content["shards"][0]["raw_data"]["basename"] = other
        index.write_text(json.dumps(content))
        assert f"{index}: names {other}, which is outside the dataset's folder" in refused(check_files, copy, "train")
    for none in ("\0", "é" * 300):  # no name of a file, which the system would say by a ValueError and an OSError
        content["shards"][0]["raw_data"]["basename"] = none
        index.write_text(json.dumps(content))
        assert f"{index}: not an index of shards" in refused(check_files, copy, "train")


@pytest.mark.parametrize("content", [None, "", "[]", '{"shards": 3}', '{"shards": [{}]}'])
def test_an_index_that_is_none(copy, content):
    index = copy / "train" / "index.json"
    index.unlink() if content is None else index.write_text(content)
    assert str(index) in refused(check_files, copy, "train")


def _hold(lock: str, ready, release) -> None:
    with locked(Path(lock)):
        ready.set()
        release.wait(60)


def test_two_runs_do_not_unpack_the_same_shard_at_once(copy):
    """While another process unpacks a shard, this one waits, and then finds it unpacked."""
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    raw = (copy / SHARD).with_suffix("")
    other = context.Process(target=_hold, args=(f"{raw}.lock", ready, release))
    other.start()
    assert ready.wait(60)
    first = context.Process(target=next, args=(batches(copy),))
    first.start()
    first.join(1)
    assert first.is_alive() and not raw.exists()
    release.set()
    first.join(60)
    other.join(60)
    assert first.exitcode == 0 and raw.exists()
