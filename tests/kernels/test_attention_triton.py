"""The Triton attention against float64: both paths, both forms, every gradient; its custom ops; what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

import kernels
from kernels import checks, reference
from kernels.backends import Resolved
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends, Layer, Sequences
from tests.kernels.helpers import DEVICE, DTYPES, TF32_FLOOR, assert_as_exact, needs_triton

pytestmark = needs_triton

SHORT = [1, 3, 0, 63, 127, 128]
LONG = [129, 1, 0, 66]
NAMES = "out dq dk dv"


def bounds(lengths):
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()


def inputs(lengths, heads, size, dtype):
    """qkv (T, 3, N, H) and dout (T, N, H)."""
    torch.manual_seed(len(lengths) + heads + size)
    qkv, dout = (torch.randn(sum(lengths), n, heads, size, device=DEVICE).to(dtype) for n in (3, 1))
    return qkv, dout[:, 0]


def run(function, qkv, dout):
    """The output and every gradient of function(q, k, v)."""
    q, k, v = (x.detach().requires_grad_() for x in qkv.unbind(1))
    out = function(q, k, v)
    return out, *torch.autograd.grad(out, (q, k, v), dout)


def plain(q, k, v, lengths, slopes, window):
    """Attention as one writes it in torch, every step in the tensors' own dtype."""
    outputs = []
    for x in zip(*(y.split(lengths) for y in (q, k, v)), strict=True):
        q_s, k_s, v_s = (y.transpose(0, 1) for y in x)
        scores = q_s @ k_s.transpose(1, 2) / math.sqrt(q.shape[-1])
        position = torch.arange(q_s.shape[1], device=q.device)
        distance = (position[:, None] - position[None, :]).abs()
        if slopes is not None:
            scores = scores - (slopes[:, None, None] * distance).to(scores.dtype)
        if window is not None:
            scores = scores.masked_fill(distance > window, float("-inf"))
        outputs.append((scores.softmax(-1) @ v_s).transpose(0, 1))
    return torch.cat(outputs)


