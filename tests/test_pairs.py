"""Scores on minimal pairs against a loop that masks one token at a time, as a user runs them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from recipe import convert, records
from recipe.config import PairsConfig, run_main
from recipe.finetune.batches import ExampleCollator
from recipe.finetune.minimal_pairs import mask_each, read_pairs
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.hf_bert import HFBertForMaskedLM
from recipe.pairs import main, pseudo_log_likelihoods
from recipe.system.hardware import find_hardware
from recipe.training.checkpoint import find_checkpoint
from tests.tiny.families import FAMILIES, write_family
from tests.tiny.models import write_encoder, write_run
from tests.tiny.runs import composer_checkpoint
from tests.tiny.tasks import write_pairs

HARDWARE = find_hardware("cpu", "fp32", 1)
TEXTS = ["the red horse", "a tree near the very old house", "white", "of of of of", "the old red tiger under the house"]


def by_hand(folder: Path, text: str) -> float:
    """One token masked at a time, one forward pass each, every logit computed."""
    checkpoint = find_checkpoint(str(folder))
    ids = torch.tensor(checkpoint.tokenizer.encode(text).ids)
    if checkpoint.model == "mosaic_bert":
        sizes, weights = convert.read_encoder(folder)
        model = MosaicBertForMaskedLM(sizes)
        model.load_state_dict(weights)
        call = model.padded
    else:
        model = call = AutoModelForMaskedLM.from_pretrained(folder)
    model.eval()
    total = 0.0
    for place in range(1, len(ids) - 1):
        masked = ids.clone()
        masked[place] = checkpoint.mask_id
        with torch.no_grad():
            logits = call(masked[None], attention_mask=torch.ones(1, len(ids), dtype=torch.int64)).logits
        total += float(logits[0, place].double().log_softmax(0)[ids[place]])
    return total


@pytest.mark.parametrize("max_tokens", [8, 60, 8192])
@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_batches_give_what_one_token_at_a_time_gives(tmp_path, kind, max_tokens):
    write_encoder(tmp_path, kind)
    checkpoint = find_checkpoint(str(tmp_path))
    copies, which = mask_each(checkpoint.tokenizer, TEXTS, checkpoint.mask_id)
    model = checkpoint.masked_lm(checkpoint.resolve_backends(HARDWARE)).eval()
    collator = ExampleCollator(max_tokens, checkpoint.padding)
    found = pseudo_log_likelihoods(model, copies, collator, HARDWARE)[which]
    expected = [by_hand(tmp_path, text) for text in TEXTS]
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert len(set(np.round(expected, 3))) == len(TEXTS)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "bert"])
def test_every_family_gives_what_one_token_at_a_time_gives(tmp_path, kind):
    checkpoint = find_checkpoint(str(write_family(tmp_path / kind, kind)))
    copies, which = mask_each(checkpoint.tokenizer, TEXTS[:2], checkpoint.mask_id)
    model = checkpoint.masked_lm(checkpoint.resolve_backends(HARDWARE)).eval()
    found = pseudo_log_likelihoods(model, copies, ExampleCollator(60, checkpoint.padding), HARDWARE)[which]
    np.testing.assert_allclose(found, [by_hand(tmp_path / kind, text) for text in TEXTS[:2]], rtol=2e-5)


@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_a_checkpoint_is_scored_by_its_own_weights(tmp_path, kind):
    run = write_run(tmp_path / "run", kind)
    torch.manual_seed(99)  # another model than the one in run/encoder
    sizes = convert.read_encoder(run / "encoder")[0] if kind == "mosaic_bert" else write_encoder(tmp_path / "sizes")
    model = MosaicBertForMaskedLM(sizes) if kind == "mosaic_bert" else HFBertForMaskedLM(sizes, 64)
    with torch.no_grad():
        model.get_parameter("head.bias" if kind == "mosaic_bert" else "bert.cls.predictions.bias").normal_()
    found = find_checkpoint(str(composer_checkpoint(run, model))).masked_lm(
        find_checkpoint(str(run)).resolve_backends(HARDWARE)
    )
    loaded = (
        found.state_dict() if kind == "mosaic_bert" else {f"bert.{n}": t for n, t in found.model.state_dict().items()}
    )
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in model.state_dict().items())


def score(tmp_path: Path, *words: str, checkpoint: str = "run") -> int:
    """As a user does; the exit status."""
    file = tmp_path / "pairs.yaml"
    file.write_text(
        f"checkpoint: {tmp_path / checkpoint}\ndata: {tmp_path / 'pairs.jsonl'}\ndevice: cpu\ncost: {{usd_per_hour: 3.6}}\n"
    )
    return run_main(PairsConfig, main, [str(file), *words])


def test_scores_are_recorded_in_the_run(tmp_path, run, capsys):
    write_pairs(tmp_path / "pairs.jsonl", {"one": 60, "two": 44, "three": 48}, terms=["t1", "t1", "t2"])
    assert score(tmp_path) == 0
    record = records.read_record(run / "pairs")
    found = record["pairs"]
    assert (record["kind"], record["status"], record["model"], found["part"]) == (
        "pairs",
        "finished",
        "mosaic_bert",
        "reported",
    )
    assert [one["pairs"] for one in found["paradigms"].values()] == [20, 4, 8]
    for name, paradigm in zip(found["paradigms"], read_pairs(str(tmp_path / "pairs.jsonl"), "reported"), strict=True):
        likelihoods = [[by_hand(run / "encoder", text) for text in pair] for pair in paradigm.pairs]
        right = sum(good > bad for good, bad in likelihoods)
        assert found["paradigms"][name]["score"] == pytest.approx(100 * right / len(likelihoods))
    scores = [one["score"] for one in found["paradigms"].values()]
    assert found["score"] == pytest.approx(sum(scores) / 3) and found["fields"] == {"syntax": found["score"]}
    assert found["terms"] == {"t1": pytest.approx(sum(scores[:2]) / 2), "t2": scores[2]}
    assert record["sequences"] > 64 and record["tokens"] > 3 * record["sequences"] and record["cost"]["usd"] > 0
    assert records.read_record(run)["pairs"] == found and records.read_record(run)["kind"] == "pretrain"
    capsys.readouterr()
    assert score(tmp_path, "max_tokens=64") == 0
    out = capsys.readouterr().out
    assert "holds these scores already; nothing to do" in out and "32 pairs of 3 paradigms" in out
    write_pairs(tmp_path / "pairs.jsonl", {"one": 42})  # other pairs: the scores that are there are of no use
    assert score(tmp_path) == 0
    assert list(records.read_record(run)["pairs"]["paradigms"]) == ["one"]


def test_the_tuning_part_stays_out_of_the_runs_record(tmp_path, run, capsys):
    write_pairs(tmp_path / "pairs.jsonl", {"one": 60})
    assert score(tmp_path, "part=tuning", "max_pairs=5") == 0
    found = records.read_record(run / "pairs-tuning")["pairs"]
    assert (found["part"], found["max_pairs"], found["paradigms"]["one"]["pairs"]) == ("tuning", 5, 5)
    assert "pairs" not in records.read_record(run)
    assert score(tmp_path, "part=tuning") == 2
    assert "holds scores with max_pairs=5, and now max_pairs=0" in capsys.readouterr().err


def test_equal_sequences_tie_and_count_half(tmp_path, run):
    rows = [("The red horse", "the RED horse"), ("a tree", "a  tree"), ("a tree", "the the of the the road")]
    write_pairs(tmp_path / "pairs.jsonl", {"one": 3}, rows=rows)
    assert score(tmp_path, "part=tuning") == 0
    one = records.read_record(run / "pairs-tuning")["pairs"]["paradigms"]["one"]
    third = by_hand(run / "encoder", rows[2][0]) > by_hand(run / "encoder", rows[2][1])
    assert (one["ties"], one["score"]) == (2, pytest.approx(100 * (1 + third) / 3))


def test_a_hugging_face_folder_is_scored(tmp_path):
    write_encoder(tmp_path / "hf", "hf_bert")
    write_pairs(tmp_path / "pairs.jsonl", {"one": 43})
    assert score(tmp_path, f"out={tmp_path / 'scores'}", checkpoint="hf") == 0
    record = records.read_record(tmp_path / "scores")
    pairs = read_pairs(str(tmp_path / "pairs.jsonl"), "reported")[0].pairs
    right = sum(by_hand(tmp_path / "hf", good) > by_hand(tmp_path / "hf", bad) for good, bad in pairs)
    assert record["model"] == "hf_bert" and record["pairs"]["score"] == pytest.approx(100 * right / 3)


def refused(tmp_path: Path, capsys: pytest.CaptureFixture, *words: str, checkpoint: str = "run") -> str:
    """The one line of a refusal, after which nothing has been written."""
    before = sorted(tmp_path.rglob("*"))
    assert score(tmp_path, *words, checkpoint=checkpoint) == 2
    assert sorted({*tmp_path.rglob("*")} - {tmp_path / "pairs.yaml"}) == [
        file for file in before if file.name != "pairs.yaml"
    ]
    line = capsys.readouterr().err.splitlines()
    assert len(line) == 1
    return line[0]


def test_what_cannot_work_is_one_line_and_writes_nothing(tmp_path, run, capsys):
    write_pairs(tmp_path / "pairs.jsonl", {"one": 43})
    assert "part=all: must be one of tuning, reported" in refused(tmp_path, capsys, "part=all")
    assert "max_pairs=-1" in refused(tmp_path, capsys, "max_pairs=-1")
    assert "max_tokens=4: must be at least 8" in refused(tmp_path, capsys, "max_tokens=4")
    assert "data=nowhere: no *.jsonl" in refused(tmp_path, capsys, "data=nowhere")
    assert "no such file or folder" in refused(tmp_path, capsys, checkpoint="nowhere")
    shutil.copytree(run / "encoder", tmp_path / "alone")
    assert "belongs to no run of this project" in refused(tmp_path, capsys, checkpoint="alone")
    write_encoder(tmp_path / "short", "hf_bert", positions=6)
    line = refused(tmp_path, capsys, f"out={tmp_path / 'scores'}", checkpoint="short")
    assert "tokens, but the model has 6 position embeddings; remove its pair" in line


def test_a_model_without_its_head_is_refused(tmp_path, capsys):
    from transformers import BertConfig, BertForSequenceClassification

    write_encoder(tmp_path / "hf", "hf_bert")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    BertForSequenceClassification(BertConfig(**config)).save_pretrained(tmp_path / "hf")
    write_pairs(tmp_path / "pairs.jsonl", {"one": 43})
    capsys.readouterr()
    line = refused(tmp_path, capsys, f"out={tmp_path / 'scores'}", checkpoint="hf")
    assert "no weights for `cls.predictions" in line
