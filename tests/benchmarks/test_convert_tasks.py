"""Two distributions of their own form as JSON lines."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.convert_tasks import main
from tests.mistakes import refused

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def test_clinc150(tmp_path):
    found = {name: [[f"a {name}", "one"]] for name in ("train", "val", "test")}
    found |= {f"oos_{name}": [[f"b {name}", "oos"]] for name in ("train", "val", "test")}
    with gzip.open(tmp_path / "data.json.gz", "wt") as stream:
        json.dump(found, stream)
    main(["clinc150", str(tmp_path / "data.json.gz"), str(tmp_path / "out")])
    assert lines(tmp_path / "out/clinc150-dev.jsonl") == [
        {"text": "a val", "intent": "one"},
        {"text": "b val", "intent": "oos"},
    ]
    (tmp_path / "part.json").write_text(json.dumps({"train": []}))
    assert "no `train`, or no `oos_train` in it" in refused(
        main, ["clinc150", str(tmp_path / "part.json"), str(tmp_path)]
    )


def test_cranfield_numbers_queries_in_their_order(tmp_path):
    (tmp_path / "docs").write_text(".I 1\n.T\na title\n.A\nbrown,j.\n.W\na title\nand  text .\n.I 2\n.T\n.W\n")
    (tmp_path / "queries").write_text(".I 001\n.W\nfirst\nquery\n.I 004\n.W\nsecond\n")
    (tmp_path / "rel").write_text("1 1 2 \n2 2 -1\n")
    main(["cranfield", *(str(tmp_path / name) for name in ("docs", "queries", "rel", "out"))])
    out = tmp_path / "out"
    assert lines(out / "cranfield-documents.jsonl") == [
        {"id": "1", "title": "a title", "text": "a title and text ."},
        {"id": "2", "title": "", "text": ""},
    ]
    assert lines(out / "cranfield-queries.jsonl") == [{"id": "1", "text": "first query"}, {"id": "2", "text": "second"}]
    assert lines(out / "cranfield-judgements.jsonl") == [
        {"query": "1", "document": "1", "grade": 3},
        {"query": "2", "document": "2", "grade": 0},
    ]


@pytest.mark.skipif(not (REAL / "retrieval").is_dir(), reason="../shared/data/retrieval is not there")
def test_the_real_files(tmp_path):
    main(["clinc150", str(REAL / "intents/clinc150.json.gz"), str(tmp_path)])
    counts = {name: len(lines(tmp_path / f"clinc150-{name}.jsonl")) for name in ("train", "dev", "test")}
    assert counts == {"train": 15_100, "dev": 3_100, "test": 5_500}
    assert len({row["intent"] for row in lines(tmp_path / "clinc150-train.jsonl")}) == 151
    folder = REAL / "retrieval"
    main(["cranfield", *(str(folder / name) for name in ("cran.all.1400", "cran.qry", "cranqrel")), str(tmp_path)])
    documents, queries = (lines(tmp_path / f"cranfield-{name}.jsonl") for name in ("documents", "queries"))
    judged = {row["query"] for row in lines(tmp_path / "cranfield-judgements.jsonl")}
    assert len(documents) == 1400 and len(queries) == 225 and judged <= {row["id"] for row in queries}
    assert sum(not row["text"] for row in documents) < 5


def test_what_is_no_conversion(tmp_path):
    assert refused(main, ["blimp", "x", "y"]).startswith("usage: ")
    assert "no such file" in refused(main, ["clinc150", str(tmp_path / "none"), str(tmp_path)])
