"""What the tests of preparation share: text, its configuration, what came of it, and processes that are stopped."""

from __future__ import annotations

import contextlib
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

from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from recipe.config import PrepareConfig, Source, Tokenizer

ROOT = Path(__file__).resolve().parents[1]
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


def write_text(file, documents):
    """A `.jsonl.gz` file of these documents."""
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in documents).encode(), 1))


def write_vocabulary(folder):
    """A vocabulary that needs no training, as a configuration."""
    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "entry", ".", *WORDS, ""])
    )
    return Tokenizer(vocab_file=str(folder / "vocab.txt"), vocab_size=300)


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


def write_yaml(tmp_path):
    """The configuration of `config_of` as a file."""
    path = tmp_path / "config.yaml"
    path.write_text(
        f"out: {tmp_path / 'out'}\ntrain:\n  files: ['{tmp_path / 'text' / '*.jsonl.gz'}']\nvalidation_fraction: 0.1\n"
        "tokenizer:\n  vocab_size: 300\nmax_tokens: 60\nprocesses: 1\n"
    )
    return str(path)


def command(tmp_path, *words):
    return [sys.executable, "-m", "recipe.prepare", write_yaml(tmp_path), *words]


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


@contextlib.contextmanager
def own_group(command, **settings):
    """A process that leads a group of its own, of which nothing is left afterwards."""
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    run = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **quiet | settings)
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
        time.sleep(0.02)


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
