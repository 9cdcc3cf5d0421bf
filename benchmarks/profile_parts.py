"""Which part of a training step an event of torch's profiler belongs to, and the time of each part.

Ranges are put around the kernels' functions and around the head and the embeddings; the rest is told apart by the operations'
names. A backward operation belongs to the part of the forward operation whose sequence number its node has.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.profiler import record_function

import kernels

PARTS = ("matmuls", "attention", "norms", "GLU", "head", "embeddings", "casts", "optimizer", "communication",
         "loader wait", "Python and Composer", "other")  # fmt: skip
STEP = "training steps"  # the range around the measured ones
_RANGE = "part: "
_FUNCTIONS = {
    "attention": "attention",
    "rotary": "attention",
    "glu": "GLU",
    "layer_norm": "norms",
    "layer_norm_twice": "norms",
    "add_layer_norm": "norms",
    "masked_cross_entropy": "head",
}
_MODULES = {"head": "head", "cls": "head", "embeddings": "embeddings"}  # by the last word of a module's name
_NAMES = (
    (r"^Optimizer\.(step|zero_grad)|^## Optimizer", "optimizer"),
    (r"^enumerate\(DataLoader\)", "loader wait"),
    (r"c10d|nccl|gloo", "communication"),
    (r"cross_entropy|nll_loss|log_softmax", "head"),
    (r"scaled_dot_product|flash_attn|efficient_attention|bert_kernels::attention|bert_kernels::rotary", "attention"),
    (r"layer_norm|dropout", "norms"),
    (r"gelu|bert_kernels::glu", "GLU"),
    (r"linear|addmm|::mm$|::matmul", "matmuls"),
    (r"embedding", "embeddings"),
    (r"::_to_copy$|^autograd::engine::evaluate_function: ToCopy", "casts"),
)
_BACKWARD = "autograd::engine::evaluate_function"


@contextmanager
def ranges() -> Iterator[None]:
    """Put ranges around the kernels' public functions, which models look up at each call."""
    names = [name for name in kernels.__dict__ if callable(getattr(kernels, name)) and _function_part(name)]
    originals = {name: getattr(kernels, name) for name in names}
    for name, function in originals.items():
        setattr(kernels, name, _ranged(_function_part(name), function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(kernels, name, function)


def _function_part(name: str) -> str | None:
    return next((part for word, part in _FUNCTIONS.items() if name.startswith(word)), None)


def _ranged(part: str, function: Callable) -> Callable:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(_RANGE + part):
            return function(*args, **kwargs)

    return call


def hook_modules(model: torch.nn.Module) -> None:
    """Put ranges around the head and the embeddings."""
    for name, module in model.named_modules():
        part = _MODULES.get(name.rpartition(".")[2])
        if part:
            open_ranges: list[record_function] = []
            module.register_forward_pre_hook(functools.partial(_enter, part, open_ranges))
            module.register_forward_hook(functools.partial(_leave, open_ranges))


def _enter(part: str, open_ranges: list, *_: Any) -> None:
    open_ranges.append(record_function(_RANGE + part))
    open_ranges[-1].__enter__()


def _leave(open_ranges: list, *_: Any) -> None:
    open_ranges.pop().__exit__(None, None, None)


def part_times(events: Iterable[Any], on_gpu: bool) -> tuple[float, dict[str, float]]:
    """Microseconds of the step's range, and of each part in it; the parts add up to the whole.

    On a CPU an operation's time is that of the training thread in it and in no other; what is in no operation at all is Python.
    On a GPU it is that of its kernels, and the rest is the device's idle time, in which it waits for Python.
    """
    events = [event for event in events if event.device_type.name == "CPU"]
    step = next(event for event in events if event.name == STEP)
    inside = [e for e in events if step.time_range.start <= e.time_range.start < step.time_range.end and e is not step]
    owners = _owners(inside, step)
    times: dict[str, float] = defaultdict(float)
    for event in inside:
        if on_gpu:
            times[owners[event.id] or "other"] += sum(kernel.duration for kernel in event.kernels)
        elif event.thread == step.thread:
            times[owners[event.id] or "other"] += event.self_cpu_time_total
    whole = step.time_range.elapsed_us()
    times["Python and Composer"] += max(whole - sum(times.values()), 0.0)
    return whole, {part: times[part] for part in PARTS}


def _owners(events: list[Any], step: Any) -> dict[int, str | None]:
    """The part of each event, by its id."""
    owners: dict[int, str | None] = {}
    forward: dict[int, str | None] = {}  # by sequence number
    for event in sorted(events, key=lambda e: (e.time_range.start, -e.time_range.end)):  # parents before children
        parent = owners.get(event.cpu_parent.id) if event.cpu_parent is not None else None
        named = _by_name(event.name)
        if event.name.startswith(_BACKWARD):
            found = forward.get(event.sequence_nr)
            owner = "casts" if named == "casts" and found in (None, "matmuls") else found or named
        elif parent == "matmuls" and named == "casts":
            owner = "casts"
        else:
            owner = parent or named
        owners[event.id] = owner
        if event.sequence_nr >= 0 and event.thread == step.thread and not _is_backward(event):
            forward[event.sequence_nr] = owner  # the last to begin with a number is the one that made its node
    return owners


def _is_backward(event: Any) -> bool:
    return event.fwd_thread is not None and event.fwd_thread > 0


def _by_name(name: str) -> str | None:
    if name.startswith(_RANGE):
        return name.removeprefix(_RANGE)
    return next((part for pattern, part in _NAMES if re.search(pattern, name)), None)
