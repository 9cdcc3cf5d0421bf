"""Predictions: those of the fine-tuning, for every format, in the file's order, bad rows in their place, whole or not at all."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from recipe import predict as predict_module
from recipe.config import PredictConfig, run_main
from recipe.finetune.__main__ import finetune
from recipe.predict import main, predict
from tests.mistakes import refused
from tests.tiny.models import write_run
from tests.tiny.own import own_config, write_own


@pytest.fixture(scope="module", params=["mosaic_bert", "hf_bert"])
def home(request, tmp_path_factory) -> Path:
    """A folder with fine-tuned models of every kind, in KIND, on either form of batches."""
    folder = tmp_path_factory.mktemp(request.param)
    write_run(folder / "run", request.param)
    write_own(folder / "own", 80)
    for kind in ("classification", "multilabel", "regression", "entities"):
        finetune(own_config(folder, kind, epochs=2.0, dev_share=0.2, max_length=16, out=str(folder / kind)))
    return folder


def predicted(home: Path, kind: str, file: Path, **settings) -> list[dict]:
    config = PredictConfig(
        **{"model": str(home / kind), "file": str(file), "precision": "fp32", "device": "cpu", **settings}
    )
    return [json.loads(line) for line in predict(config).read_text("utf-8").splitlines()]


@pytest.mark.parametrize("kind", ["classification", "regression", "entities"])
def test_predictions_are_those_of_the_fine_tuning(home, kind):
    """The scored set again: what the job wrote of it, in whatever batches."""
    name = {"classification": "test.csv", "entities": "test.txt", "regression": "train.tsv"}[kind]
    found = predicted(home, kind, home / "own" / name, out=str(home / f"{kind}.jsonl"), max_tokens=64)
    if kind == "regression":
        assert len(found) == 80 and {*found[0]} == {"row", "prediction"}
        return
    said = [line.split("\t")[1] for line in (home / kind / "jobs/19/test.tsv").read_text().splitlines()[1:]]
    assert [one["prediction"] if kind == "classification" else " ".join(one["prediction"]) for one in found] == said
    probabilities = [p for one in found for p in (one["probability"] if kind == "entities" else [one["probability"]])]
    assert all(0.4 < p <= 1 for p in probabilities) and len({*probabilities}) > 5


def test_every_format_gives_the_same(home, tmp_path):
    with (home / "own/test.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    texts = [row["text"] for row in rows]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "x.tsv").write_text("text\n" + "".join(f"{text}\n" for text in texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "x.parquet")
    said = [
        one["prediction"]
        for one in predicted(home, "classification", home / "own/test.csv", out=str(tmp_path / "csv.jsonl"))
    ]
    for name in ("x.jsonl", "x.tsv", "x.parquet"):
        found = predicted(home, "classification", tmp_path / name)
        assert [one["prediction"] for one in found] == said and (tmp_path / f"{name}.predictions.jsonl").is_file()


def test_rows_that_cannot_be_read_keep_their_place(home, tmp_path, capsys):
    file = tmp_path / "x.csv"
    file.write_bytes(
        '\ufefftext\r\nred house\r\n""\r\n"a"b\r\none,two\r\ncaf\u00e9\r\n'.encode() + "caf\u00e9".encode("cp1252")
    )
    found = predicted(home, "classification", file)
    assert [one["row"] for one in found] == [2, 3, 4, 5, 6, 7]
    assert [one["prediction"] is None for one in found] == [False, True, True, True, False, True]
    assert found[1]["problem"] == "column `text` is empty" and "UTF-8" in found[5]["problem"]
    said = capsys.readouterr().out
    assert "4 rows have no prediction" in said and f"{file}:3: column `text` is empty" in said and "peak memory" in said


def test_several_labels_numbers_and_tables(home, tmp_path):
    out = tmp_path / "out.csv"
    config = dict(
        model=str(home / "multilabel"),
        file=str(home / "own/train.jsonl"),
        out=str(out),
        precision="fp32",
        all_labels=True,
    )
    predict(PredictConfig(**config))
    with out.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 160 and list(rows[0]) == ["row", "prediction", "probability", "problem", "probabilities"]
    for row in rows:
        every = json.loads(row["probabilities"])
        assert [name for name, p in every.items() if p > 0.5] == [word for word in row["prediction"].split(",") if word]


def test_memory_does_not_grow_with_the_file_and_chunks_change_nothing(home, tmp_path, monkeypatch):
    """So many rows at a time are in memory, whatever the file's length."""
    file = home / "own/test.csv"
    usual = predicted(home, "classification", file, out=str(tmp_path / "one.jsonl"))
    seen, real = [], predict_module.Predictor.answers

    def watched(self, texts, tally):
        seen.append(len(texts))
        return real(self, texts, tally)

    monkeypatch.setattr(predict_module.Predictor, "answers", watched)
    monkeypatch.setattr(predict_module, "CHUNK_ROWS", 7)
    small = predicted(home, "classification", file, out=str(tmp_path / "two.jsonl"))
    assert max(seen) == 7 and len(seen) == 12
    assert [one["prediction"] for one in small] == [one["prediction"] for one in usual]
    assert [one["probability"] for one in small] == pytest.approx([one["probability"] for one in usual], abs=1e-5)
    monkeypatch.setattr(predict_module, "CHUNK_CHARACTERS", 10)
    seen.clear()
    predicted(home, "classification", file, out=str(tmp_path / "three.jsonl"))
    assert max(seen) == 1


