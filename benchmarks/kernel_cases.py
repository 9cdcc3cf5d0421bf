"""What the kernels are measured on, and against whom.

A case makes a problem: the tensors whose gradients are wanted, what else a function takes, and the work that the mathematics
asks for (operations, or bytes that must move at least once). An implementation is a function of a problem.

Lengths: C4's documents as a log-normal distribution. Its mean, 427 tokens, is 156 billion tokens in 365 million documents
(Dodge et al., arXiv 2104.08758, table 1; counted by that paper's tokenizer, not by WordPiece). Its sigma, 1.0, is an assumption
of this file and was not fitted to C4. A document is cut at the sequence length, as the recipe cuts it. "full" cases have every
sequence at that length.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from kernels.backends import ATTENTION, Requirements
from kernels.checks import interpreting

C4_MEAN_TOKENS, C4_SIGMA, SEED = 427.0, 1.0, 17
LENGTH_MODEL = (
    f"log-normal, mean {C4_MEAN_TOKENS:.0f} tokens (arXiv 2104.08758: 156 G tokens, 365 M documents), sigma {C4_SIGMA} (assumed, "
    f"not fitted), cut at the sequence length, seed {SEED}"
)
TOKENS, CHECK_TOKENS = {"cuda": 65_536, "cpu": 4_096}, 300
COMPILED = "torch.compile"
OF_BASE = ("attention", "glu", "layer_norm", "cross_entropy", "padding")  # what MosaicBERT-Base runs
MASKED_SHARE, VOCABULARY = 0.3, 30_528


@dataclass(frozen=True)
class Problem:
    leaves: dict[str, Tensor]  # gradients are taken of these
    rest: dict[str, Any]
    forward_work: float  # operations or bytes of the forward
    total_work: float  # of forward and backward

    def to(self, dtype: torch.dtype) -> Problem:
        leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in self.leaves.items()}
        return replace(self, leaves=leaves)


Implementation = Callable[[Problem], Tensor | tuple[Tensor, ...]]


def ours(device: str) -> str:
    """The name of this project's own backend there: Triton's kernels, in the interpreter too, or a CPU's loops."""
    return "triton" if device == "cuda" or interpreting() else "cpu"


@dataclass(frozen=True)
class Case:
    kernel: str
    name: str
    unit: str  # TFLOP/s | GB/s
    problem: Callable[[str, int], Problem]  # of a device and a number of tokens
    implementations: Callable[[Problem], dict[str, Implementation | str]]  # a string says why there is none


def c4_lengths(tokens: int, longest: int) -> list[int]:
    """Lengths of documents cut at `longest`, the last one cut so that they make up `tokens`."""
    draw = np.random.default_rng(SEED)
    mu = math.log(C4_MEAN_TOKENS) - C4_SIGMA**2 / 2
    lengths: list[int] = []
    while tokens > 0:
        lengths.append(min(tokens, longest, max(3, round(draw.lognormal(mu, C4_SIGMA)))))
        tokens -= lengths[-1]
    return lengths


def randn(*shape: int, device: str, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(*shape, device=device) * scale).to(dtype).requires_grad_()


# Attention: (T, N, H) of a packed projection.


def attention_problem(
    device: str, tokens: int, longest: int, full: bool, heads: int, size: int, window: int | None = None
) -> Problem:
    """With a window, local attention as ModernBERT's: without ALiBi."""
    lengths = [longest] * max(1, tokens // longest) if full else c4_lengths(tokens, longest)
    bounds = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device)
    leaves = {name: randn(sum(lengths), heads, size, device=device) for name in "qkv"}
    slopes = kernels.alibi_slopes(heads).to(device) if window is None else None
    rest = {"cu_seqlens": bounds, "max_seqlen": max(lengths), "slopes": slopes, "window": window}
    work = 4.0 * sum(pairs(length, window) for length in lengths) * heads * size
    return Problem(leaves, rest, work, 3.5 * work)


def pairs(length: int, window: int | None) -> int:
    """How many tokens see how many of a sequence."""
    hidden = 0 if window is None else max(0, length - 1 - window)  # by the first token
    return length**2 - hidden * (hidden + 1)