def compare(lengths, heads, size, dtype, alibi=True, window=None, longest=None, tensor_cores=DEVICE == "cuda"):
    qkv, dout = inputs(lengths, heads, size, dtype)
    slopes = kernels.alibi_slopes(heads).to(DEVICE) if alibi else None
    cu_seqlens, longest = bounds(lengths), longest or max(lengths)
    exact = run(
        lambda q, k, v: reference.attention(q, k, v, cu_seqlens, longest, slopes, window), qkv.double(), dout.double()
    )
    got = run(
        lambda q, k, v: kernels.attention(q, k, v, cu_seqlens, longest, slopes, window, backend="triton"), qkv, dout
    )
    floor = {"floor": TF32_FLOOR} if tensor_cores and dtype == torch.float32 else {}
    assert_as_exact(got, run(lambda q, k, v: plain(q, k, v, lengths, slopes, window), qkv, dout), exact, NAMES, **floor)
    packed = qkv.clone().requires_grad_()
    out = kernels.attention_packed(packed, cu_seqlens, longest, slopes, window, backend="triton")
    (gradient,) = torch.autograd.grad(out, packed, dout)
    assert torch.equal(out, got[0]) and torch.equal(gradient, torch.stack(got[1:], 1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [SHORT, LONG], ids=["short", "long"])
def test_as_float64(lengths, dtype):
    compare(lengths, 3 if lengths is SHORT else 2, 32, dtype)


@pytest.mark.parametrize("size", [64, 96, 128])
@pytest.mark.parametrize("lengths", [[128, 0, 63], [130, 7]], ids=["short", "long"])
def test_head_sizes(lengths, size):
    compare(lengths, 2, size, torch.bfloat16)


@pytest.mark.parametrize("size", [8, 24, 128])
def test_other_head_sizes_and_types(size):
    compare([33, 2], 1, size, torch.float32)
    compare([33, 2], 1, size, torch.float16)


@pytest.mark.parametrize("length", [1, 3, 63, 127, 128, 129])
def test_one_sequence_alone(length):
    compare([length], 5, 16, torch.bfloat16)


@pytest.mark.parametrize("alibi", [True, False])
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("lengths", [[100, 1], [140, 30]], ids=["short", "long"])
def test_slopes_and_windows(lengths, window, alibi):
    compare(lengths, 1, 64 if window == 20 else 128, torch.float16, alibi, window)


@pytest.mark.parametrize(
    ("lengths", "heads", "size", "dtype", "alibi"),
    [
        (SHORT, 3, 64, torch.bfloat16, True),
        ([100, 0, 17], 2, 64, torch.float16, False),
        ([5, 64], 1, 24, torch.bfloat16, True),
        ([3], 1, 32, torch.float16, True),
    ],
    ids=str,
)
def test_all_queries_of_a_sequence_at_once(lengths, heads, size, dtype, alibi, monkeypatch):
    """The backward's form on sm_90, of which a program takes several tasks, or none."""
    from kernels.triton import attention_short

    asked = []
    monkeypatch.setattr(attention_short, "takes_whole", lambda *given: asked.append(given) or True)
    compare(lengths, heads, size, dtype, alibi)
    assert len(asked) == 2


@pytest.mark.parametrize("length", [50, 150])
def test_a_window_of_nothing_but_oneself(length):
    qkv, dout = inputs([length], 2, 32, torch.float16)
    out, dq, dk, dv = run(
        lambda q, k, v: kernels.attention(q, k, v, bounds([length]), length, window=0, backend="triton"), qkv, dout
    )
    torch.testing.assert_close(out, qkv[:, 2])
    torch.testing.assert_close(dv, dout)
    assert dq.abs().max() < 1e-5 and dk.abs().max() < 1e-5  # exactly, they are 0


def test_tiles_beyond_the_window_are_not_met():
    """Masked and not skipped, what is not a number would reach every token, as 0 times NaN."""
    qkv, dout = inputs([128], 1, 32, torch.float32)
    results = []
    for _ in range(2):
        results.append(
            run(lambda q, k, v: kernels.attention(q, k, v, bounds([128]), 128, None, 5, backend="triton"), qkv, dout)
        )
        qkv[96:], dout[96:] = float("nan"), float("nan")
    for x, y in zip(*results, strict=True):
        assert torch.equal(x[:32], y[:32]) and y[:32].isfinite().all()  # tiles of 32; of two, by way of delta


def test_the_path_on_chip_is_as_exact_in_float32(monkeypatch):
    """float32 takes tiles for want of room; its precision shows mistakes that 16 bits hide."""
    from kernels.triton import attention_short

    monkeypatch.setattr(attention_short, "fits", lambda max_seqlen, *_: max_seqlen <= attention_short.MAX_LENGTH)
    compare(SHORT, 2, 32, torch.float32)
    compare([70, 9], 1, 96, torch.float32, window=5)


def test_max_seqlen_may_be_more_than_the_longest():
    compare([5, 20], 2, 32, torch.float16, longest=100)
    compare([5, 20], 2, 32, torch.float16, longest=300)


def test_scores_so_low_that_a_padded_key_would_outshine_them():
    """All real scores near -400: a padded key's 0, not masked, would overflow the exponential."""
    for lengths in ([40], [150]):
        q = torch.full((sum(lengths), 1, 32), 8.0, device=DEVICE, dtype=torch.float16)
        qkv = torch.stack([q, -q + torch.randn_like(q) / 8, torch.randn_like(q)], 1).requires_grad_()
        out = kernels.attention_packed(qkv, bounds(lengths), max(lengths), backend="triton")
        out.sum().backward()
        assert out.isfinite().all() and qkv.grad.isfinite().all()


@pytest.mark.parametrize("length", [40, 140])
def test_strides_and_repeats(length):
    """Views of any token and head stride are read as they are, inputs are not written, two runs agree to the bit."""
    qkv, dout = inputs([length], 2, 32, torch.bfloat16)
    before, slopes, cu_seqlens = qkv.clone(), kernels.alibi_slopes(2).to(DEVICE), bounds([length])

    def function(q, k, v):
        return kernels.attention(q, k, v, cu_seqlens, length, slopes, backend="triton")

    dout = dout.transpose(0, 1).contiguous().transpose(0, 1)  # heads outermost
    first = run(function, qkv, dout)
    for x, y in zip(first, run(function, qkv, dout), strict=True):
        assert torch.equal(x, y)
    apart = torch.stack([x.contiguous() for x in qkv.unbind(1)], 1)
    heads_first = qkv.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)
    for other in (apart, heads_first):
        for x, y in zip(first, run(function, other, dout.contiguous()), strict=True):
            assert torch.equal(x, y)
    assert torch.equal(qkv, before)
    summed = run(function, qkv, torch.ones(1, device=DEVICE, dtype=qkv.dtype).expand(dout.shape))
    for x, y in zip(summed, run(function, qkv, torch.ones_like(dout)), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_at_all(lengths):
    qkv, dout = inputs(lengths, 2, 32, torch.float16)
    for longest in (0, 7, 200):
        out, *gradients = run(
            lambda q, k, v, n=longest: kernels.attention(q, k, v, bounds(lengths), n, backend="triton"), qkv, dout
        )
        assert out.shape == (0, 2, 32) and all(g.shape == (0, 2, 32) for g in gradients)


@pytest.mark.parametrize("length", [9, 130])
def test_opcheck(length):
    qkv, _ = inputs([length, 3], 1, 16, torch.float16)
    rest = (bounds([length, 3]), length, kernels.alibi_slopes(1).to(DEVICE), None)
    q, k, v = (x.clone().requires_grad_() for x in qkv.unbind(1))
    torch.library.opcheck(torch.ops.bert_kernels.attention, (q, k, v, *rest))
    torch.library.opcheck(torch.ops.bert_kernels.attention_packed, (qkv.requires_grad_(), *rest))
    qkv = qkv.detach()
    out, lse = torch.ops.bert_kernels.attention_packed(qkv, *rest)
    dout = torch.randn_like(out)
    torch.library.opcheck(torch.ops.bert_kernels.attention_packed_backward, (dout, qkv, out, lse, *rest))
    torch.library.opcheck(torch.ops.bert_kernels.attention_backward, (dout, *qkv.unbind(1), out, lse, *rest))


def test_a_block_compiles_as_one_graph():
    config = EncoderConfig(
        vocab_size=64, hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=64
    )
    triton = Resolved("triton", "test")
    torch.manual_seed(0)
    layer = Layer(config, Backends(attention=triton, kernels=triton), 0).to(DEVICE).eval()
    sequences = Sequences(bounds([20, 11]), 20, kernels.alibi_slopes(3).to(DEVICE))
    results = []
    for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        x = torch.randn(31, 48, generator=torch.Generator().manual_seed(1)).to(DEVICE).requires_grad_()
        out, _ = function(x, None, sequences)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def arguments(**changes):
    q, k, v = inputs([5, 4], 2, 32, torch.float16)[0].unbind(1)
    given = {"q": q, "k": k, "v": v, "cu_seqlens": bounds([5, 4]), "max_seqlen": 5, "backend": "triton"}
    return given | changes


def strange(size=32, dtype=torch.float16, **more):
    return dict.fromkeys("qkv", torch.zeros(9, 2, size, dtype=dtype, device=DEVICE)) | more


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda: {"k": torch.zeros(9, 2, 16)}, r"\(9, 2, 16\)"),
        (lambda: {"v": torch.zeros(9, 2, 32, device=DEVICE)}, "float32"),
        (lambda: strange(size=20), "head_dim=20: the kernels take multiples of 8 up to 128"),
        (lambda: strange(size=136), "head_dim=136"),
        (lambda: strange(dtype=torch.float64), "torch.float64"),
        (lambda: {"q": torch.zeros(9, 32, 2, dtype=torch.float16, device=DEVICE).mT}, "q has stride 2 along its heads"),
        (lambda: {"cu_seqlens": bounds([5, 4]).long()}, "int64"),
        (lambda: {"cu_seqlens": bounds([5, 3])}, "from 0 to 8; it must run from 0 to the 9 tokens"),
        (lambda: {"cu_seqlens": bounds([5, 5])}, "from 0 to 10"),
        (lambda: {"cu_seqlens": bounds([4, -1, 6]), "max_seqlen": 6}, "falls by 1"),
        (lambda: {"cu_seqlens": bounds([4, 5])[1:].contiguous(), "max_seqlen": 9}, "from 4 to 9"),
        (lambda: {"cu_seqlens": bounds([7, 2])}, "max_seqlen=5; the longest sequence of cu_seqlens has 7 tokens"),
        (lambda: {"max_seqlen": 3}, "max_seqlen=3"),
        (lambda: {"slopes": torch.ones(3, device=DEVICE)}, r"slopes has shape \(3,\)"),
        (lambda: {"slopes": torch.ones(2, device=DEVICE, dtype=torch.int32)}, "slopes is torch.int32"),
        (lambda: {"slopes": torch.ones(2, device=DEVICE, requires_grad=True)}, "slopes requires a gradient"),
        (lambda: {"slopes": torch.ones(2, device="meta")}, "slopes is on meta"),
        (lambda: {"window": -1}, "window=-1"),
        (lambda: {"dropout_p": 0.1}, "dropout_p=0.1"),
        (lambda: {"dropout_p": 1.5}, "dropout_p=1.5"),
        (lambda: {"backend": "trition"}, "known are triton, flash_attn"),
    ],
)  # fmt: skip
def test_refusals(changes, message):
    with checks.value_checks(), pytest.raises(ValueError, match=message):
        kernels.attention(**arguments(**changes()))


def test_packed_refusals():
    with pytest.raises(ValueError, match=r"qkv has shape \(9, 2, 2, 32\)"):
        kernels.attention_packed(torch.zeros(9, 2, 2, 32), bounds([9]), 9, backend="triton")
    wide = torch.zeros(9, 3, 32, 2, dtype=torch.float16, device=DEVICE).mT
    with pytest.raises(ValueError, match=r"qkv has stride 2 along its heads.*qkv.contiguous\(\)"):
        kernels.attention_packed(wide, bounds([9]), 9, backend="triton")
