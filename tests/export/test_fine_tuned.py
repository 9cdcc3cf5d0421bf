"""What `recipe.finetune` leaves, in other people's hands: the same labels and probabilities as `recipe.predict`, or nothing."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import transformers
from scipy import special
from sentence_transformers import SentenceTransformer

from recipe.config import PredictConfig, RetrieveConfig
from recipe.export import held_out, subject, transformers_form, verify
from recipe.export.finding import find_subject
from recipe.finetune.__main__ import finetune
from recipe.predict import predict
from recipe.retrieve import embed, load
from recipe.system.hardware import find_hardware
from tests.mistakes import refused
from tests.tiny.models import write_run
from tests.tiny.own import own_config, write_own
from tests.tiny.tasks import write_pairs

LENGTH = 16  # tokens, at which texts are cut
PAIRS = {"train": ["train.tsv"], "text": ["one", "two"], "epochs": 1.0}
OTHERS = {"embedding": {**PAIRS, "positives": 4.0}, "siamese_regression": PAIRS}
CODE = "modeling_mosaic_bert.py"


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory) -> Callable[[str, str], Path]:
    """(architecture, kind) -> the results' folder of a fine-tuning, made when it is first asked for."""
    homes: dict[str, Path] = {}

    def made(model: str, kind: str) -> Path:
        if model not in homes:
            homes[model] = tmp_path_factory.mktemp(model)
            write_run(homes[model] / "run", model)
            write_own(homes[model] / "own", 60)
        out = homes[model] / kind
        if not out.exists():
            settings = {"epochs": 2.0, "dev_share": 0.2, "max_length": LENGTH, "out": str(out), **OTHERS.get(kind, {})}
            finetune(own_config(homes[model], kind, **settings))
        return out

    return made


def rows_of(folder: Path, file: str) -> list[dict]:
    """What `recipe.predict` says of a file of the task, with the probabilities of all labels."""
    out = folder / f"{file}.jsonl"
    file = str(folder.parent / "own" / file)
    predict(PredictConfig(model=str(folder), file=file, out=str(out), precision="fp32", device="cpu", all_labels=True))
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()]


def texts_of(folder: Path, file: str) -> list[dict[str, str]]:
    """The same file's texts, as a pipeline takes them."""
    path = folder.parent / "own" / file
    if path.suffix == ".jsonl":
        return [{"text": json.loads(line)["text"]} for line in path.read_text("utf-8").splitlines()]
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))
    return [{"text": row["text"]} if "text" in row else {"text": row["one"], "text_pair": row["two"]} for row in rows]


def pipeline(use: str, folder: Path, **settings):
    trust = {"trust_remote_code": True} if (folder / CODE).is_file() else {}
    return transformers.pipeline(use, str(folder), device="cpu", **trust, **settings)


