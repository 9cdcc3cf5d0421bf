"""Held-out texts of a run: a dataset's own records, as long as it is the one that the run was evaluated on."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recipe import records
from recipe.config import PrepareConfig, Source, Tokenizer
from recipe.data.documents import Documents
from recipe.data.shards import read_info
from recipe.export import checks, held_out
from recipe.export.finding import find_subject
from recipe.export.subject import PretrainedEncoder
from recipe.export.transformers_form import converted, write_model
from recipe.prepare import prepare
from tests.tiny.models import write_run
from tests.tiny.texts import make_text, write_text


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A run whose record names the dataset beside it."""
    folder = tmp_path_factory.mktemp("home")
    run = write_run(folder / "run")
    write_text(folder / "texts" / "x.jsonl", make_text(300, 1))
    vocabulary = Tokenizer(name=str(run / "encoder"))
    prepare(PrepareConfig(out=str(folder / "dataset"), train=Source(files=[str(folder / "texts/*.jsonl")]),
                          validation_fraction=0.2, tokenizer=vocabulary, processes=1))  # fmt: skip
    record = records.read_record(run)
    record["config"]["data"] = {"path": str(folder / "dataset"), "eval_split": "validation", "sequence_length": 64}
    record["dataset"] = records.dataset(read_info(folder / "dataset").vocabulary.sha256, 60, 1000)
    records.write_record(run, record)
    return folder


def test_records_are_those_of_the_validation_split(home):
    found = find_subject(str(home / "run")).held_out
    documents = Documents(home / "dataset", "validation")
    expected = [one.tolist() for one in documents.read(np.arange(len(documents)), 1000)]
    documents.close()
    assert found.absent is None and found.ids == expected and len(found.texts) == len(expected) > 30
    tokenizer = find_subject(str(home / "run")).checkpoint.tokenizer
    assert found.texts[3] == (tokenizer.decode(expected[3]),) and "cats" in found.texts[3][0]


def test_a_tokenizer_that_differs_on_them_alone_is_found(home, tmp_path, monkeypatch):
    """Two of their tokens, which stand in no other text that is compared, are each other's."""
    subject = find_subject(str(home / "run"))
    write_model(subject, converted(subject), tmp_path)
    monkeypatch.setattr(checks, "texts", lambda: ["red house"])
    exported = checks.Exported(subject, tmp_path, tmp_path)
    checks.check_tokens(exported)
    assert exported.facts["held-out texts of its own, compared"] == len(subject.held_out.texts)
    file = tmp_path / "tokenizer.json"
    tokens = json.loads(file.read_text())
    used = {token for ids in subject.held_out.ids for token in ids}
    ids = tokens["model"]["vocab"]
    one, other = [token for token, number in ids.items() if number in used and token.isalpha()][:2]
    ids[one], ids[other] = ids[other], ids[one]
    file.write_text(json.dumps(tokens))
    with pytest.raises(checks.Different, match="other tokens behind the ids of the run's dataset"):
        checks.check_tokens(checks.Exported(subject, tmp_path, tmp_path))


def test_what_is_gone_or_another_is_said(home, tmp_path):
    run = shutil.copytree(home / "run", tmp_path / "run")
    record = records.read_record(run)

    def absent(**data) -> str | None:
        changed = {**record, "config": {**record["config"], "data": {**record["config"]["data"], **data}}}
        records.write_record(run, changed)
        return held_out.of_run(PretrainedEncoder(find_subject(str(run)).checkpoint).checkpoint).absent

    assert absent() is None
    assert absent(path=str(tmp_path / "nowhere")) == "its run's dataset is not there any more"
    assert absent(path="s3://bucket/dataset") == "its run's dataset is in an object store"
    record["dataset"]["vocabulary_sha256"] = "another"
    assert absent() == "another dataset stands where its run's was"
    checkpoint = dataclasses.replace(find_subject(str(run)).checkpoint, run=None)
    assert held_out.of_run(checkpoint).absent == "no run is known that it came from"
