"""Which step several models can do on one GPU at once, and what each may take of it."""

from __future__ import annotations

import pytest
import torch

from benchmarks import peers, throughput, throughput_memory
from recipe.model.architectures import architecture
from recipe.model.config import EncoderConfig
from recipe.objectives.masked_lm import MASKED_LM
from recipe.training.memory import training_need

GIB = 2**30
KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def sizes(name: str) -> dict:
    return dict(zip(KEYS, throughput.SIZES[name], strict=True))


def all_rows() -> list[dict]:
    return throughput.rows(throughput.arguments([]), {"yaml": None}, on_gpu=True)


@pytest.mark.parametrize(("model", "kind"), [("this", "mosaic_bert"), ("hf", "hf_bert")])
def test_a_slot_takes_what_a_traced_step_takes(model, kind):
    """On a tenth at most it errs, and on the safe side."""
    config = EncoderConfig(**vars(peers.Sizes(**sizes("small"))))
    rate = 0.3 if model == "this" else 1.0  # theirs has its head on every token
    traced = training_need(MASKED_LM, architecture(kind), 8, config, 128, rate, torch.bfloat16).many[1] / 128
    row = {"model": model, "compile": False}
    slot = throughput_memory.need(row, sizes("small"), 1001) - throughput_memory.need(row, sizes("small"), 1)
    assert traced <= slot / 1000 <= 1.1 * traced


def test_a_step_is_halved_until_all_fit():
    rows, base = all_rows(), sizes("base")
    assert len(rows) == 4

    def fitting(gib: float, name: str = "base", wanted: int = 32_768) -> int:
        return throughput_memory.fitting_slots(rows, sizes(name), wanted, int(gib * GIB))

    assert fitting(138) == 32_768 and fitting(78) == 16_384, "an H200 and an H100 with 80 GB"
    assert fitting(78, "large") < 16_384 and fitting(1) == throughput_memory.LEAST_SLOTS
    assert throughput_memory.fitting_slots(rows[:1], base, 131_072, 78 * GIB) == 131_072, "ours alone"
    for gib in (24, 40, 78, 138):
        needs = sum(throughput_memory.need(row, base, fitting(gib)) for row in rows)
        assert needs <= gib * GIB or fitting(gib) == throughput_memory.LEAST_SLOTS


def test_shares_are_of_what_is_free_and_leave_room_for_what_torch_does_not_count():
    rows, base = all_rows(), sizes("base")
    free, total = 60 * GIB, 80 * GIB
    found = throughput_memory.shares(rows, base, 8_192, free, total)
    beside = len(rows) * throughput_memory.PROCESS_BYTES
    assert sum(found) * total == pytest.approx(free - beside, rel=0.01)
    taken = dict(zip([row["name"] for row in rows], found, strict=True))
    assert taken["hf sdpa + compile"] == max(found) and taken["this"] == min(found)
    assert all(
        share * total >= throughput_memory.need(row, base, 8_192) - throughput_memory.PROCESS_BYTES
        for row, share in zip(rows, found, strict=True)
    )
    assert min(throughput_memory.shares(rows, base, 8_192, GIB, total)) > 0, "torch takes no share of nothing"
