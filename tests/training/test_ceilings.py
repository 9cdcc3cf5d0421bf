"""The ceiling that MFU is a share of: the best of several sizes and of all times, kept in the user's cache."""

from __future__ import annotations

import json
import os

import pytest
import torch

from recipe.system.hardware import Hardware
from recipe.training import ceilings
from recipe.training.callbacks import Meter, Sums


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "bert_kernels" / ceilings.FILE


def pretend(monkeypatch, by_side: dict[int, float]) -> None:
    monkeypatch.setitem(ceilings.SIDES, "cpu", tuple(by_side))
    monkeypatch.setattr(ceilings, "_measure", lambda device, dtype, side, seconds: by_side[side])


def test_a_real_product_is_measured(cache, monkeypatch):
    """More than any interpreter and less than any machine, whatever else runs here."""
    monkeypatch.setitem(ceilings.SIDES, "cpu", (128, 256))
    assert 1e8 < ceilings.matmul_flops("cpu", torch.float32, 0.05) < 1e14
    assert list(json.loads(cache.read_text())) == [ceilings._key("cpu", torch.float32)]


def test_the_best_size_and_the_best_time_count(cache, monkeypatch):
    pretend(monkeypatch, {512: 3e11, 1024: 4e11, 2048: 2e11})
    assert ceilings.matmul_flops("cpu", torch.float32) == 4e11
    pretend(monkeypatch, {512: 1e11, 1024: 2e11, 2048: 2e11})  # another process has the cores
    assert ceilings.matmul_flops("cpu", torch.float32) == 4e11
    assert ceilings.matmul_flops("cpu", torch.bfloat16) == 2e11, "a precision of its own"
    assert ceilings.keep("cpu", torch.float32, 5e11) == 5e11 == ceilings.matmul_flops("cpu", torch.float32)
    assert len(json.loads(cache.read_text())) == 2 and [file.name for file in cache.parent.iterdir()] == [cache.name]


def test_threads_and_matmul_precision_are_part_of_the_machine(monkeypatch):
    key = ceilings._key("cpu", torch.float32)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    other = ceilings._key("cpu", torch.float32)
    assert "77 threads" in other and "medium" in other and other != key


@pytest.mark.parametrize("text", ["no json", "[1]", '{"a": "fast"}', '{"a": null}'])
def test_a_file_that_is_not_ours_is_measured_over(cache, monkeypatch, text):
    cache.parent.mkdir()
    cache.write_text(text)
    pretend(monkeypatch, {512: 3e11})
    assert ceilings.matmul_flops("cpu", torch.float32) == 3e11
    assert json.loads(cache.read_text()) == {ceilings._key("cpu", torch.float32): 3e11}


def test_without_a_cache_it_is_measured_each_time(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "file"))
    pretend(monkeypatch, {512: 3e11})
    assert ceilings.matmul_flops("cpu", torch.float32) == 3e11
    pretend(monkeypatch, {512: 2e11})
    assert ceilings.matmul_flops("cpu", torch.float32) == 2e11


def test_a_run_that_is_faster_raises_the_ceiling(cache):
    hardware = Hardware("cpu", "any", 2, 1e11, None)
    meter = Meter(hardware, price=None, flops_of=lambda sums: 1e11 * sums.tokens, log_every=1, on_line=None)
    assert meter._mfu(Sums(tokens=1, seconds=2.0)) == 0.5
    assert meter._mfu(Sums(tokens=4, seconds=2.0)) == 1.0
    assert meter._mfu(Sums(tokens=1, seconds=2.0)) == 0.25
    assert json.loads(cache.read_text()) == {ceilings._key("cpu", torch.float32): 2e11}
    unknown = Meter(Hardware("gpu", "any", 1, None, None), None, None, 1, None)
    assert unknown._mfu(Sums(tokens=1, seconds=1.0)) is None
