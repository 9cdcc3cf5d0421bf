"""What is predicted for a training step against what a real one has alive."""

import dataclasses

import pytest
import torch

from recipe.errors import UserError
from recipe.model.architectures import architecture
from recipe.model.config import EncoderConfig
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.hf_bert import HFBertForMaskedLM
from recipe.objectives.masked_lm import MASKED_LM
from recipe.training.memory import (
    GIB,
    MARGIN,
    LiveBytes,
    Need,
    _group_limits,
    capacity_here,
    check_fits,
    choose_microbatch,
    even_part,
    traced,
    training_need,
)
from recipe.training.parallel import PARALLEL

SIZES = EncoderConfig(vocab_size=512, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)


@pytest.mark.parametrize("names", [(), ("sdpa", "reference")], ids=["fused", "plain"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["mosaic_bert", "modern", "hf_bert"])
def test_the_prediction_is_what_real_steps_have_alive(kind, autocast, names):
    sequences, length, chosen = 6, 48, traced(*names)
    sizes = dataclasses.replace(SIZES, **(architecture(kind).settings or {}))
    predicted = training_need(MASKED_LM, architecture(kind), 8, sizes, length, 0.3, autocast, chosen=chosen).of(
        sequences
    )
    with LiveBytes() as live:
        model = HFBertForMaskedLM(sizes, length) if kind == "hf_bert" else MosaicBertForMaskedLM(sizes, chosen)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        batch = architecture(kind).largest_batch(sequences, length, 0.3)
        for _ in range(3):
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                loss, _ = model(batch).values()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss
    assert predicted == pytest.approx(live.peak, rel=0.05)


def test_nothing_is_allocated_and_ranks_cost_their_buckets():
    enormous = EncoderConfig(hidden_size=8192, num_attention_heads=64, intermediate_size=32768, num_hidden_layers=3)
    one, eight = (
        training_need(
            MASKED_LM,
            architecture("mosaic_bert"),
            PARALLEL["ddp"].bytes_beside(None, 8, ranks),
            enormous,
            64,
            0.3,
            None,
        )
        for ranks in (1, 8)
    )
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


def test_a_container_s_limit_counts(tmp_path):
    assert _group_limits(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("17\n")
    assert _group_limits(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert _group_limits(tmp_path) == [(1000, 17)]


@pytest.mark.parametrize(
    ("share", "most", "multiple", "part"),
    [
        (8, 100, 1, 8),
        (8, 7, 1, 4),
        (4099, 512, 1, 456),
        (7, 1, 1, 1),
        (512, 100, 8, 88),
        (64, 8, 8, 8),
        (24, 23, 8, 16),
    ],
)
def test_pieces_of_a_batch_are_even(share, most, multiple, part):
    assert even_part(share, most, multiple) == part
    pieces = -(-share // part)
    assert (
        part <= max(most, multiple) and part % multiple == 0 and part * pieces - share < max(pieces, multiple * pieces)
    )


def choose(share, wanted, capacity, kind="gpu", **more):
    return choose_microbatch(Need(4 * GIB, GIB / 8), share, wanted, capacity, kind, "an H100", **more)


def test_the_microbatch_is_the_largest_that_fits_with_a_margin():
    free = 80 * GIB
    chosen = choose(4096, 0, free)
    assert chosen.size == 4096 // 8 and chosen.need == (4 + 512 / 8) * GIB and chosen.capacity == free
    assert chosen.need <= (1 - MARGIN["gpu"]) * free < (4 + 4096 / 7 / 8) * GIB, "one piece fewer would not fit"
    assert choose(256, 0, free).size == 256 and choose(4096, 32, free).size == 32 and choose(16, 32, free).size == 16
    assert choose(4096, 0, free, multiple=8).size % 8 == 0
    assert (
        choose(256, 0, free, kind="cpu", most=32).size == 32
        and "gains little on a CPU" in choose(256, 0, free, "cpu", most=32).why
    )
    with pytest.raises(
        UserError, match=r"microbatch_size=700 needs 91\.5 GiB .* an H100 has 80\.0 GiB; set microbatch_size=608"
    ):
        choose(4096, 700, free)
    with pytest.raises(UserError, match="choose a smaller model or shorter sequences"):
        choose(4096, 0, 4 * GIB)


@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_evaluation_needs_less_than_training_and_no_logits_of_other_positions(kind):
    """What training fits, evaluation fits; for the baseline, whose head is on every position, too."""
    sequences, length, rate = 24, 48, 0.15
    sizes = dataclasses.replace(SIZES, vocab_size=4096)
    plain = traced("sdpa", "reference")
    model = HFBertForMaskedLM(sizes, length) if kind == "hf_bert" else MosaicBertForMaskedLM(sizes, plain)
    batch = architecture(kind).largest_batch(sequences, length, rate)
    with torch.no_grad(), LiveBytes() as live:
        model.eval()(batch)
    weights = 4 * sum(p.numel() for p in model.parameters())
    assert weights + live.peak < training_need(
        MASKED_LM, architecture(kind), 8, sizes, length, 0.3, None, chosen=plain
    ).of(sequences)
    if kind == "mosaic_bert":
        masked = round(sequences * length * rate)
        everywhere = sequences * length * sizes.vocab_size * 4
        assert live.largest <= masked * sizes.vocab_size * 4 < everywhere / 6
