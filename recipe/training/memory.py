"""The memory that pretraining needs, found by doing one step on tensors that have shapes but no storage, and the microbatch
that follows from it.

The step is the model's own code, so there is no formula to keep true. Fused kernels are traced as those of a CPU, which keep the
same tensors for the backward pass and need no device to be traced on. What a kernel needs only while it runs, at most a chunk of
logits, is left to the margin.
"""

from __future__ import annotations

import math
import re
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import backends
from recipe.config import Average, TrainConfig
from recipe.errors import UserError
from recipe.model.architecture import Architecture
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.objectives.objective import Objective
from recipe.training.optimizers import OPTIMIZERS
from recipe.training.parallel import PARALLEL

GIB = 2**30
FEW, MANY = 4, 1024  # sequences of the steps that are traced, and twice as many
# What an automatic microbatch leaves free: libraries' workspaces and what the allocator cannot use; on a CPU it is more, and the
# system needs some.
MARGIN = {"gpu": 0.10, "cpu": 0.30}
CPU_TOKENS = 4096  # of an automatic microbatch on a CPU: more gains little there (benchmarks/results/trainer.json)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations made and that still live, the most there were at once, and the largest
    of them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.largest = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            # A sparse one is made of tensors that were counted.
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        self._alive.add(key)
        self.now += storage.nbytes()
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, storage.nbytes())
        weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def traced(attention: str = "auto", kernels: str = "auto") -> Backends:
    """What is traced for the backends of these names. The reference's attention looks at lengths, which do not exist here."""
    return Backends(
        backends.Resolved("sdpa" if attention in ("sdpa", "reference") else "cpu", "traced"),
        backends.Resolved("reference" if kernels == "reference" else "cpu", "traced"),
    )


@dataclass(frozen=True)
class Need:
    """Bytes on one device, the larger of two lines: the dearest moment of a step of few sequences is another than that of many,
    which is where all activations are there."""

    fixed: int  # weights, gradients, moments
    a_sequence: float  # of a microbatch
    many: tuple[int, float] | None = None  # the same two for many sequences

    @property
    def _lines(self) -> list[tuple[int, float]]:
        return [(self.fixed, self.a_sequence), *([self.many] if self.many else [])]

    def of(self, sequences: int) -> float:
        return max(fixed + sequences * slope for fixed, slope in self._lines)

    def most_sequences(self, capacity: float) -> int:
        """How many sequences a microbatch may have in `capacity` bytes; 0: not even one fits."""
        return max(0, min(int((capacity - fixed) / slope) for fixed, slope in self._lines if slope > 0))


def training_need(
    learns: Objective,
    kind: Architecture,
    bytes_beside: float,
    sizes: EncoderConfig,
    sequence_length: int,
    mask_rate: float,
    autocast: torch.dtype | None,
    chosen: Backends | None = None,
    accumulates: bool = False,
) -> Need:
    """What pretraining on full sequences needs; nothing is allocated to find it.

    Args:
        bytes_beside: as the function of that name gives them.
        autocast: dtype of the activations, None for float32.
        chosen: as `traced` gives them; absent: fused ones.
        accumulates: whether a batch takes several microbatches, so that all gradients are there beside all activations.
    """
    passes = 2 if accumulates else 1
    lines = []
    for count in FEW, MANY:
        step = (sequence_length, mask_rate, autocast, passes, chosen or traced())
        peaks = [_step_peak(learns, kind, sizes, n, *step) for n in (count, 2 * count)]
        (low, parameters), (high, _) = peaks
        lines.append((2 * low - high + round(parameters * bytes_beside), (high - low) / count))
    return Need(*lines[0], many=lines[1])


def outline(learns: Objective, kind: Architecture, sizes: EncoderConfig, sequence_length: int) -> nn.Module:
    """All networks of a run, with parameters that have names and shapes but no storage.

    Raises:
        UserError: these networks cannot learn it.
    """
    if problem := learns.problem(kind, sizes):
        raise UserError(problem)
    with FakeTensorMode():
        return learns.model(kind, sizes, sequence_length, traced())


def bytes_beside(config: TrainConfig, learns: Objective, kind: Architecture, sizes: EncoderConfig, ranks: int) -> float:
    """What a rank holds for a parameter, the mean over a run's, beside what a step on one device makes.

    Raises:
        UserError: the optimizer cannot train these networks, or `outline`'s.
    """
    model, optimizer = outline(learns, kind, sizes, config.data.sequence_length), OPTIMIZERS[config.optimizer.name]
    if problem := optimizer.problem(model):
        raise UserError(problem)
    state_bytes = optimizer.state_bytes(model) + average_bytes(config.average)
    return PARALLEL[config.parallel].bytes_beside(model, state_bytes, ranks)


def average_bytes(settings: Average) -> int:
    """For a parameter, of the mean of the last weights: a float32 copy."""
    return 4 if settings.steps else 0


def need_of_batch(*of_step: Any, in_pieces: Callable[[Need], bool]) -> Need:
    """`training_need` of these arguments; where by `in_pieces` a batch then takes several microbatches, that of several."""
    need = training_need(*of_step)
    return training_need(*of_step, accumulates=True) if in_pieces(need) else need


