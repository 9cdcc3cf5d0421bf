"""Which attention kernels are compiled. Base has 12 heads of 64 and Large 16 of 64: heads and strides are arguments of the
kernels, so one case serves both."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import torch

from kernels.triton import attention_short
from tests.kernels.aot import CAPABILITIES, Case
from tests.kernels.budget import Work

# Tokens of a sequence: the mean of those that a length of 128 cuts off; and a long one's, and a window's reach to either side.
SHORT, LONG, REACH = 115, 512, 64
TASKS, PROCESSORS = 2048 * 12, 132  # (sequence, head) of a microbatch of Base, multiprocessors of an H200
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
STRIDES = [f"{x}_{axis}" for x in ("q", "k", "v", "out", "do", "dq", "dk", "dv") for axis in "tn"]


def signature(dtype: torch.dtype) -> dict[str, str]:
    tensors = dict.fromkeys(("q", "k", "v", "out", "dout", "dq", "dk", "dv"), TYPES[dtype])
    others = {"lse": "*fp32", "delta": "*fp32", "slopes": "*fp32", "cu_seqlens": "*i32", "scale": "fp32"}
    return {**tensors, **others, **dict.fromkeys(("heads", "tokens", "tasks", "window", "blocks", *STRIDES), "i32")}


def whole(length: int, head: int, slopes: bool = True) -> Case:
    """The short attention's backward that takes all queries at once, on sm_90: one program a multiprocessor, many tasks each."""

    def constants(_: int) -> dict:
        chosen = attention_short.whole_constants(length, head, slopes)
        return chosen if slopes else {**chosen, "slopes": None}

    def work(_: dict) -> Work:
        passes = TASKS // PROCESSORS
        return Work(passes * short_work("backward", head, {"BLOCK_M": length}).moved, (passes,))

    name = f"attention_short whole backward, {length} x {head}, bf16" + ("" if slopes else ", no slopes")
    return Case(
        name, "attention_short", "whole_backward_kernel", signature(torch.bfloat16), constants, dot=True,
        odd=("heads", "tokens", "tasks"), work=work, capabilities=(90,),
    )  # fmt: skip


def constants(module, kernel, arguments, slopes, capability):
    chosen = import_module(f"kernels.triton.{module}").constants(kernel, capability, *arguments)
    return chosen if slopes else {**chosen, "slopes": None}


def short_work(kernel: str, head: int, chosen: dict) -> Work:
    """One (sequence, head): q, k, v and out or, backwards, dout and the three gradients, with the logarithms of the sums."""
    tensors = 4 if kernel == "forward" else 7
    return Work(SHORT * (2 * tensors * head + 4), (-(-SHORT // chosen["BLOCK_M"]),))


def tiled_work(kernel: str, head: int, size: int, chosen: dict) -> Work:
    """A tile of one (sequence, head), with its share of what all tiles of it read."""
    kept, step = (chosen["BLOCK_M"], chosen["BLOCK_K"])[:: -1 if kernel == "dkdv" else 1]
    met = kept + 2 * REACH if chosen["HAS_WINDOW"] else LONG
    tensors, rows = (4, 1) if kernel == "forward" else (6, 2)  # rows: the sums' logarithms, and delta
    return Work(kept * (size * tensors * head + 4 * rows), (met / step,), products=True)


def case(
    module: str, kernel: str, length: int | None, head: int, dtype=torch.bfloat16, slopes=True, window=False, **more
):
    shape = ([] if length is None else [length]) + [head]
    size = torch.finfo(dtype).bits // 8
    work = partial(short_work, kernel, head) if length else partial(tiled_work, kernel, head, size)
    variant = ("" if slopes else ", no slopes") + (", window" if window else "")
    return Case(
        name=f"{module} {kernel}, {' x '.join(map(str, shape))}, {TYPES[dtype][1:]}{variant}",
        module=module,
        kernel=f"{kernel}_kernel",
        signature=signature(dtype),
        constants=partial(constants, module, kernel, (*shape, dtype, slopes, window), slopes),
        dot=True,
        odd=("heads", "tokens", "blocks", "window"),
        work=work,
        **more,
    )


short = partial(case, "attention_short")
tiled = partial(case, "attention_tiled", length=None)

WHOLE = ((64, True), (32, True), (64, False)) if attention_short.takes_whole(90, 64, window=False) else ()
OTHERS = tuple(gpu for gpu in CAPABILITIES if not attention_short.takes_whole(gpu, 64, window=False))
# Heads of 64 for every GPU; for the others, and for variants, the GPUs where registers or shared memory are tightest.
CASES = [
    short("forward", 128, 64),
    short("backward", 128, 64, capabilities=OTHERS),
    short("backward", 128, 128),
    short("forward", 128, 128, capabilities=(80, 90, 100)),
    short("backward", 128, 32, capabilities=(80,)),
    *(whole(128, head, slopes) for head, slopes in WHOLE),
    short("backward", 128, 96, capabilities=(89, 100)),
    short("backward", 128, 64, window=True, capabilities=(80, 90, 120)),
    tiled("forward", head=64),
    tiled("dq", head=64),
    tiled("dkdv", head=64),
    tiled("dkdv", head=64, window=True, capabilities=(90,)),
    tiled("dkdv", head=96, window=True, capabilities=(80, 120)),
    tiled("forward", head=128, capabilities=(80, 90)),
    tiled("dq", head=128, capabilities=(80, 90, 100)),
    tiled("dkdv", head=128, capabilities=(80, 90, 100, 120)),
    tiled("dkdv", head=32, dtype=torch.float16, slopes=False, capabilities=(80, 90)),
    # Local attention without ALiBi, as ModernBERT's.
    short("forward", 128, 64, slopes=False, window=True, capabilities=(90, 100)),
    short("backward", 128, 64, slopes=False, window=True, capabilities=(80, 90, 120)),
    tiled("forward", head=64, slopes=False, window=True),
    tiled("dq", head=64, slopes=False, window=True),
    tiled("dkdv", head=64, slopes=False, window=True),
    tiled("forward", head=128, slopes=False, window=True, capabilities=(80, 90)),
    tiled("dq", head=128, slopes=False, window=True, capabilities=(80, 90)),
    tiled("forward", head=64, dtype=torch.float32, capabilities=(80,), fast=False),
    tiled("dq", head=64, dtype=torch.float32, capabilities=(80,), fast=False),
    tiled("dkdv", head=64, dtype=torch.float32, capabilities=(80, 90), fast=False),
    tiled("dkdv", head=128, dtype=torch.float32, capabilities=(80,), fast=False),
]
