"""The CPU's own paths against the reference: forward and every gradient, at ugly lengths and each precision."""

from __future__ import annotations

import itertools

import pytest
import torch

import kernels
from kernels import reference
from kernels.backends import Requirements, Resolved, resolve
from kernels.cpu import build
from kernels.cross_entropy import CHUNK_BYTES
from recipe.model.encoder import Backends
from tests.kernels.helpers import assert_as_exact
from tests.kernels.test_training import PLAIN, loss_curve

pytestmark = pytest.mark.skipif(build.refusal() is not None, reason=str(build.refusal()))
DTYPES = (torch.float32, torch.bfloat16)
LENGTHS = ([1, 3, 63, 0, 127, 128, 129], [1], [130], [64, 64, 5, 64, 0], [0, 0])


def bounds_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def with_gradients(run, leaves: list[torch.Tensor]) -> list[torch.Tensor]:
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = run(*leaves)
    dout = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, dout, materialize_grads=True)]


def compare(run, leaves: list[torch.Tensor], names: str, floor: float = 4.0) -> None:
    """`run(backend, *leaves)` of the backend under test, of the reference, and of the reference in float64."""
    got = with_gradients(lambda *x: run("own", *x), leaves)
    plain = with_gradients(lambda *x: run("reference", *x), leaves)
    exact = with_gradients(lambda *x: run("reference", *x), [x.double() for x in leaves])
    assert_as_exact(got, plain, exact, names, floor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("window", "alibi"), [(None, True), (None, False), (0, False), (5, True), (100, True)])
def test_attention(lengths, dtype, window, alibi):
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 3, 24).to(dtype)
    slopes = kernels.alibi_slopes(3) if alibi else None

    def run(backend, x):
        name = "cpu" if backend == "own" else backend
        return kernels.attention_packed(x, bounds_of(lengths), max([0, *lengths]), slopes, window, backend=name)

    # A query that sees itself alone has a weight of 1 whatever its score: the score's gradient is the difference of two sums over
    # the head, equal but for their rounding, and plain torch's is 0.
    compare(run, [qkv], "out dqkv", floor=2.0 * qkv.shape[-1] if window == 0 else 4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "window"), [(1100, 64), (513, 1), (600, 33), (512, 40)])
def test_windows_of_long_sequences(dtype, length, window):
    """Longer than the pieces that the loops cut windowed sequences into; one with a short neighbour, and a last piece of one."""
    torch.manual_seed(0)
    lengths = [7, length]
    qkv = torch.randn(sum(lengths), 3, 1, 16).to(dtype)
    slopes = kernels.alibi_slopes(1) if window == 33 else None

    def run(backend, x):
        name = "cpu" if backend == "own" else backend
        return kernels.attention_packed(x, bounds_of(lengths), length, slopes, window, backend=name)

    compare(run, [qkv], "out dqkv")


@pytest.mark.parametrize("window", [599, 2**40])
def test_a_window_that_reaches_from_end_to_end_is_none(window):
    torch.manual_seed(0)
    qkv, dout = torch.randn(607, 3, 1, 16).requires_grad_(), torch.randn(607, 1, 16)
    results = []
    for reach in (None, window):
        out = kernels.attention_packed(qkv, bounds_of([7, 600]), 600, None, reach, backend="cpu")
        results.append([out, *torch.autograd.grad(out, qkv, dout)])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128, 5])
def test_attention_of_q_k_and_v_apart(dtype, size):
    """Heads of other sizes, more sequences than threads, a gradient that is laid out otherwise."""
    torch.manual_seed(0)
    lengths = [33, 32, 31, 65, 2]
    qkv = torch.randn(sum(lengths), 3, 2, size).to(dtype)

    def run(backend, x):
        name = "cpu" if backend == "own" else backend
        out = kernels.attention(*x.unbind(1), bounds_of(lengths), 65, kernels.alibi_slopes(2), 20, backend=name)
        return out.transpose(0, 2)

    compare(run, [qkv], "out dqkv")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", list(reference.ACTIVATIONS))
@pytest.mark.parametrize("rows", [0, 1, 129])
def test_glu(dtype, activation, rows):
    torch.manual_seed(0)

    def run(backend, x):
        return kernels.glu(x, activation, backend="cpu" if backend == "own" else backend)

    compare(run, [torch.randn(rows, 2 * 37).to(dtype)], "out dx")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 129])