def run_attention(problem: Problem, backend: str, alibi: bool = True) -> Tensor:
    rest = problem.rest if alibi else {**problem.rest, "slopes": None}
    return kernels.attention(**problem.leaves, **rest, backend=backend)


def eager_attention(problem: Problem) -> Tensor:
    """As a paper would write it: padded, with the bias and the weights of every pair in memory."""
    q, k, v = problem.leaves.values()
    bounds, length = problem.rest["cu_seqlens"].long(), problem.rest["max_seqlen"]
    position = torch.arange(length, device=q.device)
    real = position < bounds.diff()[:, None]  # (S, L)
    rows = (bounds[:-1, None] + position).clamp(max=len(q) - 1)  # (S, L)
    q, k, v = (x[rows].transpose(1, 2) for x in (q, k, v))  # (S, N, L, H)
    slopes, window = problem.rest["slopes"], problem.rest["window"]
    distance = (position[:, None] - position).abs()
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if slopes is not None:
        scores = scores - (slopes[:, None, None] * distance).to(q.dtype)
    hidden = ~real[:, None, None] if window is None else ~real[:, None, None] | (distance > window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return (weights @ v).transpose(1, 2)[real]


def attention_implementations(problem: Problem) -> dict[str, Implementation | str]:
    q = problem.leaves["q"]
    own = ours(q.device.type)
    alibi = problem.rest["slopes"] is not None
    needs = Requirements(q.device.type, q.dtype, q.shape[-1], alibi=alibi)
    found: dict[str, Implementation | str] = {}
    for row in ATTENTION:
        found[row.name] = row.refusal(needs) or partial(run_attention, backend=row.name)
        plain = f"{row.name}, no ALiBi"
        if not alibi:
            continue
        if row.name == own or (row.refusal(needs) and not row.refusal(replace(needs, alibi=False))):
            found[plain] = partial(run_attention, backend=row.name, alibi=False)
    if alibi and isinstance(found[own], str):
        del found[f"{own}, no ALiBi"]
    return {**found, "eager": eager_attention, COMPILED: torch.compile(eager_attention, dynamic=False)}


# The gated linear unit: (T, 2 F).


def glu_problem(device: str, tokens: int, columns: int, dropout_p: float) -> Problem:
    row = 2.0 * columns * tokens  # bytes of (T, F) in 16 bits
    leaves = {"x": randn(tokens, 2 * columns, device=device)}
    return Problem(leaves, {"dropout_p": dropout_p}, 3 * row, 8 * row)


def eager_glu(problem: Problem) -> Tensor:
    a, b = problem.leaves["x"].chunk(2, -1)
    return F.dropout(F.gelu(a) * b, problem.rest["dropout_p"])


def run_glu(problem: Problem, backend: str) -> Tensor:
    return kernels.glu(problem.leaves["x"], "gelu", problem.rest["dropout_p"], backend=backend)


def glu_implementations(problem: Problem) -> dict[str, Implementation | str]:
    """Liger has no GELU of the exact kind, so it does not stand here."""
    return _common(problem, run_glu, eager_glu)


# LayerNorm: (T, D), with residual.


def norm_problem(device: str, tokens: int, columns: int, dropout_p: float, readers: int = 1) -> Problem:
    row = 2.0 * columns * tokens
    leaves = {name: randn(tokens, columns, device=device) for name in ("x", "residual")}
    full = torch.float32
    leaves["weight"] = (torch.rand(columns, device=device) + 0.5).requires_grad_()
    leaves["bias"] = randn(columns, device=device, dtype=full)
    # forward: x, residual, out; backward: a dout per reader, x, residual, dx, and the residual's own gradient where x had dropout
    return Problem(leaves, {"dropout_p": dropout_p}, 3 * row, (6 + readers + (dropout_p > 0)) * row)


def eager_layer_norm(problem: Problem) -> Tensor:
    x, residual, weight, bias = problem.leaves.values()
    total = F.dropout(x, problem.rest["dropout_p"]) + residual
    return F.layer_norm(total, total.shape[-1:], weight.to(total.dtype), bias.to(total.dtype), 1e-12)


def run_layer_norm(problem: Problem, backend: str) -> Tensor:
    x, residual, weight, bias = problem.leaves.values()
    return kernels.layer_norm(x, weight, bias, 1e-12, residual, problem.rest["dropout_p"], backend=backend)


def liger_layer_norm(problem: Problem) -> Tensor:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    x, residual, weight, bias = problem.leaves.values()
    total = F.dropout(x, problem.rest["dropout_p"]) + residual
    return LigerLayerNormFunction.apply(total, weight.to(total.dtype), bias.to(total.dtype), 1e-12)


def norm_implementations(problem: Problem) -> dict[str, Implementation | str]:
    return {**_common(problem, run_layer_norm, eager_layer_norm), "liger": _liger(liger_layer_norm)}


def eager_norm_twice(problem: Problem) -> tuple[Tensor, Tensor]:
    out = eager_layer_norm(problem)
    return out, out


def run_norm_twice(problem: Problem, backend: str) -> tuple[Tensor, Tensor]:
    x, residual, weight, bias = problem.leaves.values()
    return kernels.layer_norm_twice(x, weight, bias, 1e-12, residual, problem.rest["dropout_p"], backend=backend)


# The sum and its LayerNorm, as a pre-norm block wants them: (T, D) each, no bias.


def prenorm_problem(device: str, tokens: int, columns: int) -> Problem:
    row = 2.0 * columns * tokens
    leaves = {name: randn(tokens, columns, device=device) for name in ("x", "residual")}
    leaves["weight"] = (torch.rand(columns, device=device) + 0.5).requires_grad_()
    # forward: x, residual, both outputs; backward: their gradients, the sum, and the one gradient of x and residual
    return Problem(leaves, {}, 4 * row, 8 * row)


def eager_prenorm(problem: Problem) -> tuple[Tensor, Tensor]:
    x, residual, weight = problem.leaves.values()
    total = x + residual
    return total, F.layer_norm(total, total.shape[-1:], weight.to(total.dtype), None, 1e-5)


def run_prenorm(problem: Problem, backend: str) -> tuple[Tensor, Tensor]:
    return kernels.add_layer_norm(*problem.leaves.values(), None, 1e-5, backend=backend)


# Rows of a stream by their numbers, as of predicted tokens: of (T, D).


def rows_problem(device: str, tokens: int, columns: int) -> Problem:
    taken = max(1, int(tokens * MASKED_SHARE))
    rows = torch.randperm(tokens, device=device)[:taken].sort().values
    row, leaves = 2.0 * columns, {"x": randn(tokens, columns, device=device)}
    # each way those rows are read; the forward writes as many, the backward all
    return Problem(leaves, {"rows": rows}, 2 * taken * row, (3 * taken + tokens) * row)


def eager_rows(problem: Problem) -> Tensor:
    return problem.leaves["x"][problem.rest["rows"]]


def run_rows(problem: Problem, backend: str) -> Tensor:
    return kernels.take_rows(problem.leaves["x"], problem.rest["rows"], backend=backend)


# Rotary embedding: (T, 3, N, H) of a projection, by a table that a batch makes once.


def rotary_problem(device: str, tokens: int, heads: int, size: int) -> Problem:
    bounds = torch.tensor([0, *np.cumsum(c4_lengths(tokens, 8192))], dtype=torch.int32, device=device)
    table = kernels.rotary_table(bounds, tokens, size, 160_000.0)
    leaves = {"qkv": randn(tokens, 3, heads, size, device=device)}
    work = 2 * 2.0 * tokens * 3 * heads * size + 4.0 * table.numel()
    return Problem(leaves, {"table": table}, work, 2 * work)


def eager_rotary(problem: Problem) -> Tensor:
    """As Hugging Face writes it, with q and k put beside v again."""
    qkv = problem.leaves["qkv"]
    cos, sin = torch.cat([problem.rest["table"]] * 2, -1).to(qkv.dtype)[:, :, None, None]
    a, b = qkv[:, :2].chunk(2, -1)
    return torch.cat([qkv[:, :2] * cos + torch.cat([-b, a], -1) * sin, qkv[:, 2:]], 1)


def run_rotary(problem: Problem, backend: str) -> Tensor:
    return kernels.rotary(problem.leaves["qkv"], problem.rest["table"], backend)


# The masked-language-model loss: (M, D) against (V, D).


def loss_problem(device: str, tokens: int, columns: int, vocabulary: int) -> Problem:
    rows = max(1, int(tokens * MASKED_SHARE))
    leaves = {"hidden": randn(rows, columns, device=device)}
    leaves["weight"] = randn(vocabulary, columns, device=device, scale=0.05, dtype=torch.float32)
    leaves["bias"] = randn(vocabulary, device=device, scale=0.05, dtype=torch.float32)
    labels = torch.randint(vocabulary, (rows,), device=device)
    work = 2.0 * rows * columns * vocabulary
    return Problem(leaves, {"labels": labels}, work, 3 * work)


def eager_loss(problem: Problem) -> Tensor:
    hidden, weight, bias = problem.leaves.values()
    logits = F.linear(hidden, weight.to(hidden.dtype), bias.to(hidden.dtype))
    return F.cross_entropy(logits.float(), problem.rest["labels"])


def run_loss(problem: Problem, backend: str) -> Tensor:
    return kernels.masked_cross_entropy(*problem.leaves.values(), problem.rest["labels"], backend=backend)[0]


def liger_loss(problem: Problem) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    hidden, weight, bias = problem.leaves.values()
    low = hidden.dtype
    return LigerFusedLinearCrossEntropyLoss()(weight.to(low), hidden, problem.rest["labels"], bias.to(low))


def loss_implementations(problem: Problem) -> dict[str, Implementation | str]:
    return {**_common(problem, run_loss, eager_loss), "liger": _liger(liger_loss)}


# Padding: a padded batch (S, L, D) to a stream and back.


def padding_problem(device: str, tokens: int, longest: int, columns: int) -> Problem:
    lengths = torch.tensor(c4_lengths(tokens, longest), device=device)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]
    leaves = {"x": randn(*mask.shape, columns, device=device)}
    stream, batch = 2.0 * columns * tokens, 2.0 * columns * mask.numel()
    # each way the stream is read and written; the batch is written by pad and by unpad's backward, and its real rows are read
    return Problem(leaves, {"mask": mask}, 3 * stream + batch, 6 * stream + 2 * batch)