@pytest.mark.parametrize(
    ("model", "kind", "file"),
    [
        ("mosaic_bert", "classification", "test.csv"),
        ("hf_bert", "classification", "test.csv"),
        ("mosaic_bert", "multilabel", "train.jsonl"),
        ("mosaic_bert", "regression", "train.tsv"),
        ("hf_bert", "regression", "train.tsv"),
    ],
)
def test_the_pipeline_says_what_predict_says_of_texts_and_pairs(fine_tuned, export, tmp_path, model, kind, file):
    """Texts that are cut too."""
    folder = fine_tuned(model, kind)
    out = export(folder, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert ("auto_map" in config) == (out / CODE).is_file() == (model == "mosaic_bert")
    assert config["problem_type"] == find_subject(str(folder)).kind.problem_type
    classify = pipeline("text-classification", out, truncation=True, top_k=None)
    said = [classify(text) for text in texts_of(folder, file)]
    expected = rows_of(folder, file)
    assert len(said) == len(expected) > 50
    numbers = [row.get("probabilities", {"": row["prediction"]}) for row in expected]
    assert np.ptp([next(iter(one.values())) for one in numbers]) > 1e-4
    for one, row in zip(said, expected, strict=True):
        scores = {answer["label"]: answer["score"] for answer in one}
        if kind == "regression":
            assert [*scores.values()] == [pytest.approx(row["prediction"], abs=1e-6)]
            continue
        assert scores == pytest.approx(row["probabilities"], abs=1e-6)
        chosen = [label for label in row["probabilities"] if scores[label] > 0.5]
        assert row["prediction"] == (chosen if kind == "multilabel" else max(scores, key=scores.get))
    record = json.loads((out / verify.FILE_NAME).read_text())
    assert record["task"]["kind"] == kind and record["facts"]["held-out texts of its own, compared"] > 10
    what = "numbers of the pipeline" if kind == "regression" else "probabilities of the pipeline"
    assert {what, "loss", "gradients, relative to the largest", "logits, one alone, eager"} <= record["verified"].keys()


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_the_pipeline_tags_words_as_predict_does(fine_tuned, export, tmp_path, model):
    folder = fine_tuned(model, "entities")
    out = export(folder, tmp_path / "out")
    tag = pipeline("token-classification", out, ignore_labels=[])
    blocks = (folder.parent / "own/test.txt").read_text().strip().split("\n\n")
    compared = 0
    for block, row in zip(blocks, rows_of(folder, "test.txt"), strict=True):
        words = [line.split()[0] for line in block.splitlines()]
        text, start = " ".join(words), 0
        by_start = {token["start"]: token for token in tag(text)}
        if len(tag.tokenizer(text)["input_ids"]) > LENGTH:
            continue  # `recipe.predict` reads windows
        for word, label, probability in zip(words, row["prediction"], row["probability"], strict=True):
            assert by_start[start]["entity"] == label
            assert float(by_start[start]["score"]) == pytest.approx(probability, abs=1e-5)
            start += len(word) + 1
            compared += 1
    assert compared > 100 and json.loads((out / "config.json").read_text())["label2id"] == {"O": 0, "B-ANIMAL": 1}


@pytest.mark.parametrize("kind", ["classification", "entities"])
def test_a_graph_takes_batches_of_any_size(fine_tuned, export, tmp_path, kind):
    folder = fine_tuned("mosaic_bert", kind)
    out = export(folder, tmp_path / "out", format="onnx")
    record = json.loads((out / verify.FILE_NAME).read_text())
    assert {"logits, one alone, ONNX Runtime", "logits, padded on the left, ONNX Runtime"} <= record["verified"].keys()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    if kind == "entities":
        logits = session.run(None, dict(tokenizer(["red house", "a"] * 4, padding=True, return_tensors="np")))[0]
        assert logits.shape == (8, 4, 2)
        return
    texts = [text["text"] for text in texts_of(folder, "test.csv")]
    rows = rows_of(folder, "test.csv")
    for count in (1, 2, 3, 17):
        batch = tokenizer(texts[:count], padding=True, truncation=True, return_tensors="np")
        probabilities = special.softmax(session.run(None, dict(batch))[0], axis=1)
        expected = [[row["probabilities"][label] for label in ("animal", "colour")] for row in rows[:count]]
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_vectors_are_those_that_retrieval_takes(fine_tuned, export, tmp_path, model):
    folder = fine_tuned(model, "embedding")
    out = export(folder, tmp_path / "out", format="sentence")
    texts = ["a red horse near the old house and the tree", "snake", "white and [SEP] black " * 5]
    config = RetrieveConfig(checkpoint=str(folder), max_length=LENGTH, documents=[], queries=[], judgements=[])
    hardware = find_hardware("cpu", "fp32", ranks=1)
    ours = embed(texts, *load(config, hardware), hardware, config)
    theirs = SentenceTransformer(str(out), device="cpu", trust_remote_code=model == "mosaic_bert").encode(texts)
    np.testing.assert_allclose(theirs, ours, atol=1e-5)
    card = (out / "README.md").read_text()
    assert f"A text is cut at {LENGTH} tokens" in card and "has not been trained on pairs" not in card


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (
            "siamese_regression",
            {},
            "neither transformers nor sentence-transformers has a class; predict with python -m",
        ),
        ("embedding", {}, "format=huggingface: a model of kind `embedding` is exported with format=sentence"),
        ("embedding", {"format": "sentence", "pooling": "cls"}, "pooling=cls: its vectors were trained as means"),
        ("classification", {"format": "sentence"}, "is exported with format=huggingface or format=onnx"),
        ("classification", {"format": "onnx", "int8": "{folder}/pairs.jsonl"}, "leave int8 out"),
    ],
)
def test_what_does_not_fit_is_one_line(fine_tuned, export, tmp_path, kind, settings, said):
    pairs = tmp_path / "pairs.jsonl"
    write_pairs(pairs, {"colours": 60})
    settings = {key: value.format(folder=tmp_path) for key, value in settings.items()}
    assert said in refused(export, fine_tuned("mosaic_bert", kind), tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == [pairs]


def test_an_architecture_with_other_heads_in_transformers_is_refused(fine_tuned, export, tmp_path, monkeypatch):
    row = subject.architecture("mosaic_bert")
    without = dataclasses.replace(row, export=dataclasses.replace(row.export, heads=None))
    monkeypatch.setattr(subject, "architecture", lambda name: without)
    says = refused(export, fine_tuned("mosaic_bert", "classification"), tmp_path / "out")
    assert (
        "transformers' MosaicBert has another head than the one that a `mosaic_bert` is fine-tuned with here; predict"
        in says
    )


def test_a_fine_tuning_that_has_not_ended_is_one_line(fine_tuned, export, tmp_path):
    folder = shutil.copytree(fine_tuned("mosaic_bert", "classification"), tmp_path / "unfinished")
    shutil.rmtree(folder / "model")
    assert "its fine-tuning has not ended; run it again" in refused(export, folder, tmp_path / "out")


def test_files_that_are_gone_or_others_are_not_compared(fine_tuned):
    results = find_subject(str(fine_tuned("mosaic_bert", "classification"))).results
    assert len(held_out.of_task(results).texts) == 60
    config = {**results["config"], "data": "nowhere"}
    assert held_out.of_task({**results, "config": config}).absent == "its task's files are not there any more"
    section = {**results["finetune"], "inputs": {"data": "another"}}
    assert held_out.of_task({**results, "finetune": section}).absent == "its task's files are others by now"


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weight", "logits, padded on the right, sdpa differs by"),
        ("labels", "probabilities of the pipeline differs by"),
        ("special", "the tokenizer makes other ids of 'x ["),
    ],
)
def test_what_differs_is_not_written(fine_tuned, export, tmp_path, monkeypatch, what, words):
    whole = transformers_form.write_model

    def damaged(whatever, model, folder: Path) -> None:
        if what == "weight":
            with torch.no_grad():
                model.classifier.bias[0] += 1e-3
        if what == "labels":
            model.config.id2label = dict(enumerate(reversed(model.config.id2label.values())))
        if what == "special":
            whatever.plain_text = False
        whole(whatever, model, folder)

    monkeypatch.setattr(transformers_form, "write_model", damaged)
    message = refused(export, fine_tuned("mosaic_bert", "classification"), tmp_path / "out")
    assert message.startswith("the export is not the fine-tuned model, so nothing was written: ") and words in message
    assert list(tmp_path.iterdir()) == []


