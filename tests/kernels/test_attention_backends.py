"""The other attention backends: as the reference where they run, their arguments where they do not, and who refuses what."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from types import ModuleType

import pytest
import torch

import kernels
from kernels import backends, reference
from kernels.backends import Requirements

LENGTHS = [5, 0, 17, 1]


def given(dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    qkv = torch.randn(sum(LENGTHS), 3, 2, 32, device=device).to(dtype)
    return qkv, torch.tensor([0, *LENGTHS], device=device).cumsum(0).int(), kernels.alibi_slopes(2).to(device)


def run(backend, qkv, cu_seqlens, slopes, window=None, gradient=True):
    qkv = qkv.detach().requires_grad_(gradient)
    out = kernels.attention_packed(qkv, cu_seqlens, max(LENGTHS), slopes, window, backend=backend)
    if not gradient:
        return (out,)
    return out, torch.autograd.grad(out, qkv, torch.ones_like(out) + out.detach())[0]


@cache
def flex_has_a_gradient() -> bool:
    """On a CPU, where torch 2.15 refuses to differentiate flex_attention; torch 2.10 does not."""
    try:
        run("flex", *given())
    except NotImplementedError:
        return False
    return True


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["flex", "sdpa"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("alibi", [True, False])
def test_as_the_reference(backend, window, alibi):
    qkv, cu_seqlens, slopes = given()
    slopes = slopes if alibi else None
    gradient = backend != "flex" or flex_has_a_gradient()
    got, expected = (run(name, qkv, cu_seqlens, slopes, window, gradient) for name in (backend, "reference"))
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["triton", "flash_attn", "xformers", "flex"])
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_as_the_reference_on_a_gpu(backend):
    alibi = backend != "xformers"
    reason = {row.name: row for row in backends.ATTENTION}[backend].refusal(
        Requirements("cuda", torch.bfloat16, 32, alibi=alibi)
    )
    if reason:
        pytest.skip(reason)
    qkv, cu_seqlens, slopes = given(torch.bfloat16, "cuda")
    slopes = slopes if alibi else None
    for x, y in zip(run(backend, qkv, cu_seqlens, slopes), run("reference", qkv, cu_seqlens, slopes), strict=True):
        torch.testing.assert_close(x, y, atol=4e-2, rtol=2e-2)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_makes_one_mask_a_batch():
    from kernels import attention_backends

    qkv, cu_seqlens, slopes = given()
    mask = attention_backends._block_mask(cu_seqlens, len(qkv), None)
    run("flex", qkv, cu_seqlens, slopes, gradient=False)
    assert attention_backends._block_mask(cu_seqlens, len(qkv), None) is mask
    assert attention_backends._block_mask(cu_seqlens, len(qkv), 3) is not mask
    cu_seqlens[3] += 1  # written into: another batch
    assert attention_backends._block_mask(cu_seqlens, len(qkv), None) is not mask


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["triton", "flex", "cpu", "sdpa", "reference"])
@pytest.mark.parametrize("sequences, longest", [(0, 0), (0, 4), (2, 0), (2, 4)])
def test_no_tokens_have_an_empty_gradient(monkeypatch, backend, sequences, longest):
    """A stream of empty sequences, or of none, in both forms: the gradient exists on every backend and is empty."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    row = {row.name: row for row in backends.ATTENTION}[backend]
    if backend != "flex" and (reason := row.refusal(Requirements("cpu", torch.float32, 32))):
        pytest.skip(reason)
    rest = (torch.zeros(sequences + 1, dtype=torch.int32), longest, kernels.alibi_slopes(2))
    qkv = torch.zeros(0, 3, 2, 32, requires_grad=True)
    apart = [torch.zeros(0, 2, 32, requires_grad=True) for _ in range(3)]
    for given, out in (
        ([qkv], kernels.attention_packed(qkv, *rest, backend=backend)),
        (apart, kernels.attention(*apart, *rest, backend=backend)),
    ):
        assert out.shape == (0, 2, 32)
        gradients = torch.autograd.grad(out, given, torch.ones_like(out))
        assert [gradient.shape for gradient in gradients] == [x.shape for x in given]


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_no_tokens_give_slopes_a_gradient_of_zeros(backend):
    slopes = kernels.alibi_slopes(2).requires_grad_()
    out = kernels.attention_packed(
        torch.zeros(0, 3, 2, 32), torch.zeros(3, dtype=torch.int32), 4, slopes, backend=backend
    )
    assert torch.autograd.grad(out, slopes, torch.ones_like(out))[0].tolist() == [0.0, 0.0]


