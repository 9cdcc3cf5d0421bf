"""The Triton masked-language-model loss: against float64, in chunks, with every extra term, and refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import kernels
from kernels import checks, cross_entropy
from tests.kernels.helpers import DEVICE, DTYPES, assert_as_exact, needs_triton

SHAPES = [(1, 5, 3), (1, 8, 1), (3, 24, 129), (33, 40, 1001), (7, 768, 5003)]  # rows, hidden size, vocabulary
NAMES = "loss dhidden dweight dbias"


def inputs(rows, size, vocabulary, dtype=torch.float32, ignored=0.2):
    """hidden, weight, bias, labels: logits of a few units, as a trained model's are."""
    torch.manual_seed(rows + size + vocabulary)
    hidden = torch.randn(rows, size, device=DEVICE).to(dtype)
    weight = (torch.randn(vocabulary, size, device=DEVICE) * 3 / size**0.5).to(dtype)
    bias = torch.randn(vocabulary, device=DEVICE).to(dtype)
    labels = torch.randint(vocabulary, (rows,), device=DEVICE)
    return hidden, weight, bias, labels.masked_fill(torch.rand(rows, device=DEVICE) < ignored, -100)


def run(hidden, weight, bias, labels, backend, scale=1.0, **options):
    """Loss, every gradient, and the accuracy."""
    leaves = [tensor.detach().requires_grad_() for tensor in (hidden, weight, bias)]
    loss, accuracy = kernels.masked_cross_entropy(*leaves, labels, backend=backend, **options)
    return [loss, *torch.autograd.grad(loss * scale, leaves)], accuracy


def assert_exact(given, **options):
    exact, _ = run(*(tensor.double() for tensor in given[:3]), given[3], "reference", **options)
    plain, _ = run(*given, "reference", **options)
    got, accuracy = run(*given, "triton", **options)
    greatest = F.linear(*(tensor.double() for tensor in given[:3])).abs().max().item() if len(given[3]) else 0.0
    # A probability's relative error is its logit's absolute one, a rounding of the greatest: so many roundings of its own.
    assert_as_exact(got[1:], plain[1:], exact[1:], NAMES.removeprefix("loss "), floor=4.0 + greatest)
    # The loss is the difference of two numbers made of logits that were rounded to the dtype: a rounding of each is allowed.
    error, allowed = ((loss.double() - exact[0]).abs().item() for loss in (got[0], plain[0]))
    assert error <= 2 * allowed + torch.finfo(given[0].dtype).eps * greatest, (
        f"loss: {error:.3g}, plain's {allowed:.3g}"
    )
    return accuracy


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_float64(shape, dtype):
    assert_exact(inputs(*shape, dtype))


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "options", [{"z_loss": 1e-2}, {"label_smoothing": 0.1}, {"z_loss": 1e-3, "label_smoothing": 0.3}], ids=str
)
def test_extra_terms(options, dtype):
    given = inputs(9, 24, 301, dtype)
    assert_exact(given, **options)
    # and the terms are the textbook's
    hidden, weight, bias, labels = (tensor.double() if tensor.is_floating_point() else tensor for tensor in given)
    logits = F.linear(hidden, weight, bias)[labels != -100]
    expected = F.cross_entropy(logits, labels[labels != -100], label_smoothing=options.get("label_smoothing", 0.0))
    expected += options.get("z_loss", 0.0) * logits.logsumexp(1).square().mean()
    (loss, *_), _ = run(hidden, weight, bias, labels, "reference", **options)
    torch.testing.assert_close(loss, expected)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks(monkeypatch, dtype):
    """23 rows in chunks of 5: the last one is smaller, and the weight's gradient is summed over them."""
    given = inputs(23, 32, 130, dtype)
    monkeypatch.setitem(cross_entropy.CHUNK_BYTES, "triton", 5 * 130 * dtype.itemsize)
    assert_exact(given)


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_accuracy(dtype):
    hidden, weight, bias, labels = inputs(64, 24, 77, dtype, ignored=0.3)
    guesses = F.linear(hidden.float(), weight.float(), bias.float()).argmax(1)
    labels = torch.where((torch.rand(64, device=DEVICE) < 0.5) & (labels != -100), guesses, labels)
    for backend in ("triton", "reference"):
        _, accuracy = run(hidden, weight, bias, labels, backend)
        expected = (guesses == labels).sum() / (labels != -100).sum()
        assert accuracy.dtype == torch.float32 and not accuracy.requires_grad
        assert accuracy.item() == pytest.approx(expected.item(), abs=1.5 / 64)  # one tie after rounding at most
    ones = torch.ones(4, 3, device=DEVICE)  # of equal logits the first counts, as for torch's argmax
    for label, expected in ((0, 1.0), (2, 0.0)):
        given = ones, ones.new_ones(9, 3), ones.new_zeros(9), torch.full((4,), label, device=DEVICE)
        assert run(*given, "triton")[1].item() == run(*given, "reference")[1].item() == expected


