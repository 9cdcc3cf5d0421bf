"""Loss curves of two tiny runs against stored ones: no change of code may bend them unnoticed.

Renew them after a change that is meant to, with `python -m tests.test_golden`, and say why in the commit.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from kernels.cpu import build
from recipe import train
from recipe.config import PrepareConfig, Source, Tokenizer, TrainConfig, load
from recipe.prepare import prepare

GOLDEN = Path(__file__).parent / "golden"
ROOT = GOLDEN.parents[1]
MODELS = ("mosaic_bert", "hf_bert")
TOLERANCE = (
    5e-3  # rounding differs between CPUs, and 200 steps magnify it; another seed moves the curve by 20 times this
)


def corpus(folder: Path) -> Path:
    """Documents over 30 words, each followed by one of two: the same on every Python, and there is much to learn."""
    draw = random.Random(5)
    words = [f"w{i}" for i in range(30)]
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    followers = {word: draw.sample(words, 2) for word in words}
    with (folder / "documents.jsonl").open("w") as file:
        for _ in range(600):
            text = [draw.choice(words)]
            while len(text) < 6 + draw.randrange(40):
                text.append(draw.choice(followers[text[-1]]))
            file.write(json.dumps({"text": " ".join(text)}) + "\n")
    prepare(
        PrepareConfig(
            out=str(folder / "data"),
            train=Source(files=[str(folder / "documents.jsonl")]),
            validation_fraction=0.1,
            tokenizer=Tokenizer(vocab_file=str(vocabulary)),
            processes=1,
        )
    )
    return folder / "data"


def loss_curve(folder: Path, data: Path, model: str) -> list[float]:
    file = folder / f"{model}.yaml"
    file.write_text(
        f"""
out: {folder / model}
data: {{path: {data}, sequence_length: 32}}
model: {{name: {model}, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128}}
optimizer: {{lr: 5.0e-3}}
batch_size: 32
duration: 200ba
log_every: 20
precision: fp32
device: cpu
cost: {{prices: {ROOT / "yamls/prices.yaml"}}}
"""
    )
    return [row["loss"] for row in train.train(load(TrainConfig, str(file)))["loss_curve"]]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("model", MODELS)
def test_loss_curve(tmp_path, data, model):
    if model == "mosaic_bert" and (reason := build.refusal()):
        pytest.skip(f"the curve is one of the CPU's own kernels: {reason}")
    stored = json.loads((GOLDEN / f"{model}.json").read_text())["loss"]
    assert stored[-1] < stored[0] - 0.3, "a golden run that does not learn proves little"
    assert loss_curve(tmp_path, data, model) == pytest.approx(stored, abs=TOLERANCE)


def renew() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        shards = corpus(Path(folder))
        for model in MODELS:
            curve = {"torch": torch.__version__, "loss": loss_curve(Path(folder), shards, model)}
            (GOLDEN / f"{model}.json").write_text(json.dumps(curve, indent=1) + "\n")


if __name__ == "__main__":
    renew()
