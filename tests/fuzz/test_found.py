"""What the damaged copies found, each as small as it can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe import records
from recipe.config.prepare import Tokenizer
from recipe.data import tokenizer
from recipe.data.shard_files import check_lengths
from recipe.errors import LONGEST, UserError
from recipe.model.config import check_sizes
from recipe.training.checkpoint import find_checkpoint
from tests.fuzz.mutations import LEAVES, _with_values
from tests.mistakes import refused
from tests.tiny.models import write_encoder


def test_a_header_of_numpy_s_that_is_no_python(tmp_path):
    """tokenize.TokenError, which is no ValueError."""
    header = b"{'descr': '<u2', 'fortran_order': False, 'shape': (3,\n"
    (tmp_path / "lengths.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert "lengths.npy: not an array of lengths" in refused(check_lengths, tmp_path, 3)


@pytest.fixture
def nameless(tmp_path) -> Path:
    """A tokenizer that puts a token around a text which its vocabulary lacks: a panic, which is no `Exception`."""
    write_encoder(tmp_path)
    file = tmp_path / "tokenizer.json"
    parts = json.loads(file.read_text())
    parts["post_processor"]["special_tokens"] = {}
    file.write_text(json.dumps(parts))
    return tmp_path


def test_a_tokenizer_that_panics(nameless):
    assert "tokenizer.json: not a tokenizer" in refused(find_checkpoint, str(nameless))
    (nameless / "config.json").unlink()
    assert "`tokenizer.name:" in refused(tokenizer.load, Tokenizer(name=str(nameless)))


def test_a_model_of_a_billion_layers_or_labels():
    for name in ("num_hidden_layers", "num_labels", "vocab_size"):
        with pytest.raises(ValueError, match=f"{name}=1000000000: at most"):
            check_sizes({name: 10**9})
    check_sizes({"num_hidden_layers": 96, "vocab_size": 250_002, "layer_norm_eps": 1e-12, "num_labels": 1000})


@pytest.mark.parametrize("text", ["[" * 300 + "]" * 300, "[" * 100_000, '{"name": "\\ud800"}', "9" * 5000])
def test_json_that_is_too_deep_or_no_text(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    assert str(tmp_path / "run.json") in refused(records.read_record, tmp_path)


def test_a_line_is_one_line_of_bounded_length():
    said = str(UserError("a\nb\x1b[31mc\u2028d\ud800" + "e" * 10_000))
    assert said.startswith("a b [31mc d ") and LONGEST < len(said) < LONGEST + 10 and said.encode()


def test_what_was_damaged_once_is_whole_for_the_next_copy():
    before = repr(LEAVES)
    for leaf in LEAVES:
        _with_values(b'{"a": [0], "b": 0}', [(("a",), "set", leaf), (("a", 0), "nest", 1), (("a", ""), "set", {})])
    assert repr(LEAVES) == before
