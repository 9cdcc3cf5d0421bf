"""Training with the Triton kernels bends no loss curve: tiny runs beside plain torch's, and a layer compiled whole."""

from __future__ import annotations

import pytest
import torch

from kernels.backends import Requirements, Resolved, resolve
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForMaskedLM
from tests.kernels.helpers import DEVICE, needs_triton

SIZES = dict(vocab_size=192, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=88)
LENGTHS = ([5, 1, 33], [17, 20], [3, 130])  # the last is longer than what the kernel for short sequences takes
STEPS = 6
TRITON = Backends(Resolved("triton", "test"), Resolved("triton", "test"))
PLAIN = Backends(Resolved("reference", "test"), Resolved("reference", "test"))


def batch_of(lengths: list[int], seed: int) -> dict:
    """A token is followed by the next one of the vocabulary, so that there is something to learn."""
    draw = torch.Generator().manual_seed(seed)
    starts = torch.randint(SIZES["vocab_size"], (len(lengths),), generator=draw)
    ids = torch.cat([(start + torch.arange(n)) % 40 for start, n in zip(starts, lengths, strict=True)])
    masked = torch.randperm(len(ids), generator=draw)[: len(ids) // 3].sort().values
    labels = ids[masked]
    ids[masked] = 41
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    tensors = {"input_ids": ids, "cu_seqlens": bounds, "masked_indices": masked, "labels": labels}
    return {**{name: tensor.to(DEVICE) for name, tensor in tensors.items()}, "max_seqlen": max(lengths)}


def model_of(backends: Backends, dropout: float = 0.0) -> MosaicBertForMaskedLM:
    torch.manual_seed(5)
    return MosaicBertForMaskedLM(EncoderConfig(**SIZES, hidden_dropout_prob=dropout), backends).to(DEVICE)


def loss_curve(backends: Backends, autocast: bool, dropout: float = 0.0, steps: int = STEPS) -> torch.Tensor:
    model = model_of(backends, dropout).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=1e-5)
    losses = []
    for step in range(steps):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            loss, accuracy = model(batch_of(LENGTHS[step % len(LENGTHS)], step)).values()
        assert 0 <= accuracy.item() <= 1
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return torch.tensor(losses)


@needs_triton
def test_loss_curve_in_float32():
    expected, got = loss_curve(PLAIN, False), loss_curve(TRITON, False)
    assert expected[-1] < expected[0] - 0.3, "a run that does not learn proves little"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)


@needs_triton
def test_loss_curve_in_bfloat16():
    """No further from the float32 curve than twice what plain torch is in bfloat16."""
    exact, plain, got = loss_curve(PLAIN, False), loss_curve(PLAIN, True), loss_curve(TRITON, True)
    assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-3
    assert (got - plain).abs().max() < 0.02


@needs_triton
def test_dropout_follows_the_seed():
    """Two steps: the interpreter is slow at random numbers."""
    curve, again = (loss_curve(TRITON, False, dropout=0.1, steps=2) for _ in range(2))
    assert curve.isfinite().all() and torch.equal(curve, again)
    assert not torch.allclose(curve, loss_curve(TRITON, False, steps=2), atol=1e-3)


@needs_triton
def test_padded_calls_agree():
    """As Hugging Face's models are called: unpad and pad are the kernels' too."""
    torch.manual_seed(0)
    ids = torch.randint(SIZES["vocab_size"], (3, 9), device=DEVICE)
    mask = torch.tensor([[1] * 9, [1] * 2 + [0] * 7, [1] * 5 + [0] * 4], device=DEVICE)
    labels = ids.masked_fill(torch.rand(ids.shape, device=DEVICE) < 0.5, -100)
    outputs = [model_of(backends).eval().padded(ids, mask, labels=labels) for backends in (PLAIN, TRITON)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)


@needs_triton
def test_the_model_compiles_whole():
    """One graph from ids to the loss, through every kernel, both ways; only traced, so that no C compiler is needed."""
    model, batch = model_of(TRITON, dropout=0.1).train(), batch_of([5, 12], 0)
    results = []
    for run in (model.forward, torch.compile(model.forward, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(4)
        loss, accuracy = run(batch).values()
        results.append([loss, accuracy, *torch.autograd.grad(loss, list(model.parameters()))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-6)


@needs_triton
def test_the_model_is_given_what_was_asked_for():
    needs = Requirements(DEVICE, torch.float32, head_dim=16)
    for kind in ("attention", "kernels"):
        assert resolve(kind, "triton", needs).name == "triton"
        chosen = resolve(kind, "auto", needs)
        if DEVICE == "cpu":  # the interpreter is for tests: auto passes over it
            assert chosen.name != "triton" and "triton" not in chosen.why


def test_refusals(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for dtype, words in (
        (torch.float32, "device cpu: needs a CUDA GPU"),
        (torch.float64, "torch.float64: the kernels compute"),
    ):
        with pytest.raises(ValueError, match=f"model.kernels=triton cannot run: {words}.*reference: can run"):
            resolve("kernels", "triton", Requirements("cpu", dtype, head_dim=64))
