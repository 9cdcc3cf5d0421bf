"""The masked-language-model loss on a CPU: chunks of logits, their gradients made in the same pass and in the same memory.

Shapes: M masked tokens, D hidden size, V vocabulary; R rows of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.reference import IGNORED_LABEL

IN_CACHE = 2**20  # logits between whose operations nothing leaves the cores' caches


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
    rows, low = (hidden.shape[0], hidden.dtype) if with_gradients else (0, hidden.dtype)
    wide = torch.promote_types(low, torch.float32)
    decoder, offset = weight.to(low), bias.to(wide)
    dhidden = hidden.new_empty((rows, hidden.shape[1]))
    dweight, dbias = (x.new_zeros(x.shape if with_gradients else (0, *x.shape[1:]), dtype=wide) for x in (weight, bias))
    sums = torch.zeros(2, dtype=wide)
    chunks = -(-hidden.shape[0] // chunk_rows)
    for i in range(chunks):  # all but equal: a small one's products are slow
        chunk = slice(*(hidden.shape[0] * at // chunks for at in (i, i + 1)))
        logits = hidden[chunk] @ decoder.T
        sums += _losses(logits, offset, labels[chunk], z_loss, label_smoothing, dbias if with_gradients else None)
        if with_gradients:
            torch.mm(logits, decoder, out=dhidden[chunk])
            dweight += logits.T @ hidden[chunk]
    counted = (labels != IGNORED_LABEL).sum().clamp(min=1)
    return sums.float(), counted.float(), dhidden, dweight.float(), dbias.float()


def _losses(
    logits_RV: Tensor, bias_V: Tensor, labels_R: Tensor, z_loss: float, label_smoothing: float, dbias: Tensor | None
) -> Tensor:
    """(summed loss, right predictions) of logits without bias. With dbias, which is added to, they become their gradients."""
    vocabulary = logits_RV.shape[1]
    wide = torch.promote_types(logits_RV.dtype, torch.float32)
    present_R1, label_R1 = (labels_R != IGNORED_LABEL)[:, None].to(wide), labels_R[:, None].clamp(min=0)
    of_label_R1 = logits_RV.gather(1, label_R1).to(wide) + bias_V[label_R1]
    greatest_R1, total_R1, mean_R1 = (torch.zeros_like(of_label_R1) for _ in range(3))
    towards_R1 = present_R1 * (label_smoothing - 1)
    at_once = max(1, IN_CACHE // vocabulary)
    for start in range(0, len(labels_R), at_once):
        rows = slice(start, start + at_once)
        x = logits_RV[rows].to(wide, copy=True).add_(bias_V)
        if label_smoothing:
            mean_R1[rows] = x.mean(1, keepdim=True)
        x.sub_(torch.amax(x, 1, keepdim=True, out=greatest_R1[rows])).exp_()
        total = torch.sum(x, 1, keepdim=True, out=total_R1[rows])
        if dbias is not None:
            lse = greatest_R1[rows] + total.log()
            x.mul_(present_R1[rows] * (1 + 2 * z_loss * lse) / total)
            if label_smoothing:
                x.sub_(present_R1[rows] * (label_smoothing / vocabulary))
            x.scatter_add_(1, label_R1[rows], towards_R1[rows])
            dbias += x.sum(0)
            logits_RV[rows] = x
    lse_R1 = greatest_R1 + total_R1.log()
    loss_R1 = lse_R1 - (1 - label_smoothing) * of_label_R1 - label_smoothing * mean_R1 + z_loss * lse_R1.square()
    right_R1 = of_label_R1 == greatest_R1  # a tie for the greatest is right
    return torch.stack([(loss_R1 * present_R1).sum(), (right_R1 * present_R1).sum()])
