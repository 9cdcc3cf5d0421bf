"""On a CPU sizes are rounded up: few different ones, and nothing of what fills them reaches loss, gradients or hidden states."""

from __future__ import annotations

import pytest
import torch

from kernels.backends import Resolved
from kernels.cpu import build
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.shapes import round_predictions, round_stream, rounded
from tests.model.test_encoder import CONFIG, LENGTHS, stream_of

needs_compiler = pytest.mark.skipif(build.refusal() is not None, reason=str(build.refusal()))
CPU = Backends(Resolved("cpu", "test"), Resolved("cpu", "test"))


def models() -> list[MosaicBertForMaskedLM]:
    """One with the CPU's kernels and one of plain torch, with the same weights."""
    torch.manual_seed(1)
    plain = MosaicBertForMaskedLM(CONFIG)
    own = MosaicBertForMaskedLM(CONFIG, CPU)
    own.load_state_dict(plain.state_dict())
    return [own, plain]


def batch_of(lengths: list[int]) -> dict:
    batch = stream_of(lengths)
    masked = torch.arange(0, sum(lengths), 5)
    return {**batch, "masked_indices": masked, "labels": batch["input_ids"][masked].clone()}


def test_rounded():
    sizes = [rounded(n) for n in range(1, 10_000)]
    assert all(n <= size <= max(n + n / 32 + 1, n + 15) and size % 16 == 0 for n, size in enumerate(sizes, 1))
    assert len({size for size in sizes if 4096 <= size < 8192}) == 32
    assert rounded(0) == 0 and all(rounded(size) == size for size in sizes)


def test_what_fills_up_is_a_sequence_of_its_own():
    ids, types, bounds = round_stream(torch.arange(1, 38), None, torch.tensor([0, 30, 37], dtype=torch.int32))
    assert types is None and ids.tolist() == [*range(1, 38), *[0] * 11]
    assert bounds.dtype == torch.int32 and bounds.tolist() == [0, 30, 37, 48]
    keep, labels = round_predictions(torch.tensor([3, 5]), torch.tensor([7, 8]))
    assert keep.tolist() == [3, 5, *[0] * 14] and labels.tolist() == [7, 8, *[-100] * 14]


@needs_compiler
def test_loss_and_gradients():
    found = []
    for model in models():
        loss, accuracy = model(batch_of(LENGTHS)).values()
        loss.backward()
        found.append([loss.detach(), accuracy, *(p.grad for p in model.parameters())])
    for own, plain in zip(*found, strict=True):
        torch.testing.assert_close(own, plain, atol=1e-5, rtol=1e-4)


@needs_compiler
def test_hidden_states_of_real_tokens_alone():
    own, plain = models()
    hidden = [model.encoder.eval()(stream_of([5, 12])) for model in (own, plain)]
    assert hidden[0].shape == (17, CONFIG.hidden_size)
    torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-4)


@needs_compiler
@pytest.mark.parametrize("lengths", [[1], [70] * 9])
def test_the_shared_matrix_has_one_dense_gradient(lengths):
    """Its part from the embeddings is sparse, and is added to the decoder's; once more where gradients are accumulated."""
    own, plain = models()
    for model in (own, plain):
        for _ in range(2):
            model(batch_of(lengths))["loss"].backward()
    gradients = [model.encoder.embeddings.word.weight.grad for model in (own, plain)]
    assert gradients[0].layout == torch.strided
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@needs_compiler
@pytest.mark.slow
def test_few_shapes_reach_the_products():
    """Sixty batches of different sizes, but few sizes of their first product."""
    own, _ = models()
    seen: set[int] = set()
    own.encoder.layers[0].attention.qkv.register_forward_hook(lambda _, inputs, __: seen.add(len(inputs[0])))
    for extra in range(60):
        own(batch_of([600, 600 + extra]))
    assert len(seen) <= 3
