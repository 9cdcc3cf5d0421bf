"""What the tests of preparation share: its configuration, its command, and what came of it."""

from __future__ import annotations

import filecmp
import json
import sys

from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from recipe.config import PrepareConfig, Source, Tokenizer, to_dict
from tests.tiny.configs import write_yaml


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


def words_of(tmp_path, *words, **settings):
    """The words of `recipe.prepare`: that configuration as a file, and `words`."""
    return [str(write_yaml(tmp_path / "config.yaml", to_dict(config_of(tmp_path, **settings)))), *words]


def command(tmp_path, *words, **settings):
    return [sys.executable, "-m", "recipe.prepare", *words_of(tmp_path, *words, **settings)]


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
