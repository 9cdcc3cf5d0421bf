"""Who reads from the device."""

from __future__ import annotations

import traceback

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Reads(TorchDispatchMode):
    """Who made torch hand a tensor's value to Python: the nearest file of ours or Composer's, and the functions above."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[tuple[str, set[str]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            frames = traceback.extract_stack()[:-1]
            file = next(
                f.filename for f in reversed(frames) if "/torch/" not in f.filename and "contextlib" not in f.filename
            )
            self.readers.append((file, {frame.name for frame in frames}))
        return func(*args, **(kwargs or {}))

    def around(self) -> list[str]:
        """Who stands around the step, after the first read: its own operations are not looked at, nor who counts a batch while
        it is on the host."""
        return [
            file
            for file, functions in self.readers[1:]
            if "/composer/" in file
            or "recipe/training/" in file
            or file.endswith(("recipe/train.py", "recipe/finetune/fit.py"))
            or (
                ("recipe/data/" in file or "recipe/finetune/" in file)
                and functions & {"_train_microbatch", "after_loss"}
            )
        ]
