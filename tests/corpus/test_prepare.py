"""Preparation end to end, on small text: what goes in comes out of the shards, and mistakes leave nothing behind."""

import fcntl
import gzip
import tracemalloc

import numpy as np
import pytest
from transformers import AutoTokenizer

from recipe.config import Source, Tokenizer
from recipe.corpus import duplicates, inspection, sources
from recipe.data import shards
from recipe.errors import UserError
from recipe.prepare import prepare
from tests.preparing import config_of, same_bytes, stored, words_of
from tests.processes import call
from tests.tiny.texts import make_text, write_text, write_vocabulary


def test_shards_hold_the_text(tmp_path, corpus, capsys):
    config = config_of(tmp_path)
    info = prepare(config)
    assert info == shards.read_info(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    expected = {"train": [], "validation": []}
    for documents in corpus.values():
        for text in documents:
            split = "validation" if sources.held_out(text, 0.1, config.seed) else "train"
            expected[split].append(tokenizer(text, add_special_tokens=False)["input_ids"])
    lost = 0
    for split, ids in expected.items():
        assert stored(tmp_path / "out", split) == [document[:60] for document in ids]
        assert info.split(split).documents == len(ids)
        assert info.split(split).tokens == sum(min(len(document), 60) for document in ids)
        lost += sum(max(len(document) - 60, 0) for document in ids)
    assert lost > 0
    assert info.vocabulary.size == len(tokenizer)
    assert tokenizer.decode(stored(tmp_path / "out", "train")[0]).replace(" ", "").startswith("entry0")
    assert not (tmp_path / "out.partial").exists()
    printed = capsys.readouterr().out
    assert f"train: {len(expected['train'])} documents" in printed


def test_a_vocabulary_smaller_than_asked_for_is_said_with_the_reason(tmp_path, corpus, capsys):
    info = prepare(config_of(tmp_path, tokenizer=Tokenizer(vocab_size=60_000)))
    said = capsys.readouterr().out
    reason = "  fewer entries than the 60,000 asked for: no further pair of pieces occurs twice in the text it was trained on"
    assert info.vocabulary.size < 60_000 and reason in said
    inspection.main([str(tmp_path / "out")])
    assert reason in capsys.readouterr().out
    existing = Tokenizer(vocab_file=str(tmp_path / "out" / "tokenizer" / "vocab.txt"), vocab_size=60_000)
    prepare(config_of(tmp_path, out=str(tmp_path / "existing"), tokenizer=existing))
    assert "asked for" not in capsys.readouterr().out, "of a given vocabulary nothing was asked"


def test_two_runs_and_two_processes_give_the_same_bytes(tmp_path, corpus):
    prepare(config_of(tmp_path))
    done = call("recipe.prepare", *words_of(tmp_path, out=str(tmp_path / "two"), processes=2))
    assert done.returncode == 0, done.stderr
    same_bytes(tmp_path / "out", tmp_path / "two")


def test_a_validation_source_of_its_own(tmp_path, corpus):
    held = make_text(20, 99)
    (tmp_path / "held.txt").write_text("\n\n".join(held))
    info = prepare(config_of(tmp_path, validation=Source(files=[str(tmp_path / "held.txt")])))
    assert info.split("train").documents == 400
    assert info.split("validation").documents == 20
    assert set(info.sources) == {"train", "validation"}


def test_bad_records_are_counted(tmp_path, corpus, capsys):
    bad = tmp_path / "text" / "bad.jsonl.gz"
    bad.write_bytes(
        gzip.compress(b'{"text": "fine words"}\n{"text": ""}\nno json\n{"text": "\xff"}\n{"text": "\\u0007"}\n')
    )
    info = prepare(config_of(tmp_path))
    assert info.split("train").documents + info.split("validation").documents == 401
    assert info.sources["train"].rejected == {"empty": 1, "malformed JSON": 1, "not UTF-8": 1, "no tokens": 1}
    assert f"1 records left out, malformed JSON: {bad}:3" in capsys.readouterr().out


def test_the_tokenizer_never_sees_validation_text(tmp_path, corpus):
    secret = [text for text in (f"zyx{i} qqq" for i in range(300)) if sources.held_out(text, 0.1, 17)]
    assert len(secret) > 10
    write_text(tmp_path / "text" / "d.jsonl.gz", secret)
    prepare(config_of(tmp_path))
    vocabulary = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer").get_vocab()
    assert "q" not in vocabulary and "c" in vocabulary


def test_the_same_again_is_left_alone_and_anything_else_refused(tmp_path, corpus, capsys):
    info = prepare(config_of(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert prepare(config_of(tmp_path, processes=2)) == info
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="another configuration .`max_tokens`.; choose another `out`, or remove"):
        prepare(config_of(tmp_path, max_tokens=61))
    with (tmp_path / "text" / "a.jsonl.gz").open("ab") as stream:
        stream.write(gzip.compress(b'{"text": "one more"}\n'))
    with pytest.raises(UserError, match="text has changed"):
        prepare(config_of(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_a_foreign_folder_is_refused_and_an_empty_one_used(tmp_path, corpus):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="holds no dataset"):
        prepare(config_of(tmp_path))
    assert (tmp_path / "out" / "thesis.txt").read_text() == "precious"
    (tmp_path / "out" / "thesis.txt").unlink()
    prepare(config_of(tmp_path))
    assert (tmp_path / "out" / "dataset.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(train=Source()), "`train` has none"),
        (dict(train=Source(files=["/nowhere/*.txt"])), "matches no file"),
        (dict(validation=Source(files=["{text}/b.jsonl.gz"])), "in `train.files` and in `validation.files`"),
        (dict(validation_fraction=0.0), "above 0 and below 1"),
        (dict(max_tokens=0), "max_tokens=0: must be at least 1"),
        (dict(max_tokens=70_000), "at most 65535"),
        (dict(long_documents="wrap"), "must be one of truncate, split"),
        (dict(shard_of="3/2"), "as 2/4"),
        (dict(shard_of="0/2"), "as 2/4"),
        (dict(processes=-1), "processes=-1: must be at least 0; 0 for one per core"),
        (dict(shard_mib=4096), "below 4096"),
        (dict(out="http://host/data"), "http://host/data: give a local folder, or SCHEME://BUCKET/FOLDER"),
        (dict(out="data#1"), "give a folder without # and ?"),
        (
            dict(train=Source(embedded="docstrings"), out="data", tasks="data/tasks"),
            "inside `out`, which is written as a",
        ),
        (dict(work="here"), "`work` is here: it is for an `out` in an object store"),
        (dict(tokenizer=Tokenizer(vocab_size=100_000)), "65536"),
        (dict(tokenizer=Tokenizer(vocab_file="/nowhere/vocab.txt")), "/nowhere/vocab.txt cannot be read"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, corpus, settings, message):
    if "validation" in settings:
        settings["validation"].files = [str(tmp_path / "text" / "b.jsonl.gz")]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        prepare(config_of(tmp_path, **settings))
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"oops\n\n", {}, r"not one document \(1 malformed JSON, 1 empty; first at .*only.jsonl.gz:1\)"),
        (b'{"text": "alone"}\n', dict(validation_fraction=1e-6), "validation split is empty"),
    ],
)
def test_text_that_gives_no_document(tmp_path, content, settings, message):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "only.jsonl.gz").write_bytes(gzip.compress(content))
    with pytest.raises(UserError, match=message):
        prepare(config_of(tmp_path, tokenizer=write_vocabulary(tmp_path, ["alone"]), **settings))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_command_line(tmp_path, corpus):
    done = call("recipe.prepare", *words_of(tmp_path, "train.files=[nowhere.txt]"))
    assert done.returncode == 2
    assert done.stderr.startswith("error: files: `nowhere.txt` matches no file")
    assert done.stderr.count("\n") == 1


