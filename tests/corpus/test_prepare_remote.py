"""Preparation into an object store, against a server that speaks S3: the same bytes as on a disk, whatever happens."""

import json
import os
import signal
from pathlib import Path

import pytest

from recipe.config import Data, Tokenizer
from recipe.corpus import inspection, ownership, parts
from recipe.data import storage
from recipe.errors import UserError
from recipe.prepare import prepare
from tests.object_store import BUCKET
from tests.preparing import command, config_of
from tests.processes import group_members, own_group, wait_for
from tests.tiny.texts import open_batches, write_text, write_vocabulary
from tests.tiny.tokenizers import write_other_tokenizer

OUT = f"s3://{BUCKET}/sets/new"


def remote(tmp_path, **settings):
    return config_of(
        tmp_path, **dict(out=OUT, work=str(tmp_path / "work"), tokenizer=write_vocabulary(tmp_path)) | settings
    )


def same_as_local(store, tmp_path, **settings):
    """What the store holds is what a preparation on this disk gives, but for the records and the recorded `out` and `work`."""
    folder = tmp_path / "local"
    prepare(config_of(tmp_path, **dict(out=str(folder), tokenizer=write_vocabulary(tmp_path)) | settings))
    names = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    there = {name.removeprefix("sets/new/"): name for name in store.names("sets/new/") if "/state/" not in name}
    assert there.keys() == names.keys()
    for name, path in names.items():
        if name != ownership.INFO:
            assert store.read(there[name]) == path.read_bytes(), name
    infos = [json.loads(content) for content in (store.read(there[ownership.INFO]), names[ownership.INFO].read_bytes())]
    for info in infos:
        del info["config"]["out"], info["config"]["work"], info["config"]["processes"]
    assert infos[0] == infos[1]


def records(store):
    return [name.rsplit("/", 1)[1] for name in store.names("sets/new/state/train-") if name.endswith(".json")]


def test_a_dataset_in_a_store(tmp_path, corpus, object_store, capsys):
    info = prepare(remote(tmp_path))
    same_as_local(object_store, tmp_path)
    assert not (tmp_path / "work").exists(), "nothing is left on this disk"
    written = [what for what in object_store.requests if what.startswith("PUT")]
    assert written[-1].endswith("/dataset.json"), "what says that all is there comes last"
    capsys.readouterr()
    assert prepare(remote(tmp_path, work=None)) == info
    assert f"{OUT}: already prepared from this configuration" in capsys.readouterr().out
    assert not list(Path().glob("new.partial*"))
    with pytest.raises(UserError, match=f"^{OUT}: holds a dataset of another configuration .`max_tokens`.; choose"):
        prepare(remote(tmp_path, max_tokens=61))
    config = remote(tmp_path)
    with open(config.tokenizer.vocab_file, "a") as file:
        file.write("more\n")
    with pytest.raises(UserError, match=f"^{OUT}: .*vocab.txt has changed since; choose another `out`"):
        prepare(config)

    before = len(object_store.requests)
    inspection.main([OUT])
    assert f"{OUT}: vocabulary 22, lower case\n\ntrain: 359 documents" in capsys.readouterr().out
    assert sum(what.startswith("GET") for what in object_store.requests[before:]) == 2 + 2 * 2, (
        "one shard of each split"
    )
    with pytest.raises(UserError, match="^s3://texts/none: holds no dataset.json; python -m recipe.prepare"):
        inspection.main(["s3://texts/none"])


def test_every_part_s_shards_leave_the_disk_once_they_are_in_the_store(tmp_path, corpus, object_store, monkeypatch):
    left = []

    def publish(job, record, really=parts._publish):
        really(job, record)
        left.append([path.name for path in (tmp_path / "work").rglob("*.zstd")])

    monkeypatch.setattr(parts, "_publish", publish)
    prepare(remote(tmp_path))
    assert left == [[], [], []]


def test_a_run_killed_while_it_uploads_is_continued(tmp_path, object_store, corpus):
    """The store fails for good from the second part's shard on; the run is killed while it asks again."""
    settings = dict(out=OUT, work=str(tmp_path / "work"), tokenizer=write_vocabulary(tmp_path))
    object_store.fail(10_000, "PUT /texts/sets/new/train/part-00001/shard")
    with own_group(command(tmp_path, **settings)) as run:
        wait_for(lambda: object_store.failures)
        os.kill(run.pid, signal.SIGKILL)
        wait_for(lambda: not group_members(run.pid))
    object_store.fail(0)
    assert records(object_store) == ["train-00000.json"]
    assert list((tmp_path / "work").rglob("part-00001/*.zstd")), "a killed run cannot clean up"
    with pytest.raises(
        UserError, match=f"^{OUT}: holds an unfinished preparation of other .*`max_tokens`.*; remove {OUT}"
    ):
        prepare(remote(tmp_path, max_tokens=61))
    before = len(object_store.requests)
    prepare(remote(tmp_path, shard_of=None))
    again = [what for what in object_store.requests[before:] if what.startswith("PUT") and "part-00000" in what]
    assert again == [], "a part that is in the store is not made again"
    same_as_local(object_store, tmp_path)