def eager_padding(problem: Problem) -> Tensor:
    x, mask = problem.leaves["x"], problem.rest["mask"]
    out = torch.zeros_like(x)
    out[mask] = x[mask]
    return out


def run_padding(problem: Problem, backend: str) -> Tensor:
    x, mask = problem.leaves["x"], problem.rest["mask"]
    stream, indices, _, _ = kernels.unpad(x, mask, backend=backend)
    return kernels.pad(stream, indices, *mask.shape, backend=backend)


def padding_implementations(problem: Problem) -> dict[str, Implementation | str]:
    own = ours(problem.leaves["x"].device.type)
    return {name: partial(run_padding, backend=name) for name in (own, "reference")} | {"eager": eager_padding}


def _common(problem: Problem, run: Callable, eager: Implementation) -> dict[str, Implementation | str]:
    """Ours, and torch's own operations as they are and compiled."""
    own = ours(next(iter(problem.leaves.values())).device.type)
    return {own: partial(run, backend=own), "eager": eager, COMPILED: torch.compile(eager, dynamic=False)}


def _liger(function: Implementation) -> Implementation | str:
    return function if importlib.util.find_spec("liger_kernel") else "liger_kernel is not installed"


def exact(case: Case, problem: Problem, name: str) -> Tensor | tuple[Tensor, ...]:
    """What the reference says that implementation `name` should."""
    if case.kernel == "attention":
        return run_attention(problem, "reference", alibi="no ALiBi" not in name)
    runs = {"glu": run_glu, "layer_norm": run_layer_norm, "cross_entropy": run_loss, "padding": run_padding}
    runs |= {"layer_norm_twice": run_norm_twice, "add_layer_norm": run_prenorm}
    runs |= {"rotary": run_rotary, "take_rows": run_rows}
    return runs[case.kernel](problem, "reference")


