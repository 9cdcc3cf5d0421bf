"""Encoders that learnt to detect: ELECTRA's discriminator of a BERT, an encoder without a head of the others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from recipe.export import verify
from recipe.finetune.kinds import CLASSIFICATION
from recipe.model.encoder import Backends
from recipe.training.checkpoint import find_checkpoint
from tests.mistakes import refused
from tests.tiny.configs import train_yaml
from tests.tiny.families import write_family
from tests.tiny.runs import run

IDS = torch.arange(5, 17).reshape(2, 6)
RUNS = {
    "hf_bert": ("objective=replaced_tokens", "generator.hidden_size=16"),
    "mosaic_bert": ("objective=replaced_tokens", "generator.num_hidden_layers=1"),
    "modern": ("objective=swapped_tokens", "model.window=8", "model.global_every=2"),
}


@pytest.fixture(scope="module")
def runs(tiny_dataset, tmp_path_factory) -> dict[str, Path]:
    found = {}
    for name, words in RUNS.items():
        folder = tmp_path_factory.mktemp(name)
        more = ("duration=2ba", "optimizer.lr=1e-2", "schedule.warmup=0", "data.eval_documents=8", "device=cpu")
        run(train_yaml(folder, tiny_dataset, f"model.name={name}", *words, *more, "precision=fp32"))
        found[name] = folder / "run"
    return found


@pytest.fixture(scope="module")
def exported(runs, export, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    return {name: export(path, folder / name) for name, path in runs.items()}


def load(folder: Path, auto: str, **settings):
    trust = {"trust_remote_code": True} if any(folder.glob("*.py")) else {}
    return getattr(transformers, auto).from_pretrained(folder, **trust, **settings).eval()


def test_a_bert_that_detects_is_electra_s_discriminator(runs, exported, tmp_path):
    """What the run trained, on transformers' BERT, and what is handed on, on its ELECTRA, say the same of every token."""
    folder = exported["hf_bert"]
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["embedding_size"]) == ("electra", 32) and not any(folder.glob("*.py"))
    found = find_checkpoint(str(runs["hf_bert"]))
    ours, theirs = found.detector(Backends()).eval(), load(folder, "AutoModelForPreTraining")
    mask = torch.ones_like(IDS)
    mask[1, 4:] = 0
    with torch.no_grad():
        expected = ours.logits({"input_ids": IDS, "attention_mask": mask}).view_as(IDS)
        logits = theirs(input_ids=IDS, attention_mask=mask).logits
    assert type(theirs).__name__ == "ElectraForPreTraining" and type(ours.bert.bert).__name__ == "BertModel"
    torch.testing.assert_close(logits[mask == 1], expected[mask == 1], rtol=0, atol=1e-5)
    moved = shutil.copytree(folder, tmp_path / "a copy.v2")
    theirs.save_pretrained(tmp_path / "again")
    for copy in (moved, tmp_path / "again"):
        assert torch.equal(load(copy, "AutoModelForPreTraining")(IDS).logits, theirs(IDS).logits)
    word = load_file(folder / "model.safetensors")["electra.embeddings.word_embeddings.weight"]
    for auto in ("AutoModel", "AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
        assert torch.equal(load(moved, auto).get_input_embeddings().weight, word)


@pytest.mark.parametrize("name", RUNS)
def test_what_was_compared_and_what_the_folder_lacks_are_said(exported, name):
    record = json.loads((exported[name] / verify.FILE_NAME).read_text())
    kinds = {what.split(",")[0] for what in record["verified"]}
    headless = {"hidden states", "loss", "gradients", "hidden states of feature-extraction"}
    assert kinds == headless | ({"logits"} if name == "hf_bert" else set())
    card = (exported[name] / "README.md").read_text()
    facts = record["facts"]
    assert facts["classes that load it"].split(", ")[-2:] == [
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
    ]
    assert "AutoModelForMaskedLM" not in facts["classes that load it"] and "a generator" in facts["not in the folder"]
    objective = RUNS[name][0].removeprefix("objective=")
    assert f"| objective | {objective} |" in card and "pipeline_tag: feature-extraction" in card
    assert "fill-mask" not in card and "It has no head for masked-language modelling" in card
    assert ("AutoModelForPreTraining" in card) is (name == "hf_bert")


@pytest.mark.parametrize(("name", "kind"), [("mosaic_bert", "MosaicBertModel"), ("modern", "ModernBertModel")])
def test_the_others_leave_an_encoder_without_a_head(runs, exported, name, kind):
    model = load(exported[name], "AutoModel")
    assert type(model).__name__ == kind
    ours = find_checkpoint(str(runs[name])).detector(Backends())
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in ours.encoder.parameters())
    assert load(exported[name], "AutoModelForSequenceClassification", num_labels=3)(IDS).logits.shape == (2, 3)


def test_a_bert_that_detects_is_fine_tuned_as_electra(runs):
    """From its folder and from a checkpoint, which hold the same; neither has a decoder."""
    (file,) = (runs["hf_bert"] / "checkpoints").glob("ba2-*.pt")
    word = load_file(runs["hf_bert"] / "encoder/model.safetensors")["electra.embeddings.word_embeddings.weight"]
    for source in (runs["hf_bert"], file):
        found = find_checkpoint(str(source))
        model = found.fine_tuned(CLASSIFICATION, 2, Backends()).model
        assert type(model).__name__ == "ElectraForSequenceClassification" and found.model == "hf_bert"
        assert torch.equal(model.get_input_embeddings().weight, word)
        assert "without a head for masked language modelling" in refused(found.masked_lm, Backends())


def test_a_checkpoint_on_the_way_is_exported_and_graphs_are_not(runs, export, tmp_path):
    (file,) = (runs["hf_bert"] / "checkpoints").glob("ba2-*.pt")
    folder = export(file, tmp_path / "out")
    assert load(folder, "AutoModelForPreTraining").config.model_type == "electra"
    for name in ("hf_bert", "mosaic_bert"):
        said = refused(export, runs[name], tmp_path / "graphs", format="onnx")
        assert "learnt to detect and answers no text yet" in said and not (tmp_path / "graphs").exists()


def test_a_narrower_electra_is_refused(export, tmp_path):
    folder = write_family(tmp_path / "small", "electra")
    config = transformers.AutoConfig.from_pretrained(folder)
    transformers.ElectraForPreTraining(config).save_pretrained(folder)
    said = refused(export, folder, tmp_path / "out")
    assert "a detector of a `electra`" in said and "embedding_size is hidden_size" in said


def test_narrow_layers_and_a_mean_of_weights_are_exported_as_what_they_leave(tiny_dataset, export, tmp_path):
    words = ("model.narrow_layers=2", "average.steps=3", "duration=5ba", "data.eval_documents=8", "precision=fp32")
    record = run(train_yaml(tmp_path, tiny_dataset, *words, "optimizer.lr=1e-2", "schedule.warmup=0", "device=cpu"))
    folder = export(tmp_path / "run", tmp_path / "out")
    kept = find_checkpoint(str(tmp_path / "run")).pretrained().weights["encoder.embeddings.word.weight"]
    assert torch.equal(load(folder, "AutoModelForMaskedLM").get_input_embeddings().weight, kept)
    card = (folder / "README.md").read_text()
    assert "the mean after each of the last 3 batches" in card and record["averaged_batches"] == 3
    assert "the last 2 at masked positions only" in card