@dataclass(frozen=True)
class Microbatch:
    """How many sequences a rank takes at a time, in training and in evaluation, and why."""

    size: int
    why: str
    need: float | None = None  # bytes of one device; None where the system does not say what there is
    capacity: float | None = None  # bytes that were free


def choose_microbatch(
    need: Need, share: int, wanted: int, capacity: float, kind: str, where: str, *, multiple: int = 1, most: int = 0
) -> Microbatch:
    """The microbatch that was asked for, or the largest that fits with a margin.

    An automatic one divides the rank's share of the batch evenly: as many microbatches as there must be, none of them small.

    Args:
        share: sequences of a batch that one rank has.
        wanted: 0 for an automatic one.
        capacity: bytes free on the device.
        kind: gpu or cpu.
        multiple: the microbatch must be one of it; `share` is.
        most: sequences that an automatic one has at most for the sake of speed; 0: as many as fit.

    Raises:
        UserError: what was asked for does not fit, or nothing does.
    """
    if wanted:
        size = min(wanted, share)
        check_fits(need, size, capacity, where)
        return Microbatch(size, "as set" if size == wanted else "all of the batch", need.of(size), capacity)
    margin = MARGIN[kind]
    fitting = need.most_sequences((1 - margin) * capacity) // multiple * multiple
    if not fitting:
        check_fits(need, multiple, (1 - margin) * capacity, where)
    size = even_part(share, min(fitting, max(most, multiple)) if most else fitting, multiple)
    why = f"the largest even part of {share} that leaves {margin:.0%} free"
    if size == share:
        why = "all of the batch"
    elif most and size <= most < fitting:
        why = f"an even part of {share}; more gains little on a CPU"
    return Microbatch(size, f"automatic: {why}", need.of(size), capacity)


def even_part(share: int, most: int, multiple: int = 1) -> int:
    """`share` in as few pieces of at most `most` as there can be, which differ as little as they can: the largest piece."""
    units, room = share // multiple, max(most // multiple, 1)
    return multiple * math.ceil(units / math.ceil(units / room))


def check_fits(need: Need, microbatch: int, capacity: float, where: str) -> None:
    """Refuse a run that cannot fit.

    Raises:
        UserError: with the microbatch that would fit.
    """
    if need.of(microbatch) <= capacity:
        return
    most = need.most_sequences(capacity)
    remedy = f"set microbatch_size={most} or less" if most else "choose a smaller model or shorter sequences"
    raise UserError(
        f"microbatch_size={microbatch} needs {need.of(microbatch) / GIB:.1f} GiB for weights, moments and activations, and "
        f"{where} has {capacity / GIB:.1f} GiB; {remedy}"
    )


def capacity_here(kind: str, ranks: int) -> float | None:
    """Bytes that one rank can have on this machine now; None where the system does not say.

    Of a GPU what is free on the current device; of a CPU what the machine and this process's control group leave, shared by
    the ranks.
    """
    if kind == "gpu":
        return float(torch.cuda.mem_get_info()[0])
    info = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", info.read_text()) if info.is_file() else None
    free = [int(found[1]) * 1024] if found else []
    free += [limit - used for limit, used in _group_limits(Path("/sys/fs/cgroup"))]
    return max(min(free), 0) / ranks if free else None


def _group_limits(root: Path) -> list[tuple[int, int]]:
    """(limit, used) in bytes where a container is limited, by either version of control groups."""
    pairs = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    texts = [[(root / name).read_text().strip() for name in pair] for pair in pairs if (root / pair[0]).is_file()]
    return [(int(limit), int(used)) for limit, used in texts if limit.isdigit() and used.isdigit()]


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on the CPU."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def explain(error: BaseException, microbatch: Microbatch, where: str) -> str:
    """An allocation that failed in the middle of a run, in one line with the remedy."""
    tried = re.search(r"[Tt]r(?:ied|ying) to allocate ([\d.]+ ?\w+)", str(error))
    asked = f" ({tried[1]} more were asked for)" if tried else ""
    counted = f", which was counted to need {microbatch.need / GIB:.1f} GiB" if microbatch.need else ""
    there = f" of {microbatch.capacity / GIB:.1f} GiB free at the start" if microbatch.capacity else ""
    smaller = max(microbatch.size // 2, 1)
    remedy = f"set microbatch_size={smaller}" if microbatch.size > 1 else "choose a smaller model or shorter sequences"
    return (
        f"out of memory on {where}{asked} with microbatch_size={microbatch.size}{counted}{there}; {remedy}, and continue from "
        "the last checkpoint with autoresume=true"
    )


def _step_peak(
    learns: Objective,
    kind: Architecture,
    sizes: EncoderConfig,
    sequences: int,
    length: int,
    mask_rate: float,
    autocast: torch.dtype | None,
    passes: int,
    chosen: Backends,
) -> tuple[int, int]:
    """(most bytes alive, number of parameters) of forward and backward passes whose gradients add up."""
    with FakeTensorMode(), LiveBytes() as live:
        model = learns.model(kind, sizes, length, chosen)
        batch = kind.largest_batch(sequences, length, mask_rate)
        for _ in range(passes):
            with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
                loss = model(batch)["loss"]
            loss.backward()
            del loss
        return live.peak, sum(p.numel() for p in model.parameters())
