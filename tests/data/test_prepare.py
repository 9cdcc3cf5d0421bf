"""Preparation end to end, on small text: what goes in comes out of the shards, and mistakes leave nothing behind."""

import contextlib
import errno
import fcntl
import filecmp
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory
from transformers import AutoTokenizer

from recipe.config import PrepareConfig, Source, Tokenizer, run_main
from recipe.data import duplicates, inspection, shards, sources
from recipe.errors import UserError
from recipe.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "the",
    "cat",
    "cats",
    "dog",
    "sat",
    "on",
    "mat",
    "under",
    "tree",
    "while",
    "it",
    "rained",
    "and",
    "why",
    "birds",
]


def make_text(count, seed):
    draw = random.Random(seed)
    return [f"Entry {seed} {i}. " + " ".join(draw.choices(WORDS, k=draw.randint(1, 80))) + "." for i in range(count)]


@pytest.fixture
def corpus(tmp_path):
    """Three files with 400 documents; returns the texts by file, in order."""
    texts = {
        f"{name}.jsonl.gz": make_text(count, seed)
        for seed, (name, count) in enumerate([("a", 150), ("b", 50), ("c", 200)])
    }
    (tmp_path / "text").mkdir()
    for name, documents in texts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (tmp_path / "text" / name).write_bytes(gzip.compress(lines.encode()))
    return texts


def config_of(tmp_path, **settings):
    defaults = dict(
        out=str(tmp_path / "out"),
        train=Source(files=[str(tmp_path / "text" / "*.jsonl.gz")]),
        validation_fraction=0.1,
        tokenizer=Tokenizer(vocab_size=300),
        max_tokens=60,
        processes=1,
    )
    return PrepareConfig(**defaults | settings)


def stored(folder, split):
    clean_stale_shared_memory()
    stream = StreamingDataset(local=str(folder / split), shuffle=False, batch_size=1)
    return [stream[i]["tokens"].tolist() for i in range(stream.num_samples)]


def same_bytes(left, right):
    """All files of two folders agree, shards, lengths and picture, but for the recorded `out` and `processes`."""
    names = sorted(str(path.relative_to(left)) for path in left.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(right)) for path in right.rglob("*") if path.is_file())
    names.remove("dataset.json")
    assert filecmp.cmpfiles(left, right, names, shallow=False)[0] == names
    infos = [json.loads((folder / "dataset.json").read_text()) for folder in (left, right)]
    for info in infos:
        del info["config"]["out"], info["config"]["processes"]
    assert infos[0] == infos[1]


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


