"""The training step's forward and backward as one graph of torch.compile, around the kernels' custom ops."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kernels.backends import Resolved
from recipe.errors import UserError, one_line


def compiled_step(model: nn.Module, one_shape: bool, mode: str | None = None) -> Callable[[dict], dict[str, Tensor]]:
    """The model's `forward`, compiled. What cannot be in one graph is an error, and so are more graphs than torch allows:
    nothing ever runs uncompiled unsaid.

    Args:
        one_shape: batches have one shape, which the graph is made for; a last, shorter microbatch gets a graph of its own. Else
            sizes and `max_seqlen` are variables of one graph. A few more are made where such batches come: for none or a single
            prediction, for more than 4,096 tokens (a CPU sums these otherwise), for a single sequence that is padded or
            has rotary positions, and with attention=sdpa for sequences that are all equally long.
        mode: torch.compile's. CUDA graphs ("reduce-overhead") are for who calls this once a step: the next call overwrites
            their outputs, and a step of the trainer may make several.
    """
    torch._dynamo.reset()  # graphs are counted by source line, not by model, and a process may make many runs
    step = torch.compile(model.forward, fullgraph=True, dynamic=not one_shape, mode=mode)

    def on_tensors(batch: dict) -> dict[str, Tensor]:
        # of a view, as a microbatch is, torch also compares the tensor behind it, and would make a graph more
        tensors = {name: x.clone() if x._is_view() else x for name, x in batch.items() if isinstance(x, Tensor)}
        return step({**tensors, **{name: x for name, x in batch.items() if isinstance(x, int)}})

    return on_tensors


def check_compiles(attention: Resolved, device: str) -> None:
    """Whether the step can be compiled here, with this attention: something small is, for there is no other way to know.

    Raises:
        UserError: the attention cannot be compiled, or this machine has no compiler that works.
    """
    if not attention.fact("attention", "compiles"):
        raise UserError(
            f"model.compile=true: attention={attention.name} cannot be compiled; set model.attention=auto, or leave "
            "model.compile out"
        )
    try:
        torch.compile(_twice, fullgraph=True)(torch.ones(2, device=device))
    except Exception as error:  # of torch, of a compiler, or of the folder in which it keeps what it made
        raise UserError(
            f"model.compile=true: torch.compile does not work here ({one_line(error)}); install a C++ "
            "compiler (g++) and Python's headers, or leave model.compile out"
        ) from None


def _twice(x: Tensor) -> Tensor:
    return 2 * x