def test_the_card_has_the_record_s_task_labels_and_scores(fine_tuned, export, tmp_path):
    folder = fine_tuned("hf_bert", "classification")
    record = json.loads((folder / "run.json").read_text())
    out = export(folder, tmp_path / "out")
    card = (out / "README.md").read_text()
    (scored,) = record["finetune"]["tasks"].values()
    words = [
        "pipeline_tag: text-classification", "| labels | animal, colour |", "run, fine-tuned on mine",
        f"| accuracy | {scored['runs'][0]['metrics']['accuracy']:.2f} | {scored['metrics']['accuracy']:.2f} |",
        f"| examples | {scored['train_examples']} to train on, {scored['dev_examples']} scored |",
        f"| dollars | {record['cost']['usd']:.4g}, at", "On the task's test set", "Whoever publishes this folder",
    ]  # fmt: skip
    assert [word for word in words if word not in card] == [] and "license:" not in card.split("---")[1]
    for file in out.iterdir():
        assert str(folder.parent).encode() not in file.read_bytes(), f"{file.name} tells a path of this machine"
    alone = shutil.copytree(folder / "model", tmp_path / "alone")
    export(alone, tmp_path / "second")
    card = (tmp_path / "second" / "README.md").read_text()
    assert "The record of its fine-tuning is not here" in card and "| accuracy |" in card
    facts = json.loads((tmp_path / "second" / verify.FILE_NAME).read_text())["facts"]
    assert facts["held-out texts of its own, compared"] == "none: no record of its fine-tuning is beside it"