def test_two_machines_share_nothing_but_the_bucket(tmp_path, corpus, object_store, capsys):
    copies = [*corpus["a.jsonl.gz"][5:9], "a text of its own", "a text of its own"]
    write_text(tmp_path / "text" / "d.jsonl.gz", copies)
    for share in ("1/2", "2/2"):
        assert prepare(remote(tmp_path, shard_of=share, drop_duplicates=True)) is None
        assert "sets/new/dataset.json" not in object_store.names()
        assert [path.name for path in tmp_path.glob("work*")] == []
    before = len(object_store.requests)
    capsys.readouterr()
    info = prepare(remote(tmp_path, drop_duplicates=True))
    assert "train: 4 of 4 parts are there already" in capsys.readouterr().out
    assert not any("shard" in what for what in object_store.requests[before:]), (
        "shards are neither fetched nor made again"
    )
    assert info.sources["train"].rejected == {"duplicate": 5}
    same_as_local(object_store, tmp_path, drop_duplicates=True)


def test_a_store_that_fails_twice_then_works(tmp_path, corpus, object_store):
    """Every request for the last part's files fails twice."""
    really, seen = object_store._answer, {}

    def answer(environ, start_response):
        what = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
        seen[what] = seen.get(what, 0) + 1
        if "00002" in what and seen[what] <= 2:
            object_store.fail(1, what)
        return really(environ, start_response)

    object_store._servers[0].app = answer
    prepare(remote(tmp_path))
    assert len([what for what in object_store.failures if what.startswith("PUT")]) >= 2 * 7
    same_as_local(object_store, tmp_path)


def test_a_store_that_cannot_be_used_is_one_line_before_any_work(tmp_path, corpus, object_store, monkeypatch):
    with pytest.raises(UserError, match="^s3://nowhere/new: cannot be used: 404 Not Found; look at the credentials"):
        prepare(remote(tmp_path, out="s3://nowhere/new"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    storage.forget_clients()
    with pytest.raises(
        UserError, match=f"^{OUT}/dataset.json: cannot be fetched: 403 Forbidden; look at the credentials"
    ):
        prepare(remote(tmp_path))
    assert not (tmp_path / "work").exists() and object_store.names() == []


def test_a_store_that_fails_in_the_middle_is_one_line_and_keeps_what_it_has(
    tmp_path, corpus, object_store, monkeypatch
):
    monkeypatch.setattr(storage, "_ATTEMPTS", 1)
    object_store.fail(10_000, "PUT /texts/sets/new/train/part-00002/")
    with pytest.raises(UserError, match=f"^{OUT}/train/part-00002/index.json: cannot be uploaded: .*500.*; look at"):
        prepare(remote(tmp_path))
    assert records(object_store) == ["train-00000.json", "train-00001.json"]
    assert not (tmp_path / "work").exists()
    object_store.fail(0)
    prepare(remote(tmp_path))
    same_as_local(object_store, tmp_path)


def test_a_folder_in_the_way_of_the_working_folder_is_left_alone(tmp_path, corpus, object_store):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="work: is in the way and no unfinished preparation; remove it, or .* `work`"):
        prepare(remote(tmp_path))
    assert (tmp_path / "work" / "thesis.txt").read_text() == "precious"


def test_where_the_work_lies(tmp_path):
    folders = [
        ownership.working_folder(config_of(tmp_path, **settings)).as_posix()
        for settings in (
            dict(out="data/c4/"), dict(out=OUT), dict(out=OUT, shard_of="2/4"), dict(out=OUT, work="/big", shard_of="2/4"),
        )
    ]  # fmt: skip
    assert folders == ["data/c4.partial", "new.partial", "new.partial-2-of-4", "/big-2-of-4"]


def test_a_tokenizer_without_a_vocabulary_file_is_shared_and_read_from_a_store(tmp_path, corpus, object_store):
    settings = {"tokenizer": Tokenizer(name=str(write_other_tokenizer(tmp_path / "tokenizer", "unigram")))}
    for share in ("1/2", "2/2"):
        assert prepare(remote(tmp_path, shard_of=share, **settings)) is None
    info = prepare(remote(tmp_path, **settings))
    assert info.vocabulary.file == "tokenizer.json"
    assert not any(name.endswith("vocab.txt") for name in object_store.names("sets/new/"))
    data = Data(path=OUT, cache=str(tmp_path / "cache"), sequence_length=48, masking="word")
    batch = next(iter(open_batches(data, batch_size=8)))
    assert batch["input_ids"][0] == info.vocabulary.cls_id
