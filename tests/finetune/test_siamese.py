"""Pairs whose texts are sequences of their own: batches, the mean over each, and what is learnt, ours and Hugging Face's."""

import json

import pytest
import torch
from scipy.stats import pearsonr

from recipe import glue, predict
from recipe.config import FinetuneConfig, PredictConfig, load
from recipe.data import tokenizer
from recipe.finetune.__main__ import finetune
from recipe.finetune.batches import ExampleCollator, sequence_lengths
from recipe.finetune.examples import Examples
from recipe.finetune.kinds import KINDS
from recipe.finetune.kinds.siamese import APART, mean_of_tokens
from tests.mistakes import refused
from tests.tiny.configs import glue_config
from tests.tiny.families import write_family
from tests.tiny.models import odd_sizes, with_head, write_tokenizer
from tests.tiny.tasks import write_stsb

PAIRS = [("a cat sat", "the dog"), ("the dog ran off", "a cat"), ("a", "the cat sat on a mat"), ("dog", "dog")]


@pytest.fixture
def encoded(tmp_path):
    write_tokenizer(tmp_path)
    kind = KINDS["siamese_regression"]
    return kind.encode(tokenizer.encoder(tmp_path), Examples(PAIRS, [1.0, 2.0, 3.0, 4.0]), 16)


def test_each_text_is_a_sequence_and_an_example_two(encoded):
    indices = [2, 0, 3]
    stream = encoded.stream(indices)
    lengths = sequence_lengths(stream)
    assert len(lengths) == 6 and stream["counts"][0, 0] == 3 and stream["counts"][0, 1] == len(stream["input_ids"])
    assert stream["counts"][0, 2] == int((lengths**2).sum()) and stream["labels"].tolist() == [3.0, 1.0, 4.0]
    starts = stream["cu_seqlens"][:-1].long()
    assert (stream["input_ids"][starts] == stream["input_ids"][0]).all()  # each begins with [CLS]
    assert (
        stream["input_ids"][stream["cu_seqlens"][1:].long() - 1] == stream["input_ids"][-1]
    ).all()  # and ends with [SEP]
    assert stream["token_type_ids"].sum() == 0
    padded = encoded.padded(indices, pad_id=0)
    assert sequence_lengths(padded).tolist() == lengths.tolist()
    assert padded["input_ids"].flatten()[padded["indices"]].tolist() == stream["input_ids"].tolist()


def test_pieces_hold_no_more_padded_tokens_than_they_may(encoded):
    collator = ExampleCollator(max_tokens=20, pad_id=0)
    parts = collator.parts(encoded, range(4))
    assert sorted(sum(parts, [])) == [0, 1, 2, 3] and len(parts) > 1
    for part in parts:
        assert len(part) == 1 or collator.batch(encoded, part)["input_ids"].numel() <= 20


def test_the_mean_is_that_of_a_sequence_alone(encoded):
    """In a stream and in padded rows, against each sequence by itself."""
    stream, padded = encoded.stream(range(4)), encoded.padded(range(4), 0)
    hidden = torch.randn(len(stream["input_ids"]), 7, generator=torch.Generator().manual_seed(0))
    bounds = stream["cu_seqlens"].tolist()
    alone = torch.stack([hidden[a:b].mean(dim=0) for a, b in zip(bounds, bounds[1:], strict=False)])
    for batch in (stream, padded):
        torch.testing.assert_close(mean_of_tokens(hidden, batch), alone)


@pytest.mark.parametrize("name", APART.values())
def test_outputs_do_not_depend_on_the_other_pairs_of_a_batch(encoded, name):
    torch.manual_seed(1)
    model = with_head(odd_sizes(), 3, KINDS[name]).eval()
    with torch.no_grad():
        whole = model(encoded.stream(range(4)))
        alone = torch.cat([model(encoded.stream([i])) for i in range(4)])
    assert whole.shape == (4, 3)
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
    # swapping the two texts is another question, and equal texts are told apart from others by |u - v| = 0
    hidden = model.encoder(encoded.stream([3]))
    means = mean_of_tokens(hidden, encoded.stream([3]))
    torch.testing.assert_close(means[0], means[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [False, True], ids=["own", "transformers"])
def test_what_two_texts_share_is_learnt(tmp_path, run, family, capsys):
    write_stsb(tmp_path / "data")
    settings = {
        "pair_encoding": "siamese",
        "from_mnli": False,
        "max_length": 40,
        "epochs": 12.0,
        "out": str(tmp_path / "out"),
    }
    if family:
        settings["checkpoint"] = str(write_family(tmp_path / "family", "bert"))
    config = glue_config(tmp_path, tasks=["STS-B"], **settings)
    found = glue.glue(config)["glue"]
    assert found["protocol"]["pair_encoding"] == "siamese" and found["tasks"]["STS-B"]["score"] > 60
    assert "siamese pairs" in capsys.readouterr().out


@pytest.mark.parametrize("family", [False, True], ids=["own", "transformers"])
def test_the_folder_predicts_what_was_scored(tmp_path, run, family):
    """Trained, saved, read again and predicted in a file's order, to the metric of the run."""
    write_stsb(tmp_path / "data")
    checkpoint = write_family(tmp_path / "family", "bert") if family else run
    words = [f"checkpoint={checkpoint}", f"out={tmp_path / 'out'}", f"data={tmp_path / 'data' / 'STS-B'}"]
    (tmp_path / "task.yaml").write_text(
        "name: overlap\nkind: siamese_regression\ntrain: [train.tsv]\ntest: [dev.tsv]\ntext: [sentence1, sentence2]\n"
        "label: score\nseeds: [19]\nlr: 5e-3\nepochs: 4\nmax_length: 40\ndevice: cpu\nprecision: fp32\nmetrics: [pearson]\n"
    )
    record = finetune(load(FinetuneConfig, str(tmp_path / "task.yaml"), words))
    file = tmp_path / "data" / "STS-B" / "dev.tsv"
    answers = tmp_path / "answers.jsonl"
    settings = {"model": str(tmp_path / "out"), "file": str(file), "out": str(answers)}
    predict.predict(PredictConfig(**settings, precision="fp32", device="cpu"))
    predicted = [json.loads(line)["prediction"] for line in answers.read_text().splitlines()]
    gold = [float(line.split("\t")[-1]) for line in file.read_text().splitlines()[1:]]
    (task,) = record["finetune"]["tasks"].values()
    assert 100 * pearsonr(gold, predicted).statistic == pytest.approx(task["metrics"]["pearson"], abs=1e-3)


def test_one_text_is_refused(tmp_path, run):
    write_stsb(tmp_path / "data")
    (tmp_path / "task.yaml").write_text(
        "name: x\nkind: siamese_regression\ntrain: [train.tsv]\ntext: [sentence1]\nlabel: score\n"
    )
    words = [f"checkpoint={run}", f"data={tmp_path / 'data' / 'STS-B'}"]
    assert "kind=siamese_regression reads 2 columns" in refused(
        lambda: finetune(load(FinetuneConfig, str(tmp_path / "task.yaml"), words))
    )