def test_flash_attn_is_asked_for_alibi_and_window(monkeypatch):
    """The package needs a GPU; a stand-in notes what it is asked for and answers as the reference."""
    asked = {}

    def varlen(q, k, v, cu_q, cu_k, max_q, max_k, **options):
        asked.update(options)
        assert cu_q is cu_k and max_q == max_k == max(LENGTHS)
        return reference.attention(q, k, v, cu_q, max_q, options["alibi_slopes"], options["window_size"][0])

    def varlen_packed(qkv, cu_seqlens, longest, **options):
        return varlen(*qkv.unbind(1), cu_seqlens, cu_seqlens, longest, longest, **options)

    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func, package.flash_attn_varlen_qkvpacked_func = varlen, varlen_packed
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    qkv, cu_seqlens, slopes = given()
    expected = reference.attention(*qkv.unbind(1), cu_seqlens, max(LENGTHS), slopes, 4)
    apart = kernels.attention(*qkv.unbind(1), cu_seqlens, max(LENGTHS), slopes, 4, dropout_p=0.1, backend="flash_attn")
    packed = kernels.attention_packed(qkv, cu_seqlens, max(LENGTHS), slopes, 4, dropout_p=0.1, backend="flash_attn")
    assert torch.equal(apart, expected) and torch.equal(packed, expected)
    assert asked == {"dropout_p": 0.1, "window_size": (4, 4), "alibi_slopes": slopes, "deterministic": False}


def test_xformers_is_given_the_lengths(monkeypatch):
    fmha = pytest.importorskip("xformers.ops").fmha
    qkv, cu_seqlens, slopes = given()
    asked = {}

    def attention(q, k, v, attn_bias, p):
        asked.update(lengths=attn_bias.q_seqinfo.seqstart_py, p=p)
        return reference.attention(q[0], k[0], v[0], cu_seqlens, max(LENGTHS))[None]

    monkeypatch.setattr(fmha, "memory_efficient_attention", attention)
    out = kernels.attention_packed(qkv, cu_seqlens, max(LENGTHS), dropout_p=0.2, backend="xformers")
    assert torch.equal(out, reference.attention(*qkv.unbind(1), cu_seqlens, max(LENGTHS)))
    assert asked == {"lengths": [0, 5, 22, 23], "p": 0.2}
    with pytest.raises(ValueError, match="xformers cannot take slopes"):
        kernels.attention_packed(qkv, cu_seqlens, max(LENGTHS), slopes, backend="xformers")


def test_dropout_is_refused_by_flex():
    qkv, cu_seqlens, _ = given()
    with pytest.raises(ValueError, match=r"backend=flex cannot take dropout_p=0.1"):
        kernels.attention_packed(qkv, cu_seqlens, max(LENGTHS), dropout_p=0.1, backend="flex")


@pytest.mark.parametrize("interpret", ["0", "1"])
def test_a_cpu_takes_its_own(monkeypatch, interpret):
    """Interpreted Triton can be asked for, but is nobody's choice."""
    monkeypatch.setenv("TRITON_INTERPRET", interpret)
    monkeypatch.setattr("kernels.cpu.build.refusal", lambda: None)  # as with a compiler
    needs = Requirements("cpu", torch.float32, 64)
    chosen = backends.resolve("attention", "auto", needs)
    assert (chosen.name, chosen.why, chosen.in_short) == ("cpu", "fastest on this device", "cpu")
    dropped = backends.resolve("attention", "auto", Requirements("cpu", torch.float32, 64, 0.1))
    assert dropped.name == "sdpa" and "not cpu: attention dropout 0.1" in dropped.in_short
    assert backends.resolve("attention", "sdpa", needs).in_short == "sdpa"
    assert backends.resolve("kernels", "auto", needs).name == "cpu"
    if interpret == "1":
        assert backends.resolve("attention", "triton", needs).name == "triton"


@pytest.mark.parametrize(
    ("backend", "change", "reason"),
    [
        ("triton", {"attention_dropout": 0.1}, "attention dropout 0.1"),
        ("triton", {"head_dim": 160}, "head_dim=160: the kernels take multiples of 8 up to 128"),
        ("triton", {"dtype": torch.float64}, "torch.float64"),
        ("triton", {"device": "mps"}, "device mps: needs a CUDA GPU"),
        ("flash_attn", {}, "device cpu"),
        ("flash_attn", {"device": "cuda"}, "flash-attn is not installed"),
        ("xformers", {"device": "cuda"}, "ALiBi"),
        ("xformers", {}, "device cpu"),
        ("flex", {"attention_dropout": 0.1, "device": "cuda"}, "attention dropout 0.1"),
        ("flex", {}, "gradients on a CUDA GPU only"),
    ],
)
def test_refusals(monkeypatch, backend, change, reason):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    needs = Requirements(**{"device": "cpu", "dtype": torch.float32, "head_dim": 64, **change})
    if "flash-attn" in reason and backends.importlib.util.find_spec("flash_attn"):
        pytest.skip("flash-attn is installed")
    if reason == "ALiBi" and backends.importlib.util.find_spec("xformers") is None:
        pytest.skip("xformers is not installed")
    with pytest.raises(ValueError, match=reason) as refused:
        backends.resolve("attention", backend, needs)
    assert f"model.attention={backend} cannot run" in str(refused.value) and "sdpa: can run" in str(refused.value)


def test_the_table_is_printed():
    done = subprocess.run([sys.executable, "-m", "kernels.backends"], capture_output=True, text=True, check=True)
    rows = [line.split()[:2] for line in done.stdout.splitlines()[1:]]
    names = [row.name for row in backends.ATTENTION]
    assert [name for kind, name in rows if kind == "attention"] == names
    assert names == ["triton", "flash_attn", "xformers", "flex", "cpu", "sdpa", "reference"]