def test_two_runs_and_two_processes_give_the_same_bytes(tmp_path, corpus):
    prepare(config_of(tmp_path))
    command = [sys.executable, "-m", "recipe.prepare", write_yaml(tmp_path), f"out={tmp_path / 'two'}", "processes=2"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
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
    (tmp_path / "text" / "d.jsonl.gz").write_bytes(
        gzip.compress("".join(f'{{"text": "{t}"}}\n' for t in secret).encode())
    )
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
        (dict(validation_fraction=0.0), "between 0 and 1"),
        (dict(max_tokens=0), "`max_tokens` is 0"),
        (dict(max_tokens=70_000), "at most 65,535"),
        (dict(long_documents="wrap"), "give truncate or split"),
        (dict(shard_of="3/2"), "as 2/4"),
        (dict(shard_of="0/2"), "as 2/4"),
        (dict(processes=-1), "`processes` is -1"),
        (dict(shard_mib=4096), "below 4096"),
        (dict(out="s3://bucket/data"), "local folder"),
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
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nalone\n")
    vocabulary = Tokenizer(vocab_file=str(tmp_path / "vocab.txt"))
    with pytest.raises(UserError, match=message):
        prepare(config_of(tmp_path, tokenizer=vocabulary, **settings))
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def write_yaml(tmp_path):
    """The configuration of `config_of` as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"out: {tmp_path / 'out'}\ntrain:\n  files: ['{tmp_path / 'text' / '*.jsonl.gz'}']\nvalidation_fraction: 0.1\n"
        "tokenizer:\n  vocab_size: 300\nmax_tokens: 60\nprocesses: 1\n"
    )
    return str(path)


def test_a_damaged_file_is_reported_in_one_line_and_costs_no_other_part(tmp_path, corpus, capsys):
    damaged = tmp_path / "text" / "c.jsonl.gz"
    good = damaged.read_bytes()
    damaged.write_bytes(good[:-20])
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ncat\n")
    vocabulary = Tokenizer(vocab_file=str(tmp_path / "vocab.txt"), vocab_size=300)
    words = [write_yaml(tmp_path), f"tokenizer.vocab_file={tmp_path / 'vocab.txt'}"]
    assert run_main(PrepareConfig, prepare, words) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.splitlines()[-1].startswith(f"error: {damaged}: cannot be read to its end")
    assert not (tmp_path / "out").exists()
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").rglob("part-0000[01]/*")}
    assert len(whole) == 4 + 4, "the index and one shard of two parts, in two splits"
    damaged.write_bytes(good)
    assert run_main(PrepareConfig, prepare, words) == 0
    assert "2 of 3 parts are there already" in capsys.readouterr().out
    now = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("part-0000[01]/*")}
    assert sorted(now.values()) == sorted(whole.values())
    prepare(config_of(tmp_path, tokenizer=vocabulary, out=str(tmp_path / "unbroken")))
    same_bytes(tmp_path / "out", tmp_path / "unbroken")


def test_command_line(tmp_path, corpus):
    command = [sys.executable, "-m", "recipe.prepare", write_yaml(tmp_path), "train.files=[nowhere.txt]"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: files: `nowhere.txt` matches no file")
    assert done.stderr.count("\n") == 1


def test_a_run_killed_and_then_terminated_ends_as_an_unbroken_one(tmp_path):
    (tmp_path / "text").mkdir()
    for seed in range(9):  # enough text to be still at work when the signals come
        lines = (json.dumps({"text": text}) + "\n" for text in make_text(3_000, seed))
        (tmp_path / "text" / f"{seed}.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode(), 1))
    work = tmp_path / "out.partial" / "state"
    for stop, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        before = len(list(work.glob("train-*.json")))
        with own_group([sys.executable, "-m", "recipe.prepare", write_yaml(tmp_path), "processes=2"]) as run:
            wait_for(lambda before=before: len(list(work.glob("train-*.json"))) > before)
            run.send_signal(stop)
            wait_for(lambda run=run: not group_members(run.pid))
        assert run.returncode == status
        assert not (tmp_path / "out").exists()
    assert len(list(work.glob("train-*.json"))) < 9, "the run was over before it was stopped"
    with pytest.raises(UserError, match="unfinished preparation of other settings or text .`max_tokens`.; remove"):
        prepare(config_of(tmp_path, max_tokens=61))
    prepare(config_of(tmp_path))
    assert not (tmp_path / "out.partial").exists()
    prepare(config_of(tmp_path, out=str(tmp_path / "unbroken")))
    same_bytes(tmp_path / "out", tmp_path / "unbroken")


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
    for name, texts in (("b2.jsonl.gz", copies + own), ("held.jsonl", held)):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        (tmp_path / "text" / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
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


def test_a_full_disk_is_one_line_and_finished_parts_stay(tmp_path, corpus, monkeypatch):
    def full(self):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "finish", full)
        with pytest.raises(UserError, match="out.partial: No space left on device; free some space and run"):
            prepare(config_of(tmp_path))
    prepare(config_of(tmp_path))


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    code = (
        "import sys, time\n"
        "from recipe.data.pool import worker_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = worker_pool(2)\n"
        "    jobs = [pool.submit(print, i) for i in range(9)]\n"
        "    [job.result() for job in jobs]\n"
        "    open(sys.argv[1], 'w').close()\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with own_group([sys.executable, str(tmp_path / "parent.py"), str(tmp_path / "ready")], env=environment) as run:
        wait_for((tmp_path / "ready").exists)
        assert len(group_members(run.pid)) >= 3
        run.kill()
        wait_for(lambda: not group_members(run.pid))


@contextlib.contextmanager
def own_group(command, **settings):
    """A process that leads a group of its own, of which nothing is left afterwards."""
    run = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **settings
    )
    try:
        yield run
        run.wait(timeout=60)
    finally:
        if group_members(run.pid):
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def group_members(group):
    """Processes of a process group that are not zombies."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue  # it ended meanwhile
        if int(process_group) == group and state != "Z":
            found.append(int(stat.parent.name))
    return found
