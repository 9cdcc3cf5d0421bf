"""The data benchmark in small: it measures what it says, and its table shows the record."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil

import pytest

from benchmarks import data
from recipe.errors import UserError


@pytest.fixture
def one_core_for_a_while():
    """The benchmark keeps its process to one core."""
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


def test_a_small_run(tmp_path, tiny_dataset, monkeypatch, capsys, one_core_for_a_while):
    for name, value in {"BATCH": 16, "ROUNDS": 2, "SEQUENCE_LENGTHS": (64,), "RESUME_AT_TOKENS": 150_000}.items():
        monkeypatch.setattr(data, name, value)
    fork = multiprocessing.get_context(
        "fork"
    )  # a fresh process would import for seconds; here its peak does not matter
    monkeypatch.setattr(data, "get_context", lambda _: fork)
    for name in ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    shutil.copy(tiny_dataset.parent / "topics.jsonl", tmp_path / "text.jsonl")
    file = tmp_path / "out" / "data.json"
    known = f"vocabulary={tiny_dataset / 'tokenizer' / 'vocab.txt'}"
    data.main([f"text={tmp_path / 'text.jsonl'}", known, "documents=300", "seconds=0.05", f"out={file}"])
    record = json.loads(file.read_text())
    corpus, made = record["corpus"], record["preparation"]
    assert corpus["documents"] > 1_000 and corpus["tokens"] > 50_000
    assert [epoch["batching"] for epoch in corpus["epochs"]] == list(data.BATCHINGS)
    assert all(0.9 * corpus["documents"] < epoch["documents"] <= corpus["documents"] for epoch in corpus["epochs"])
    assert len({epoch["sha256"] for epoch in corpus["epochs"]}) == 3
    assert made["documents"] == 300 and len(made["rounds"]) == 2 and 0 < made["share"] < 2
    assert len(record["loader"]) == len(data.LOADERS) + 2
    rates = [row["tokens_per_s"] for row in record["loader"]]
    assert all(0 < rate["p20"] <= rate["p50"] <= rate["p80"] and rate["all"] > 0 for rate in rates)
    assert record["resume"]["tokens"] > 150_000 and all(row["seconds"] > 0 for row in record["resume"]["loaders"])
    assert [row["documents"] for row in record["memory"]][:2] == [300, 3_000]
    assert all(0 < row["peak_gib"] < 20 for row in record["memory"])
    assert record["provenance"]["packages"] and data.table(record) in capsys.readouterr().out


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="known are text=..., vocabulary=..., documents=..., seconds=..., out=..."):
        data.main(["text_glob=x"])
    with pytest.raises(UserError, match="give a number"):
        data.main(["documents=many"])
    with pytest.raises(UserError, match="vocabulary=...: give what to prepare"):
        data.main(["text=x.json"])
