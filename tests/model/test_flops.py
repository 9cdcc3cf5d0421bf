"""The count of operations: against the paper's sizes by hand, and against torch's own counter on a real pass."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kernels.backends import Resolved
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.flops import attention_flops, training_flops
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.hf_bert import HFBertForMaskedLM
from recipe.model.modern import MODERN
from tests.tiny.models import odd_sizes

SMALL = odd_sizes(num_hidden_layers=3)
SEQUENCES, LENGTH = 4, 24
TOKENS = SEQUENCES * LENGTH


def test_base_at_128_with_30_percent_masked():
    """246 MFLOP a token forward, 737 with backward."""
    tokens = 128 * 4096
    total = training_flops(dataclasses.asdict(EncoderConfig()), True, tokens, 128 * tokens, 0.30 * tokens)
    assert total / tokens == pytest.approx(737e6, rel=0.005)
    assert total / 3 / tokens == pytest.approx(246e6, rel=0.005)


def counted(step) -> int:
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("attention", ["sdpa", "reference"])
def test_mosaic_bert_on_every_position(attention):
    model = MosaicBertForMaskedLM(SMALL, Backends(attention=Resolved(attention, "test")))
    ids = torch.randint(320, (SEQUENCES, LENGTH))
    expected = training_flops(dataclasses.asdict(SMALL), True, TOKENS, TOKENS * LENGTH, TOKENS)
    assert counted(lambda: model.padded(ids, labels=ids).loss) == expected


def test_mosaic_bert_on_ragged_sequences():
    """Squared lengths are summed sequence by sequence, and padding counts for nothing."""
    model = MosaicBertForMaskedLM(SMALL, Backends(attention=Resolved("reference", "test")))
    lengths = torch.tensor([24, 1, 7, 13])
    mask = torch.arange(LENGTH) < lengths[:, None]
    rows = mask.sum().item()
    ids = torch.randint(320, mask.shape)
    padded_head = mask.numel()  # this call predicts at the padding too
    expected = training_flops(dataclasses.asdict(SMALL), True, rows, lengths.square().sum().item(), padded_head)
    assert counted(lambda: model.padded(ids, mask.long(), labels=ids).loss) == expected


def counted_step(model: MosaicBertForMaskedLM) -> tuple[int, torch.Tensor]:
    """What torch counts of a step, and the masked positions."""
    masked = torch.arange(0, TOKENS, 3)
    ids = torch.randint(320, (TOKENS,))
    bounds = torch.arange(0, TOKENS + 1, LENGTH, dtype=torch.int32)
    batch = {"input_ids": ids, "cu_seqlens": bounds, "max_seqlen": LENGTH, "masked_indices": masked}
    done = counted(lambda: model({**batch, "labels": ids[masked]})["loss"])
    return done, masked


def test_mosaic_bert_on_masked_positions_leaves_out_what_it_says():
    """The count stands for every layer on every token; the step itself spares the last layer's other rows."""
    model = MosaicBertForMaskedLM(SMALL)
    done, masked = counted_step(model)
    expected = training_flops(dataclasses.asdict(SMALL), True, TOKENS, TOKENS * LENGTH, len(masked))
    d, f = SMALL.hidden_size, SMALL.intermediate_size
    spared = (TOKENS - len(masked)) * 2 * (d * d + 3 * d * f)  # attention's output and the feed-forward
    assert done == expected - 3 * spared


@pytest.mark.parametrize("narrow_layers", [2, 3])
def test_narrow_layers_cost_what_the_count_says(narrow_layers):
    """Beside the last layer, whose spared rows the count leaves in, they spare theirs, in the step and in the count."""
    sizes = odd_sizes(num_hidden_layers=3, narrow_layers=narrow_layers)
    model = MosaicBertForMaskedLM(sizes)
    done, masked = counted_step(model)
    expected, wide = (
        training_flops(dataclasses.asdict(one), True, TOKENS, TOKENS * LENGTH, len(masked)) for one in (sizes, SMALL)
    )
    d, f = SMALL.hidden_size, SMALL.intermediate_size
    spared = 3 * (TOKENS - len(masked)) * 2 * (d * d + 3 * d * f)
    assert wide - expected == (narrow_layers - 1) * spared
    assert done == expected - spared


def pairs_in_windows(lengths: torch.Tensor, reach: int) -> int:
    """Counted one by one."""
    places = [torch.arange(length) for length in lengths]
    return sum(int(((place[:, None] - place).abs() <= reach).sum()) for place in places)


@pytest.mark.parametrize("window", [2, 10, 46, 48, 128])
def test_local_layers_count_their_windows_alone(window):
    """Of sequences of one length exactly; of others a little too much, but never all pairs of a longer window's."""
    sizes = dataclasses.asdict(odd_sizes(num_hidden_layers=7, window=window))  # layers 0, 3 and 6 are global
    one_length = torch.full((SEQUENCES,), LENGTH)
    squares = int(one_length.square().sum())
    counted = 3 * squares + 4 * pairs_in_windows(one_length, window // 2)
    assert attention_flops(sizes, TOKENS, squares) == pytest.approx(4 * SMALL.hidden_size * counted, rel=1e-12)
    ragged = torch.tensor([24, 1, 7, 13, 60])
    squares, tokens = int(ragged.square().sum()), int(ragged.sum())
    least = 4 * SMALL.hidden_size * (3 * squares + 4 * pairs_in_windows(ragged, window // 2))
    most = attention_flops(dataclasses.asdict(odd_sizes(num_hidden_layers=7)), tokens, squares)
    assert least <= attention_flops(sizes, tokens, squares) * (1 + 1e-12) <= min(1.12 * least, most * (1 + 1e-9))


def test_modernbert_without_windows():
    """Rotary positions and norms are no matrix products."""
    sizes = odd_sizes(**{**MODERN.settings, "window": None})
    model = MODERN.masked_lm(sizes, LENGTH, Backends(attention=Resolved("reference", "test")))
    ids = torch.randint(320, (SEQUENCES, LENGTH))
    expected = training_flops(dataclasses.asdict(sizes), True, TOKENS, TOKENS * LENGTH, TOKENS)
    assert counted(lambda: model.padded(ids, labels=ids).loss) == expected


def test_baseline():
    model = HFBertForMaskedLM(SMALL, LENGTH)
    ids = torch.randint(320, (SEQUENCES, LENGTH))
    masked = torch.arange(0, TOKENS, 3)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "masked_indices": masked}
    expected = training_flops(dataclasses.asdict(SMALL), False, TOKENS, TOKENS * LENGTH, len(masked))
    assert counted(lambda: model(batch)["loss"]) == expected