@pytest.mark.parametrize("residual", [True, False])
def test_layer_norm(dtype, rows, residual):
    torch.manual_seed(0)
    leaves = [torch.randn(rows, 37).to(dtype), torch.randn(37), torch.randn(37)]
    leaves += [torch.randn(rows, 37).to(dtype)] * residual

    def run(backend, x, weight, bias, other=None):
        return kernels.layer_norm(x, weight, bias, 1e-5, other, backend="cpu" if backend == "own" else backend)

    compare(run, leaves, "out dx dweight dbias dresidual" if residual else "out dx dweight dbias")


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize(("dtype", "of_residual"), [*zip(DTYPES, DTYPES, strict=True), *itertools.permutations(DTYPES)])
def test_layer_norm_and_its_sum(dtype, of_residual, with_bias):
    torch.manual_seed(0)
    leaves = [torch.randn(129, 37).to(dtype), 3 * torch.randn(129, 37).to(of_residual), torch.randn(37)]
    leaves += [torch.randn(37)] * with_bias

    def run(backend, x, residual, weight, bias=None):
        name = "cpu" if backend == "own" else backend
        total, out = kernels.add_layer_norm(x, residual, weight, bias, 1e-5, backend=name)
        assert backend != "own" or (total.dtype, out.dtype) == (of_residual, dtype)
        return torch.stack([total.to(dtype), out])

    compare(run, leaves, "total_and_out dx dresidual dweight" + " dbias" * with_bias)


@pytest.mark.parametrize("residual", [True, False])
def test_layer_norm_without_bias(residual):
    torch.manual_seed(0)
    x, other, weight = torch.randn(9, 37), torch.randn(9, 37), torch.randn(37)

    def run(backend, x, weight):
        given = other.to(x.dtype) if residual else None
        return kernels.layer_norm(x, weight, None, 1e-5, given, backend="cpu" if backend == "own" else backend)

    compare(run, [x, weight], "out dx dweight")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 2, 8), (1, 1, 2), (67, 3, 24), (5, 2, 64), (9, 1, 130)])
def test_rotary(dtype, shape):
    tokens, heads, size = shape
    torch.manual_seed(0)
    angles = torch.randn(tokens, size // 2) * 100
    table = torch.stack([angles.cos(), angles.sin()])
    apart = torch.randn(heads, tokens, 3, size).to(dtype)  # read as it lies, heads outermost

    def run(backend, x):
        return kernels.rotary(x.permute(1, 2, 0, 3), table, "cpu" if backend == "own" else backend)

    compare(run, [apart], "out dqkv")
    assert torch.equal(run("own", apart)[:, 2], apart[:, :, 2].transpose(0, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 63, 129])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.1)])
