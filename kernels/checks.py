"""Checks that look at values, not only at shapes: on a GPU they would make the host wait, so there they are asked for.

On the CPU they are always made; on a GPU inside `with value_checks():`. A graph that is being compiled makes none, nor does a
tensor that has a shape but no storage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_asked_for = False


@contextmanager
def value_checks() -> Iterator[None]:
    """Check values on the GPU too, for as long as this lasts. Each check waits for the GPU."""
    global _asked_for
    before, _asked_for = _asked_for, True
    try:
        yield
    finally:
        _asked_for = before


def may_look_at(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or isinstance(x, FakeTensor):
        return False
    return _asked_for or x.device.type == "cpu"