def test_whole_or_not_at_all(home, tmp_path):
    file = tmp_path / "x.csv"
    file.write_text("text\n" + "red house\n" * 20 + '"open\n' + "blue\n")
    assert f"{file}:22: a quotation mark opens a cell" in refused(predicted, home, "classification", file)
    (tmp_path / "y.jsonl").write_text('{"txt": "red"}\n{"txt": "blue"}\n')
    message = refused(predicted, home, "classification", tmp_path / "y.jsonl")
    assert "y.jsonl:1: no `text` in it; did you mean `txt`?; no row could be read" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "y.jsonl"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{home}/run", "{home}/own/test.csv"], "no task.json in it"),
        (["{home}/classification", "{home}/none.csv"], "none.csv: no such file"),
        (["{home}/classification", "{home}/own/test.csv", "out={home}/own/test.csv"], "is what is read"),
        (["{home}/classification", "{home}/own/test.csv", "out={home}/x.txt"], "predictions are .jsonl, .csv or .tsv"),
        (
            ["{home}/classification", "{home}/own/test.csv", "text=[txt]"],
            "test.csv:1: no column `txt`; did you mean `text`?",
        ),
        (["{home}/regression", "{home}/own/train.tsv", "text=[one]"], "the model reads 2 of them (one, two)"),
        (["{home}/classification", "{home}/own/test.csv", "max_tokens=8"], "a text of this model has up to 16"),
        (["{home}/classification", "{home}/own/test.csv", "modle=x"], "did you mean `model`?"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(home, capsys, words, message):
    before = sorted(home.rglob("*"))
    assert run_main(PredictConfig, main, [word.format(home=home) for word in words], first=("model", "file")) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(home.rglob("*")) == before


def test_the_page_of_help(capsys):
    assert run_main(PredictConfig, main, ["--help"], first=("model", "file")) == 0
    assert capsys.readouterr().out.startswith("usage: MODEL FILE [key=value ...]")
    assert run_main(PredictConfig, main, ["one"], first=("model", "file")) == 2


def test_transformers_pipeline_says_the_same_of_a_hugging_face_folder(home, tmp_path):
    from transformers import pipeline

    if not (home / "classification/model/config.json").read_text().count("ForSequenceClassification"):
        return  # this project's own form
    found = predicted(home, "classification", home / "own/test.csv", out=str(tmp_path / "x.jsonl"), all_labels=True)
    with (home / "own/test.csv").open(newline="", encoding="utf-8") as stream:
        texts = [row["text"] for row in csv.DictReader(stream)]
    for kind, model in (("classification", "text-classification"), ("entities", "token-classification")):
        pipe = pipeline(model, str(home / kind / "model"), device="cpu")
        if kind == "classification":
            said = pipe(texts, truncation=True, max_length=16)
            assert [one["label"] for one in said] == [one["prediction"] for one in found]
            assert [one["score"] for one in said] == pytest.approx([one["probability"] for one in found], abs=1e-5)
        else:
            assert {one["entity"] for one in pipe("the red horse", ignore_labels=[])} <= {"O", "B-ANIMAL"}


def test_weights_that_do_not_fit_are_counted(home, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(home / "classification/model", folder)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if "classifier" in name)
    save_file(
        {**{key: t for key, t in weights.items() if key != name}, "odd": weights[name].clone()},
        folder / "model.safetensors",
    )
    found = refused(predicted, tmp_path, "model", home / "own/test.csv", out=str(tmp_path / "x.jsonl"))
    assert "(1 missing, 1 unknown)" in found and name in found


def test_the_benchmark_asks_both_for_the_same(home, tmp_path):
    from benchmarks import predict as benchmark

    words = dict(epochs=6.0, lr=5e-3, dev_share=0.2, max_length=16, out=str(tmp_path / "mine"))
    finetune(own_config(home, "classification", **words))
    texts = benchmark.texts_of(words["out"], home / "own/test.csv", 80)
    said = benchmark.ours(words["out"])("fp32", texts)
    assert len(said) == 80 and {*said} == {"colour", "animal"}
    if "hf_bert" in home.name:  # of the others the pipeline has to be given an export
        pipeline = benchmark.theirs(words["out"])
        assert pipeline("fp32 sorted 4", texts) == pipeline("fp32 as-it-comes 1", texts) == said