@needs_triton
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_anywhere_in_the_row_and_its_equals(smoothing):
    """At every edge of what is taken at once; right is the first of the greatest, wherever an equal one stands."""
    vocabulary, at_once = 9001, 2048
    places = [0, 1023, at_once - 1, at_once, 4 * at_once, 9000]
    labels, equals = torch.tensor([one for one in places for _ in places]), torch.tensor(places * len(places))
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, len(labels)) / 8
    rows = torch.arange(len(labels))
    weight[labels, rows] = weight[equals, rows] = 3.0  # exactly, in the product with the identity too
    given = (torch.eye(len(labels)), weight, torch.zeros(vocabulary))
    given = [tensor.to(DEVICE) for tensor in given]
    for kept in (labels <= equals, labels > equals):
        masked = labels.masked_fill(~kept, -100).to(DEVICE)
        results, accuracy = run(*given, masked, "triton", label_smoothing=smoothing)
        expected, _ = run(*given, masked, "reference", label_smoothing=smoothing)
        assert accuracy == float(kept[0])  # the first row's label equals its equal
        for got, wanted in zip(results, expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@needs_triton
def test_mixed_precision():
    """Hidden states in bf16 and parameters in float32, as under autocast: the parameters' gradients are float32."""
    hidden, weight, bias, labels = inputs(9, 24, 301)
    given = hidden.bfloat16(), weight, bias, labels
    exact, _ = run(hidden.bfloat16().double(), weight.bfloat16().double(), bias.double(), labels, "reference")
    plain, _ = run(*given, "reference")
    for autocast in (False, True):
        with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
            got, _ = run(*given, "triton")
        assert [x.dtype for x in got] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
        for name, x, p, e in zip(NAMES.split(), got, plain, exact, strict=True):
            error, allowed = ((y.double() - e).abs().max().item() for y in (x, p))
            assert error <= 2 * allowed + 2e-6, name


@needs_triton
def test_no_labels():
    for rows, ignored in ((0, 0.0), (6, 1.1)):
        (loss, *gradients), accuracy = run(*inputs(rows, 16, 40, ignored=ignored), "triton")
        assert loss.item() == accuracy.item() == 0 and not any(gradient.any() for gradient in gradients)


@needs_triton
def test_large_logits():
    hidden, weight, bias, labels = inputs(5, 16, 100)
    assert_exact((hidden * 300, weight, bias, labels))


@needs_triton
def test_the_backward_writes_into_nothing_saved():
    """Twice through one graph, with another scale, gives twice the right gradients."""
    given = inputs(9, 24, 301)
    leaves = [tensor.detach().requires_grad_() for tensor in given[:3]]
    loss, _ = kernels.masked_cross_entropy(*leaves, given[3], backend="triton")
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    scaled = torch.autograd.grad(loss * 3, leaves, retain_graph=True)
    again = torch.autograd.grad(loss, leaves)
    assert all(map(torch.equal, first, again))
    torch.testing.assert_close(scaled, tuple(3 * gradient for gradient in first))


@needs_triton
def test_without_gradients():
    """Evaluation makes none, and says the same."""
    given = inputs(9, 24, 301)
    (loss, *_), accuracy = run(*given, "triton")
    for arguments, enabled in ((given, True), ([given[0].clone().requires_grad_(), *given[1:]], False)):
        with torch.set_grad_enabled(enabled):
            values = kernels.masked_cross_entropy(*arguments, backend="triton")
        assert torch.equal(values[0], loss) and torch.equal(values[1], accuracy) and not values[0].requires_grad


@needs_triton
def test_strided_input():
    hidden, weight, bias, labels = inputs(9, 24, 301)
    results, _ = run(hidden, weight, bias, labels, "triton")
    strided = hidden.t().contiguous().t(), weight.t().contiguous().t(), bias, labels.repeat_interleave(2)[::2]
    torch.testing.assert_close(run(*strided, "triton")[0], results)


@needs_triton
@pytest.mark.parametrize("with_gradients", [True, False])
def test_opcheck(with_gradients):
    *leaves, labels = inputs(5, 8, 30)
    leaves = [leaf.requires_grad_(with_gradients) for leaf in leaves]
    arguments = (*leaves, labels, 1e-3, 0.1, 2, with_gradients)
    torch.library.opcheck(torch.ops.bert_kernels.masked_cross_entropy, arguments)


def test_bad_input():
    hidden, weight, bias, labels = (
        torch.zeros(3, 8),
        torch.zeros(5, 8),
        torch.zeros(5),
        torch.zeros(3, dtype=torch.long),
    )
    for arguments, options, words in (
        ((hidden, weight, bias, labels[:2]), {}, r"labels is torch.int64 \(2,\)"),
        ((hidden, weight, bias, labels.int()), {}, "labels is torch.int32"),
        ((hidden, weight[:, :7], bias, labels), {}, r"weight \(5, 7\) and bias \(5,\)"),
        ((hidden, weight, bias, labels), {"label_smoothing": 1.5}, "label_smoothing=1.5"),
        ((hidden, weight, bias, labels), {"z_loss": -1.0}, "z_loss=-1.0"),
        ((hidden, weight, bias, labels), {"backend": "cuda"}, "backend='cuda'.*triton, cpu, reference"),
        ((hidden, weight, bias, labels + 5), {}, "labels holds 5; it must be in 0 to 4, or -100"),
        ((hidden, weight, bias, labels - 1), {}, "labels holds -1"),
        ((hidden.double(), weight, bias, labels), {"backend": "triton"}, "cannot take hidden: torch.float64"),
    ):
        with pytest.raises(ValueError, match=words):
            kernels.masked_cross_entropy(*arguments, **options)


@needs_triton
def test_labels_outside_the_vocabulary_read_nothing_elsewhere():
    """Where they are not checked, as on a GPU, they count as a label with logit 0: no illegal memory access."""
    hidden, weight, bias, labels = inputs(4, 8, 30, ignored=0.0)
    labels[1], labels[2] = 10**9, -7
    sums, counted, *_ = torch.ops.bert_kernels.masked_cross_entropy(hidden, weight, bias, labels, 0.0, 0.0, 4, False)
    assert sums.isfinite().all() and counted.item() == 4


def test_value_checks_are_asked_for():
    x = torch.zeros(2, device="meta")
    assert not checks.may_look_at(x)
    with checks.value_checks():
        assert checks.may_look_at(x)
    assert not checks.may_look_at(x) and checks.may_look_at(torch.zeros(2))