def test_shares_of_two_machines_make_the_whole(tmp_path, corpus):
    unbroken = config_of(tmp_path, out=str(tmp_path / "unbroken"), drop_duplicates=True)
    prepare(unbroken)
    for share in ("1/2", "2/2"):
        assert prepare(config_of(tmp_path, drop_duplicates=True, shard_of=share)) is None
        assert not (tmp_path / "out").exists()
    parts = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial" / "train").iterdir()}
    assert sorted(parts) == ["part-00000", "part-00001", "part-00002"]
    with (tmp_path / "out.partial" / "state" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # a third machine at work
        with pytest.raises(UserError, match="another run is at work on it"):
            prepare(config_of(tmp_path, drop_duplicates=True))
    prepare(config_of(tmp_path, drop_duplicates=True))
    same_bytes(tmp_path / "out", tmp_path / "unbroken")
    assert parts == {n: (tmp_path / "out" / "train" / n).stat().st_mtime_ns for n in parts}, "they were written again"


def test_copies_are_dropped_over_all_files(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(duplicates, "BUCKET", 64)  # several passes
    copies = [*corpus["a.jsonl.gz"][5:9], corpus["c.jsonl.gz"][0]]
    own = ["a text of its own", "and its copy", "and its copy"]
    held = [corpus["b.jsonl.gz"][3], "held out", "held out"]
    write_text(tmp_path / "text" / "b2.jsonl.gz", copies + own)
    write_text(tmp_path / "text" / "held.jsonl", held)
    validation = Source(files=[str(tmp_path / "text" / "held.jsonl")])
    info = prepare(config_of(tmp_path, drop_duplicates=True, validation=validation))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    order = [*corpus["a.jsonl.gz"], *corpus["b.jsonl.gz"], *copies, *own, *corpus["c.jsonl.gz"]]
    kept = [
        text for text in dict.fromkeys(order) if text not in held
    ]  # of a copy in validation, training loses its one
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"][:60] for text in kept]
    assert stored(tmp_path / "out", "train") == ids
    assert len(stored(tmp_path / "out", "validation")) == 2
    assert info.sources["train"].rejected == {"duplicate": len(order) - len(kept)}
    assert info.sources["validation"].rejected == {"duplicate": 1}


def test_long_documents_become_windows(tmp_path, corpus, capsys):
    assert prepare(config_of(tmp_path, max_tokens=25)).split("train").truncated > 0.3
    info = prepare(config_of(tmp_path, max_tokens=25, long_documents="split", out=str(tmp_path / "split")))
    windows = stored(tmp_path / "split", "train")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "split" / "tokenizer")
    expected = []
    for text in sum(corpus.values(), []):
        if not sources.held_out(text, 0.1, 17):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            expected += [ids[start : start + 25] for start in range(0, len(ids), 25)]
    assert windows == expected and info.split("train").documents == len(windows)
    assert info.split("train").truncated == 0
    lengths = np.load(tmp_path / "split" / "train" / shards.LENGTHS)
    assert lengths.dtype == np.uint16 and lengths.tolist() == [len(window) for window in windows]
    assert (tmp_path / "split" / "lengths.png").read_bytes().startswith(b"\x89PNG")

    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    inspection.main([str(tmp_path / "split")])
    said = capsys.readouterr().out
    assert f"train: {len(windows):,} documents" in said and "0.00% of tokens lost" in said
    assert f"0 ({len(windows[0])} tokens): {tokenizer.decode(windows[0])}" in said
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="give one folder"):
        inspection.main([])


def test_memory_does_not_grow_with_a_part(tmp_path):
    """Twice the text in one file: the peak of what is allocated stays, but for a few bytes a document."""
    peaks, shards_written, text = [], [], " ".join(make_text(50, 0))
    for run, documents in enumerate((20, 550, 1_100)):  # the first one pays for imports
        file, out = tmp_path / str(run) / "a.jsonl.gz", tmp_path / f"out{run}"
        write_text(file, [f"{i} {text}" for i in range(documents)])
        settings = dict(tokenizer=write_vocabulary(tmp_path), max_tokens=3_000, shard_mib=1)
        tracemalloc.start()
        prepare(config_of(tmp_path, out=str(out), train=Source(files=[str(file)]), **settings))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        shards_written.append(len(list((out / "train").rglob("*.zstd"))))
    assert shards_written == [1, 3, 5]
    assert peaks[2] < 1.1 * peaks[1], peaks