def test_cross_entropy(monkeypatch, dtype, rows, z_loss, smoothing):
    """In several chunks, some labels left out."""
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 50 * 101 * 4)
    torch.manual_seed(0)
    labels = torch.randint(101, (rows,))
    labels[::5] = reference.IGNORED_LABEL
    leaves = [torch.randn(rows, 24).to(dtype), torch.randn(101, 24), torch.randn(101)]

    def run(backend, *x):
        name = "cpu" if backend == "own" else backend
        return kernels.masked_cross_entropy(*x, labels, z_loss, smoothing, backend=name)[0]

    compare(run, leaves, "loss dhidden dweight dbias")
    shares = [kernels.masked_cross_entropy(*leaves, labels, backend=name)[1] for name in ("cpu", "reference")]
    if dtype == torch.float32:  # in bfloat16 logits tie, and each breaks ties as it likes
        assert torch.equal(*shares)


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 1.0])
def test_dropout(dropout_p):
    """The share that is dropped, the scale of the rest, and the same mask in the backward pass; torch's seed rules it."""
    one, zero = torch.ones(200, 256), torch.zeros(256)
    x = torch.cat([torch.full((200, 256), 5.0), one], 1).requires_grad_()
    torch.manual_seed(1)
    out = kernels.glu(x, "relu", dropout_p, backend="cpu")
    kept = out != 0
    assert abs(kept.double().mean().item() - (1 - dropout_p)) < 4 * (0.25 / kept.numel()) ** 0.5
    assert torch.allclose(out[kept], torch.tensor(5 / max(1 - dropout_p, 1e-9)), rtol=1e-4)
    (dx,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(dx[:, 256:], out)
    torch.manual_seed(1)
    assert torch.equal(kernels.glu(x, "relu", dropout_p, backend="cpu"), out)

    torch.manual_seed(2)
    y = torch.randn(200, 256, requires_grad=True)
    residual = torch.randn(200, 256, requires_grad=True)
    weights = torch.randn(200, 256)
    (dy, dresidual) = torch.autograd.grad(
        (kernels.layer_norm(y, one[0], zero, 1e-5, residual, dropout_p, backend="cpu") * weights).sum(), (y, residual)
    )
    dropped = dy == 0
    assert abs(dropped.double().mean().item() - dropout_p) < 4 * (0.25 / dropped.numel()) ** 0.5
    torch.testing.assert_close(dy[~dropped], dresidual[~dropped] / max(1 - dropout_p, 1e-9), rtol=1e-3, atol=1e-5)

    total, normed = kernels.add_layer_norm(y, residual, one[0], None, 1e-5, dropout_p, backend="cpu")
    dtotal = torch.randn(200, 256)
    dy, dresidual = torch.autograd.grad([total, normed], (y, residual), [dtotal, weights])
    dropped = dy == 0
    scaled = torch.where(dropped, 0, y / max(1 - dropout_p, 1e-9))
    torch.testing.assert_close(total, scaled + residual, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dy, torch.where(dropped, 0, dresidual / max(1 - dropout_p, 1e-9)), rtol=1e-3, atol=1e-5)


def test_custom_ops():
    torch.manual_seed(0)
    ops = torch.ops.bert_kernels
    bounds, slopes = bounds_of([3, 9, 9]), kernels.alibi_slopes(2)
    qkv = torch.randn(21, 3, 2, 8, requires_grad=True)
    torch.library.opcheck(ops.attention_packed, (qkv, bounds, 9, slopes, None, "cpu"))
    seed = torch.tensor([7])
    torch.library.opcheck(ops.rotary, (qkv, torch.randn(2, 21, 4), False, "cpu"))
    x = torch.randn(6, 10, requires_grad=True)
    torch.library.opcheck(ops.glu, (x, "gelu", 0.3, seed, "cpu"))
    weight, bias = torch.randn(10, requires_grad=True), torch.randn(10, requires_grad=True)
    torch.library.opcheck(
        ops.layer_norm, (x, weight, bias, 1e-5, x.detach().clone().requires_grad_(), 0.3, seed, "cpu")
    )
    leaves = (x, x.detach().bfloat16().requires_grad_(), weight, None)
    torch.library.opcheck(ops.add_layer_norm, (*leaves, 1e-5, 0.3, seed, "cpu"))
    labels = torch.tensor([0, 3, -100, 1, 2, 4])
    decoder = torch.randn(5, 10, requires_grad=True)
    arguments = (x, decoder, torch.zeros(5, requires_grad=True), labels, 0.0, 0.0, 4, True, "cpu")
    torch.library.opcheck(ops.masked_cross_entropy, arguments)


def test_values_that_were_not_checked_reach_nothing_outside():
    """As in a compiled graph, which looks at none: the ops themselves, with bounds and labels that are wrong."""
    ops = torch.ops.bert_kernels
    qkv = torch.randn(12, 3, 2, 16)
    bounds = torch.tensor([-5, 4, 2, 9999], dtype=torch.int32)
    out, lse = ops.attention_packed(qkv, bounds, 12, None, None, "cpu")
    assert ops.attention_packed_backward(out, qkv, out, lse, bounds, 12, None, None, "cpu").shape == qkv.shape
    hidden, decoder, bias = torch.randn(3, 8), torch.randn(5, 8), torch.zeros(5)
    labels = torch.tensor([10**9, 2, -7])
    _, _, dhidden, dweight, _ = ops.masked_cross_entropy(hidden, decoder, bias, labels, 0.0, 0.0, 4, True, "cpu")
    assert not dhidden[[0, 2]].any() and dhidden[1].any() and dweight.isfinite().all()


def test_refusals():
    needs = Requirements("cuda", torch.bfloat16, 64)
    for kind in ("attention", "kernels"):
        with pytest.raises(ValueError, match=f"model.{kind}=cpu cannot run: device cuda: written for a CPU"):
            resolve(kind, "cpu", needs)
    with pytest.raises(ValueError, match=r"attention dropout 0.1: it has none; set it to 0, or take sdpa"):
        resolve("attention", "cpu", Requirements("cpu", torch.float32, 64, attention_dropout=0.1))
    qkv = torch.zeros(4, 3, 2, 8)
    with pytest.raises(ValueError, match=r"backend=cpu cannot take dropout_p=0.1"):
        kernels.attention_packed(qkv, bounds_of([4]), 4, dropout_p=0.1, backend="cpu")
    with pytest.raises(ValueError, match="slopes requires a gradient; backend=cpu makes none"):
        kernels.attention_packed(qkv, bounds_of([4]), 4, torch.ones(2, requires_grad=True), backend="cpu")
    with pytest.raises(ValueError, match="backend='fast': known are triton, cpu, reference"):
        kernels.glu(torch.zeros(2, 4), backend="fast")
    with pytest.raises(ValueError, match="backend=cpu cannot take x, which is on meta"):
        kernels.glu(torch.zeros(2, 4, device="meta"), backend="cpu")


def test_loss_curves():
    """A tiny run's curve is plain torch's, digit for digit in float32, and no further from it in bfloat16 than plain torch is."""
    own = Backends(Resolved("cpu", "test"), Resolved("cpu", "test"))
    curves = {}
    for name, backends in (("own", own), ("plain", PLAIN)):
        for autocast in (False, True):
            curves[name, autocast] = loss_curve(backends, autocast, steps=12)
    exact = curves["plain", False]
    assert exact[-1] < exact[0] - 0.3
    torch.testing.assert_close(curves["own", False], exact, atol=1e-4, rtol=0)
    errors = {name: (curves[name, True] - exact).abs().max() for name in ("own", "plain")}
    assert errors["own"] <= 2 * errors["plain"] + 1e-3
