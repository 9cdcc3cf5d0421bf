"""The encoder: padding costs nothing, a sequence knows only itself, and precision goes where it should."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

import kernels
from kernels.backends import Resolved
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.model.encoder import Backends, Encoder
from recipe.model.heads import MosaicBertForMaskedLM
from tests.tiny.models import with_head

CONFIG = EncoderConfig(
    vocab_size=1024,
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=160,
    hidden_dropout_prob=0.0,
)
LENGTHS = [7, 128, 1, 63, 2, 127, 64, 3]
ATTENTION = ["sdpa", "reference"]
CLOSE = dict(rtol=1e-9, atol=1e-9)  # in float64: the same sums, taken in another order


def config_with(**values) -> EncoderConfig:
    return dataclasses.replace(CONFIG, **values)


def encoder_of(config: EncoderConfig = CONFIG, attention: str = "sdpa") -> Encoder:
    """One in float64, with weights large enough for attention to matter, unlike those of a fresh model."""
    torch.manual_seed(1)
    encoder = Encoder(config, Backends(attention=Resolved(attention, "test"))).double().eval()
    for name, parameter in encoder.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.2)
    return encoder


def stream_of(lengths: list[int], seed: int = 2) -> dict:
    generator = torch.Generator().manual_seed(seed)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return {
        "input_ids": torch.randint(CONFIG.vocab_size, (int(bounds[-1]),), generator=generator),
        "cu_seqlens": bounds.int(),
        "max_seqlen": max(lengths),
    }


def pieces(stream_TD: torch.Tensor, lengths: list[int]) -> list[torch.Tensor]:
    return list(stream_TD.split(lengths))


def count_rows(model: nn.Module) -> list[int]:
    """A list that grows by the rows of each call of each feed-forward matrix."""
    rows = []
    for layer in model.encoder.layers:
        for linear in (layer.feed_forward.gated, layer.feed_forward.out):
            linear.register_forward_hook(lambda _, inputs, output: rows.append(output.shape[:-1].numel()))
    return rows


def test_padding_never_reaches_the_feed_forward():
    """A padded call with 60 % of padding: as many rows as real tokens, in every layer."""
    model = MosaicBertForMaskedLM(CONFIG).eval()
    rows = count_rows(model)
    lengths = torch.tensor([20, 4, 8, 1, 7])
    mask = (torch.arange(20) < lengths[:, None]).long()
    assert mask.float().mean() == 0.4
    model.padded(torch.randint(1024, mask.shape), mask)
    assert rows == [int(mask.sum())] * (2 * CONFIG.num_hidden_layers)


def test_the_stream_feeds_real_tokens_and_the_last_layer_only_masked_ones():
    model = MosaicBertForMaskedLM(CONFIG)
    rows = count_rows(model)
    batch = stream_of(LENGTHS)
    masked = torch.arange(1, len(batch["input_ids"]), 3)
    model({**batch, "masked_indices": masked, "labels": batch["input_ids"][masked]})
    real = sum(LENGTHS)
    assert rows == [real] * (2 * (CONFIG.num_hidden_layers - 1)) + [len(masked)] * 2


def test_classification_feeds_first_tokens_alone_to_the_last_layer():
    model = with_head(CONFIG, 3)
    rows = count_rows(model)
    model(stream_of(LENGTHS))
    assert rows == [sum(LENGTHS)] * (2 * (CONFIG.num_hidden_layers - 1)) + [len(LENGTHS)] * 2


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("layers", [1, 3])
def test_keep_is_a_slice_with_its_gradient(attention, layers):
    batch = stream_of(LENGTHS)
    keep = torch.tensor([0, 1, 6, 7, 134, 135, 136, sum(LENGTHS) - 1])
    gradients = []
    for kept in (True, False):
        encoder = encoder_of(config_with(num_hidden_layers=layers), attention)
        hidden = encoder(batch, keep) if kept else encoder(batch)[keep]
        (hidden * torch.linspace(-1, 1, 96)).sum().backward()
        gradients.append((hidden, {name: p.grad for name, p in encoder.named_parameters()}))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-8, atol=1e-7)


def test_keep_of_nothing():
    assert encoder_of()(stream_of(LENGTHS), torch.empty(0, dtype=torch.long)).shape == (0, 96)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("heads", [1, 3, 4, 12])
def test_a_sequence_knows_only_itself(attention, heads):
    """Its output is the one that it has alone, in company, in another order, and under a larger max_seqlen."""
    encoder = encoder_of(config_with(num_attention_heads=heads), attention)
    batch = stream_of(LENGTHS)
    together = pieces(encoder(batch), LENGTHS)
    ids = pieces(batch["input_ids"], LENGTHS)
    for piece, expected in zip(ids, together, strict=True):
        alone = {
            "input_ids": piece,
            "cu_seqlens": torch.tensor([0, len(piece)], dtype=torch.int32),
            "max_seqlen": len(piece),
        }
        torch.testing.assert_close(encoder(alone), expected, **CLOSE)
    order = [4, 7, 0, 2, 6, 5, 1, 3]
    shuffled = stream_of([LENGTHS[i] for i in order])
    shuffled["input_ids"] = torch.cat([ids[i] for i in order])
    for i, got in zip(order, pieces(encoder(shuffled), [LENGTHS[i] for i in order]), strict=True):
        torch.testing.assert_close(got, together[i], **CLOSE)
    torch.testing.assert_close(
        torch.cat(pieces(encoder({**batch, "max_seqlen": 200}), LENGTHS)), torch.cat(together), **CLOSE
    )


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_neighbour_cannot_even_poison_it(attention):
    """An infinite neighbour: nothing of it may come through, not even times zero."""
    encoder = encoder_of(attention=attention)
    batch = stream_of([9, 30, 5])
    with torch.no_grad():
        encoder.embeddings.word.weight[1023] = float("inf")
    batch["input_ids"] = batch["input_ids"].clamp(max=1022)
    clean = encoder(batch)
    batch["input_ids"][9:39] = 1023
    poisoned = encoder(batch)
    assert not poisoned[9:39].isfinite().any()
    torch.testing.assert_close(poisoned[:9], clean[:9], **CLOSE)
    torch.testing.assert_close(poisoned[39:], clean[39:], **CLOSE)


@pytest.mark.parametrize("attention", ATTENTION)
def test_empty_sequences_change_nothing(attention):
    encoder = encoder_of(attention=attention)
    batch = stream_of([5, 17])
    with_empty = {**batch, "cu_seqlens": torch.tensor([0, 0, 5, 5, 5, 22, 22], dtype=torch.int32)}
    torch.testing.assert_close(encoder(with_empty), encoder(batch), **CLOSE)


def test_no_tokens_at_all():
    empty = {"input_ids": torch.empty(0, dtype=torch.long), "cu_seqlens": torch.zeros(1, dtype=torch.int32)}
    assert encoder_of()({**empty, "max_seqlen": 0}).shape == (0, 96)


@pytest.mark.parametrize("heads", [3, 4, 12])
def test_backends_agree_with_gradients(heads):
    batch = stream_of(LENGTHS)
    results = []
    for attention in ATTENTION:
        encoder = encoder_of(config_with(num_attention_heads=heads), attention)
        hidden = encoder(batch)
        (hidden * torch.linspace(-1, 1, 96)).sum().backward()
        results.append((hidden.detach(), {name: p.grad for name, p in encoder.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-7)


def test_order_matters_and_comes_from_alibi_alone():
    """Without position embeddings: a reversed sequence gives the reversed output, since distances are the same."""
    encoder = encoder_of()
    batch = stream_of([40])
    forwards = encoder(batch)
    backwards = encoder({**batch, "input_ids": batch["input_ids"].flip(0)})
    torch.testing.assert_close(backwards.flip(0), forwards, **CLOSE)
    swapped = batch["input_ids"].clone()
    swapped[[3, 30]] = swapped[[30, 3]]
    difference = (encoder({**batch, "input_ids": swapped}) - forwards)[10:20].abs().max()
    assert difference > 1e-2
    encoder.slopes.zero_()
    without = encoder({**batch, "input_ids": swapped})[10:20]
    torch.testing.assert_close(without, encoder(batch)[10:20], **CLOSE)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 16])
def test_slopes(heads):
    """The rule of the ALiBi authors' code, told in another way: geometric, and interleaved beyond a power of two."""
    slopes = Encoder(config_with(num_attention_heads=heads, hidden_size=48 * heads)).slopes
    power = 1 << (heads.bit_length() - 1)
    expected = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    expected += [2 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    torch.testing.assert_close(slopes, torch.tensor(expected))
    assert slopes.dtype == torch.float32 and "slopes" not in Encoder(CONFIG).state_dict()


def test_bf16_autocast_keeps_the_residual_stream_in_bf16(monkeypatch):
    model = MosaicBertForMaskedLM(CONFIG)
    seen = []

    def noting(function):
        def noted(x, weight, bias, eps, residual, *rest, **named):
            out = function(x, weight, bias, eps, residual, *rest, **named)
            given = (x,) if residual is None else (x, residual)
            seen.extend(tensor.dtype for tensor in (*given, *(out if isinstance(out, tuple) else (out,))))
            return out

        return noted

    for name in ("layer_norm", "layer_norm_twice"):
        monkeypatch.setattr(kernels, name, noting(getattr(kernels, name)))
    model.encoder.embeddings.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    batch = stream_of(LENGTHS)
    masked = torch.arange(0, sum(LENGTHS), 5)
    batch |= {"masked_indices": masked, "labels": batch["input_ids"][masked]}
    with torch.autocast("cpu", torch.bfloat16):
        loss, accuracy = model(batch).values()
    a_layer = 8  # two norms, each with two inputs and an output for two readers; the last layer's last has one
    assert len(seen) == 3 + CONFIG.num_hidden_layers * a_layer - 1 + 2  # embeddings, layers, the head's norm
    assert set(seen) == {torch.bfloat16}, seen
    assert loss.dtype == accuracy.dtype == torch.float32
    loss.backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    full, _ = model(batch).values()
    assert loss.item() == pytest.approx(full.item(), rel=2**-7)


def test_float64_stays_float64():
    model = MosaicBertForMaskedLM(CONFIG).double()
    ids = torch.randint(1024, (2, 9))
    assert model.padded(ids).logits.dtype == torch.float64


def test_dropout_only_in_training_and_everywhere_it_should_be():
    config = config_with(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    batch = stream_of([30, 30])
    for attention in ATTENTION:
        encoder = encoder_of(config, attention)
        assert torch.equal(encoder(batch), encoder(batch))
        torch.testing.assert_close(encoder(batch), encoder_of(CONFIG, attention)(batch), **CLOSE)
        encoder.train()
        assert not torch.allclose(encoder(batch), encoder(batch), atol=1e-2)
    # each place alone: embeddings, attention weights, attention output, the feed-forward's inner activations
    places = [
        lambda e: setattr(e.embeddings.dropout, "p", 0.5),
        lambda e: setattr(e.layers[1].attention, "dropout_p", 0.5),
        lambda e: setattr(e.layers[1].attention.norm, "dropout_p", 0.5),
        lambda e: setattr(e.layers[1].feed_forward, "dropout_p", 0.5),
    ]
    for switch_on in places:
        encoder = encoder_of().train()
        assert torch.equal(encoder(batch), encoder(batch))
        switch_on(encoder)
        assert not torch.allclose(encoder(batch), encoder(batch), atol=1e-2)


def test_initial_loss_is_that_of_a_guess():
    torch.manual_seed(0)
    model = MosaicBertForMaskedLM(config_with(vocab_size=30528))
    batch = stream_of([128] * 16)
    masked = torch.arange(0, 2048, 3)
    loss, accuracy = model({**batch, "masked_indices": masked, "labels": batch["input_ids"][masked]}).values()
    assert loss.item() == pytest.approx(math.log(30528), rel=0.02)
    assert accuracy.item() < 0.02


def test_initialisation():
    """N(0, 0.02) for matrices, 0 for biases, 1 for norms; the decoder has no matrix of its own."""
    model = MosaicBertForMaskedLM(config_with(hidden_size=192, intermediate_size=256))
    for name, parameter in model.named_parameters():
        if "norm.weight" in name:
            assert (parameter == 1).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            n = parameter.numel()
            assert parameter.std().item() == pytest.approx(0.02, rel=5 / math.sqrt(2 * n)), name
            assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(n), name
    shapes = [tuple(p.shape) for p in model.parameters()]
    assert shapes.count((1024, 192)) == 1


def test_parameters_of_base():
    """137 M with the tied decoder: the embeddings, twelve layers with a gated unit, and the head."""
    with torch.device("meta"):
        model = MosaicBertForMaskedLM(EncoderConfig())
    d, f, v = 768, 3072, 30528
    layer = 4 * (d * d + d) + 2 * d + 2 * d * f + f * d + d + 2 * d
    assert sum(p.numel() for p in model.parameters()) == v * d + 2 * d + 2 * d + 12 * layer + d * d + d + 2 * d + v


@pytest.mark.parametrize("size", [1, 63, 64, 65, 30522, 30528, 8192])
def test_padded_vocabulary(size):
    assert padded_vocab_size(size) % 64 == 0 and 0 <= padded_vocab_size(size) - size < 64


@pytest.mark.parametrize("form", ["stream", "padded"])
def test_gradient_against_finite_differences(form):
    """In float64 on ugly lengths, along three directions through every parameter."""
    torch.manual_seed(3)
    config = config_with(vocab_size=64, hidden_size=12, num_attention_heads=3, intermediate_size=16)
    model = MosaicBertForMaskedLM(config).double()
    parameters = list(model.parameters())
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.5)
    ids, bounds = torch.randint(64, (6,)), torch.tensor([0, 1, 1, 6], dtype=torch.int32)
    batch = {"input_ids": ids, "cu_seqlens": bounds, "max_seqlen": 5, "masked_indices": torch.tensor([0, 3, 5])}

    def value() -> torch.Tensor:
        if form == "stream":
            return model({**batch, "labels": torch.tensor([1, 2, 3])})["loss"]
        return model.padded(ids[None], torch.tensor([[1, 1, 0, 1, 1, 0]])).logits.square().mean()

    gradients = torch.autograd.grad(value(), parameters)
    for _ in range(3):
        directions = [torch.randn_like(p) for p in parameters]
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                torch._foreach_add_(parameters, directions, alpha=step)
                ends.append(value().item())
                torch._foreach_add_(parameters, directions, alpha=-step)
        slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True)).item()
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-6)


def test_unpad_of_an_interior_gap():
    """A mask with a hole: what is left is taken as one sequence without the hole, as attention masks say."""
    model = MosaicBertForMaskedLM(CONFIG).double().eval()
    ids = torch.randint(1024, (1, 6))
    mask = torch.tensor([[1, 0, 1, 1, 0, 1]])
    output = model.padded(ids, mask)
    real = mask[0].bool()
    torch.testing.assert_close(output.logits[0, real], model.padded(ids[:, real]).logits[0], **CLOSE)
    assert (output.last_hidden_state[0, ~real] == 0).all()
    tokens, indices, cu_seqlens, longest = kernels.unpad(ids, mask)
    assert tokens.tolist() == ids[0, real].tolist() and cu_seqlens.tolist() == [0, 4] and longest == 4
    assert torch.equal(kernels.pad(tokens, indices, 1, 6), ids * mask)
