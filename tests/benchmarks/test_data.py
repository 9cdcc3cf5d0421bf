"""The data benchmark in small: it measures what it says, and its table shows the record."""

from __future__ import annotations

import json

import pytest

from benchmarks import data
from recipe.errors import UserError


def test_a_small_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "BATCH", 16)
    lines = (json.dumps({"text": f"Document {i}. " + "the cat sat on the mat. " * (i % 40 + 1)}) for i in range(400))
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    file = tmp_path / "out" / "data.json"
    data.main([f"text={tmp_path / 'text.jsonl'}", "documents=300", "batches=3", f"out={file}"])
    record = json.loads(file.read_text())
    assert record["preparation"]["documents"] == 300 and record["provenance"]["packages"]
    assert record["preparation"]["mb_per_s"] > 0 and record["resume"]["seconds"] > 0
    assert len(record["loader"]) == len(data.LOADERS) + 1
    assert all(
        0 < r["p20"] <= r["p50"] <= r["p80"] and r["all"] > 0 for r in (row["tokens_per_s"] for row in record["loader"])
    )
    assert data.table(record) in capsys.readouterr().out


def test_unknown_settings_are_refused():
    with pytest.raises(UserError, match="known are text=..., documents=..., batches=..., out=..."):
        data.main(["text_glob=x"])
    with pytest.raises(UserError, match="give a number"):
        data.main(["documents=many"])
