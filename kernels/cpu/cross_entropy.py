"""The masked-language-model loss on a CPU: chunks of logits, their gradients made in the same pass and in the same memory.

Shapes: M masked tokens, D hidden size, V vocabulary; R rows of a chunk.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from kernels.cpu.build import TYPES, run
from kernels.reference import IGNORED_LABEL


def forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    z_loss: float,
    label_smoothing: float,
    chunk_rows: int,
    with_gradients: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums of loss and of right predictions (2,), how many labels count, and the gradients of the summed loss.

    The first has hidden's dtype, those of weight and bias are float32; all are empty where none are wanted.
    """
    rows, name = hidden.shape[0], TYPES[hidden.dtype]
    decoder, offset = weight.to(hidden.dtype), bias.float()
    dhidden = torch.empty((rows if with_gradients else 0, hidden.shape[1]), dtype=hidden.dtype)
    dweight = torch.empty(weight.shape if with_gradients else (0, weight.shape[1]))
    of_threads = torch.zeros((torch.get_num_threads(), weight.shape[0])) if with_gradients else None
    sums = torch.zeros((rows, 2))
    chunks = -(-rows // chunk_rows)
    bounds = [rows * i // max(chunks, 1) for i in range(chunks + 1)]  # all but equal: a small one's products are slow
    # Products are told where to write: by autocast they would be in another type.
    buffer = torch.empty((min(rows, chunk_rows), weight.shape[0]), dtype=hidden.dtype)
    product = torch.empty(dweight.shape, dtype=hidden.dtype)
    for start, end in itertools.pairwise(bounds):
        chunk, logits = hidden[start:end], buffer[: end - start]
        torch.mm(chunk, decoder.T, out=logits)
        run(
            f"losses_{name}", logits, offset, labels[start:end], sums[start:end], of_threads, *logits.shape, IGNORED_LABEL,
            float(z_loss), float(label_smoothing),
        )  # fmt: skip
        if with_gradients:
            torch.mm(logits, decoder, out=dhidden[start:end])
            torch.mm(logits.T, chunk, out=product)
            run(f"accumulate_{name}", dweight, product, dweight.numel(), start > 0)
    if with_gradients and not chunks:
        dweight.zero_()
    dbias = torch.zeros(0) if of_threads is None else of_threads.sum(0)
    counted = (labels != IGNORED_LABEL).sum().clamp(min=1)
    return sums.sum(0), counted.float(), dhidden, dweight, dbias
