"""What is predicted for a training step against what a real one has alive."""

import pytest
import torch

from recipe.errors import UserError
from recipe.model.config import EncoderConfig
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.huggingface import HFBertForMaskedLM
from recipe.training.memory import (
    GIB,
    LiveBytes,
    Need,
    capacity_here,
    check_fits,
    full_batch,
    padded_batch,
    training_need,
)

SIZES = EncoderConfig(vocab_size=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_the_prediction_is_what_real_steps_have_alive(kind, autocast):
    sequences, length = 6, 48
    predicted = training_need(kind, SIZES, length, 0.3, autocast).of(sequences)
    with LiveBytes() as live:
        model = HFBertForMaskedLM(SIZES, length) if kind == "hf_bert" else MosaicBertForMaskedLM(SIZES)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        batch = (padded_batch if kind == "hf_bert" else full_batch)(sequences, length, 0.3)
        for _ in range(3):
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                loss, _ = model.masked_lm_loss(batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss
    assert predicted == pytest.approx(live.peak, rel=0.05)


def test_nothing_is_allocated_and_ranks_cost_their_buckets():
    enormous = EncoderConfig(hidden_size=8192, num_attention_heads=64, intermediate_size=32768, num_hidden_layers=3)
    one, eight = (training_need("mosaic_bert", enormous, 64, 0.3, None, ranks=ranks) for ranks in (1, 8))
    parameters = 3 * (4 * 8192**2 + 3 * 8192 * 32768)
    assert one.fixed > 16 * parameters > 40 * GIB
    assert eight.fixed - one.fixed == pytest.approx(4 * (parameters + 30528 * 8192 + 8192**2), rel=0.01)


def test_what_does_not_fit_is_refused_with_what_would():
    need = Need(fixed=4 * GIB, a_sequence=GIB / 8)
    check_fits(need, 32, 8 * GIB, "a GPU")
    with pytest.raises(
        UserError, match=r"microbatch_size=33 needs 8\.1 GiB .* a GPU has 8\.0 GiB; set microbatch_size=32"
    ):
        check_fits(need, 33, 8 * GIB, "a GPU")
    with pytest.raises(UserError, match="choose a smaller model"):
        check_fits(need, 1, 4 * GIB, "a GPU")


def test_the_machine_says_what_it_has():
    whole = capacity_here("cpu", 1)
    assert whole is None or whole > capacity_here("cpu", 2) > 0