def _attention_problem(
    device: str, tokens: int, longest: int, full: bool, heads: int, size: int, window: int | None
) -> Problem:
    if tokens >= min(TOKENS.values()):
        return attention_problem(device, tokens, longest, full, heads, size, window)
    return attention_problem(device, longest + tokens, longest, full, 3, size, window)  # to be checked, in float64


def _attention(length: int, full: bool, heads: int, size: int, window: int | None = None) -> Case:
    problem = partial(_attention_problem, longest=length, full=full, heads=heads, size=size, window=window)
    kind = "full" if full else "C4-like"
    name = f"{length}, {kind if window is None else f'{kind}, local {2 * window}'}, {heads} x {size}"
    return Case("attention", name, "TFLOP/s", problem, attention_implementations)


def all_cases(device: str = "cuda", small: bool = False) -> list[Case]:
    """In order of worth, so that a run that is short of time has measured what matters. `small`: narrow ones, for a rehearsal."""
    lengths = (128, 512, 1024, 8192) if device == "cuda" else (128, 512, 1024)
    lengths, narrow = ((128,), 12) if small else (lengths, 1)
    vocabulary = VOCABULARY // narrow
    cases = [_attention(length, False, 12, 64) for length in lengths]
    for columns, dropout_p in ((3072 // narrow, 0.1), (4096 // narrow, 0.0)):
        make = partial(glu_problem, columns=columns, dropout_p=dropout_p)
        cases.append(Case("glu", f"F {columns}, dropout {dropout_p}", "GB/s", make, glu_implementations))
    for columns, dropout_p in ((768 // narrow, 0.1), (768 // narrow, 0.0), (1024 // narrow, 0.0)):
        make = partial(norm_problem, columns=columns, dropout_p=dropout_p)
        cases.append(Case("layer_norm", f"D {columns}, dropout {dropout_p}", "GB/s", make, norm_implementations))
    for columns in (768 // narrow, 1024 // narrow):
        make = partial(loss_problem, columns=columns, vocabulary=vocabulary)
        cases.append(Case("cross_entropy", f"V {vocabulary}, D {columns}", "TFLOP/s", make, loss_implementations))
    columns = 768 // narrow
    make = partial(padding_problem, longest=512, columns=columns)
    cases.append(Case("padding", f"512, C4-like, D {columns}", "GB/s", make, padding_implementations))
    two_readers = partial(norm_problem, columns=columns, dropout_p=0.1, readers=2)
    prenorm, taken = partial(prenorm_problem, columns=columns), partial(rows_problem, columns=columns)
    turned = partial(rotary_problem, heads=12 // narrow, size=64)
    for kernel, name, make, run, eager in (
        ("layer_norm_twice", f"D {columns}, dropout 0.1", two_readers, run_norm_twice, eager_norm_twice),
        ("add_layer_norm", f"D {columns}, no bias", prenorm, run_prenorm, eager_prenorm),
        ("rotary", f"{12 // narrow} x 64", turned, run_rotary, eager_rotary),
        ("take_rows", f"{MASKED_SHARE:.0%} of rows, D {columns}", taken, run_rows, eager_rows),
    ):
        cases.append(Case(kernel, name, "GB/s", make, partial(_common, run=run, eager=eager)))
    cases += [_attention(length, True, 12, 64, 64) for length in lengths if length >= 1024]
    cases += [_attention(length, True, 12, 64) for length in lengths]
    return cases


def base_cases(cases: list[Case]) -> list[Case]:
    """The first of each kernel that MosaicBERT-Base has: its shape there, at 128 tokens."""
    first: dict[str, Case] = {}
    for case in cases:
        if case.kernel in OF_BASE:
            first.setdefault(case.kernel, case)
    return list(first.values())
