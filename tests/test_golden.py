"""Loss curves of tiny runs against stored ones: no change of code may bend them unnoticed.

Renew them after a change that is meant to, with `python -m tests.test_golden [NAME ...]`, and say why in the commit.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from kernels.cpu import build
from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run
from tests.tiny.texts import write_dataset, write_text, write_vocabulary

GOLDEN = Path(__file__).parent / "golden"
CURVES = {  # by name: the words and batches of a run
    "mosaic_bert": ((), 200),
    "modern": (("model.name=modern", "model.window=8"), 200),
    "hf_bert": (("model.name=hf_bert",), 200),
    "swapped_lm": (("objective=swapped_lm",), 80),
    "swapped_tokens": (("objective=swapped_tokens",), 80),
    "replaced_tokens": (("objective=replaced_tokens", "data.mask_rate=0.15", "generator.detection_weight=4"), 60),
}
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


def loss_curve(folder: Path, data: Path, name: str) -> list[float]:
    words, batches = CURVES[name]
    yaml = train_yaml(
        folder, data, f"out={folder / name}", "data.sequence_length=32", "model.hidden_size=64",
        "model.num_attention_heads=4", "model.intermediate_size=128", "optimizer.lr=5.0e-3", "batch_size=32",
        f"duration={batches}ba", "log_every=20", *words, "precision=fp32", "device=cpu",
    )  # fmt: skip
    return losses(run(yaml))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return corpus(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", CURVES)
def test_loss_curve(tmp_path, data, name):
    if name != "hf_bert" and (reason := build.refusal()):
        pytest.skip(f"the curve is one of the CPU's own kernels: {reason}")
    stored = json.loads((GOLDEN / f"{name}.json").read_text())["loss"]
    assert stored[-1] < stored[0] - 0.3, "a golden run that does not learn proves little"
    assert loss_curve(tmp_path, data, name) == pytest.approx(stored, abs=TOLERANCE)


def renew(names: Sequence[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        shards = corpus(Path(folder))
        for name in names or CURVES:
            curve = {"torch": torch.__version__, "loss": loss_curve(Path(folder), shards, name)}
            (GOLDEN / f"{name}.json").write_text(json.dumps(curve, indent=1) + "\n")


if __name__ == "__main__":
    renew(sys.argv[1:])
