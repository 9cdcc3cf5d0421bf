"""Loss curves of three tiny runs against stored ones: no change of code may bend them unnoticed.

Renew them after a change that is meant to, with `python -m tests.test_golden`, and say why in the commit.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from kernels.cpu import build
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run
from tests.tiny.texts import write_dataset, write_text, write_vocabulary

GOLDEN = Path(__file__).parent / "golden"
MODELS = {"mosaic_bert": (), "modern": ("model.window=8",), "hf_bert": ()}  # and what its YAML says more
TOLERANCE = (
    5e-3  # rounding differs between CPUs, and 200 steps magnify it; another seed moves the curve by 20 times this
)


def corpus(folder: Path) -> Path:
    """Documents over 30 words, each followed by one of two: the same on every Python, and there is much to learn."""
    draw = random.Random(5)
    words = [f"w{i}" for i in range(30)]
    followers = {word: draw.sample(words, 2) for word in words}
    texts = []
    for _ in range(600):
        text = [draw.choice(words)]
        while len(text) < 6 + draw.randrange(40):
            text.append(draw.choice(followers[text[-1]]))
        texts.append(" ".join(text))
    write_text(folder / "documents.jsonl", texts)
    return write_dataset(folder, write_vocabulary(folder, words))


def loss_curve(folder: Path, data: Path, model: str) -> list[float]:
    yaml = train_yaml(
        folder, data, f"out={folder / model}", "data.sequence_length=32", f"model.name={model}", "model.hidden_size=64",
        "model.num_attention_heads=4", "model.intermediate_size=128", "optimizer.lr=5.0e-3", "batch_size=32",
        "duration=200ba", "log_every=20", "precision=fp32", "device=cpu", *MODELS[model],
    )  # fmt: skip
    return losses(run(yaml))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("model", MODELS)
def test_loss_curve(tmp_path, data, model):
    if model != "hf_bert" and (reason := build.refusal()):
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
