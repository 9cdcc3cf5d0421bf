"""The masked-language-model loss, from hidden states to a scalar, at the masked positions only."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import reference
from kernels.checks import check_backend, may_look_at

# Of logits: enough rows for full speed of the products, and little beside the activations.
CHUNK_BYTES = {"triton": 512 << 20, "cpu": 32 << 20}


def masked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    backend: str = "reference",
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the labels, and the share of them predicted right.

    Args:
        hidden: (M, D), the masked positions' hidden states.
        weight, bias: (V, D) and (V,), the decoder.
        labels: (M,) int64; -100 is left out.
        z_loss: weight of the mean of log(sum exp logits)^2, added to the loss (arXiv 2204.02311, section 5).
        label_smoothing: share of the target that is spread evenly over the vocabulary.
        backend: a name from `kernels.backends.resolve`.

    Returns:
        loss and accuracy, float32 scalars; both 0 where no label counts.

    Raises:
        ValueError: an argument does not fit, or the backend cannot run here. Labels outside the vocabulary are looked for on
            the CPU, and on a GPU inside `kernels.checks.value_checks`.
    """
    if hidden.dim() != 2 or labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels is {labels.dtype} {tuple(labels.shape)}, hidden has shape {tuple(hidden.shape)}; "
            "they must be int64 (M,) and (M, D)"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} must be (V, {hidden.shape[1]}) and (V,)"
        )
    if not 0.0 <= label_smoothing <= 1.0 or z_loss < 0.0:
        raise ValueError(
            f"label_smoothing={label_smoothing}, z_loss={z_loss}; the first must be in 0 to 1, the second not negative"
        )
    if backend != "reference":
        check_backend(backend, "hidden", hidden)
    if may_look_at(labels):
        _check_labels(labels, weight.shape[0])
    if backend == "reference":
        return reference.masked_cross_entropy(hidden, weight, bias, labels, z_loss, label_smoothing)
    return _chunked(hidden, weight, bias, labels, z_loss, label_smoothing, backend)


def _check_labels(labels: Tensor, vocabulary: int) -> None:
    outside = labels[(labels != reference.IGNORED_LABEL) & ((labels < 0) | (labels >= vocabulary))]
    if outside.numel():
        raise ValueError(
            f"labels holds {outside[0].item()}; it must be in 0 to {vocabulary - 1}, or {reference.IGNORED_LABEL}"
        )


def _chunked(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, z_loss: float, label_smoothing: float, backend: str
) -> tuple[Tensor, Tensor]:
    if not hidden.device == weight.device == bias.device == labels.device:
        devices = ", ".join(f"{n} on {x.device}" for n, x in (("weight", weight), ("bias", bias), ("labels", labels)))
        raise ValueError(f"{devices}; all must be where hidden is, on {hidden.device}")
    chunk_rows = max(1, CHUNK_BYTES[backend] // (weight.shape[0] * hidden.element_size()))
    if chunk_rows > 128:
        chunk_rows -= chunk_rows % 128
    with_gradients = torch.is_grad_enabled() and any(x.requires_grad for x in (hidden, weight, bias))
    sums, counted, *_ = torch.ops.bert_kernels.masked_cross_entropy(
        hidden, weight, bias.contiguous(), labels.contiguous(), z_loss, label_smoothing, chunk_rows, with_gradients, backend
    )  # fmt: skip
    loss, right = (sums / counted).unbind()
    return loss, right.detach()


@torch.library.custom_op("bert_kernels::masked_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    z_loss: float,
    label_smoothing: float,
    chunk_rows: int,
    with_gradients: bool,
    backend: str = "triton",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if backend == "cpu":
        from kernels.cpu import cross_entropy as launcher
    else:
        from kernels.triton import cross_entropy as launcher

    return launcher.forward(hidden, weight, bias, labels, z_loss, label_smoothing, chunk_rows, with_gradients)


@_forward.register_fake
def _(hidden, weight, bias, labels, z_loss, label_smoothing, chunk_rows, with_gradients, backend="triton"):
    numbers = (hidden.new_empty(size, dtype=torch.float32) for size in ((2,), ()))
    dhidden, dweight, dbias = (x if with_gradients else x[:0] for x in (hidden, weight, bias))
    low = torch.float32
    return (*numbers, dhidden.new_empty(dhidden.shape), *(x.new_empty(x.shape, dtype=low) for x in (dweight, dbias)))


def _save(ctx, inputs, output) -> None:
    _, weight, bias, *_ = inputs
    _, counted, dhidden, dweight, dbias = output
    ctx.types = (dhidden.dtype, weight.dtype, bias.dtype)
    ctx.set_materialize_grads(False)  # gradients of gradients are not made, not even as zeros of the weight's size
    ctx.mark_non_differentiable(counted, dhidden, dweight, dbias)
    ctx.save_for_backward(dhidden, dweight, dbias)


def _differentiate(ctx, dsums: Tensor | None, *_) -> tuple:
    """The forward's gradients times that of the summed loss: plain torch, which a compiler fuses with what follows."""
    if dsums is None:
        return (None,) * 9
    gradients = ((x.float() * dsums[0]).to(dtype) for x, dtype in zip(ctx.saved_tensors, ctx.types, strict=True))
    return (*gradients, None, None, None, None, None, None)


_forward.register_autograd(_differentiate, setup_context=_save)
