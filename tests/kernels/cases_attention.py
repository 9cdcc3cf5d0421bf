"""Which attention kernels are compiled. Base has 12 heads of 64 and Large 16 of 64: heads and strides are arguments of the
kernels, so one case serves both."""

from __future__ import annotations

from functools import partial

import torch

from tests.kernels.aot import Case

TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
STRIDES = [f"{x}_{axis}" for x in ("q", "k", "v", "out", "do", "dq", "dk", "dv") for axis in "tn"]


def signature(dtype: torch.dtype) -> dict[str, str]:
    tensors = dict.fromkeys(("q", "k", "v", "out", "dout", "dq", "dk", "dv"), TYPES[dtype])
    others = {"lse": "*fp32", "delta": "*fp32", "slopes": "*fp32", "cu_seqlens": "*i32", "scale": "fp32"}
    return {**tensors, **others, **dict.fromkeys(("heads", "tokens", "window", "blocks", *STRIDES), "i32")}


def short_constants(kernel, length, head, dtype, slopes, window, capability):
    from kernels.triton import attention_short

    constants = attention_short.constants(kernel, capability, length, head, dtype, slopes, window)
    return constants if slopes else {**constants, "slopes": None}


def short(kernel: str, length: int, head: int, dtype=torch.bfloat16, slopes=True, window=False, **more) -> Case:
    extras = ("" if slopes else ", no slopes") + (", window" if window else "")
    return Case(
        name=f"attention_short {kernel}, {length} x {head}, {TYPES[dtype][1:]}{extras}",
        module="attention_short",
        kernel=f"{kernel}_kernel",
        signature=signature(dtype),
        constants=partial(short_constants, kernel, length, head, dtype, slopes, window),
        dot=True,
        odd=("heads", "tokens", "window"),
        **more,
    )


CASES = [
    short("forward", 128, 64),
    short("forward", 128, 128),
    *(short("backward", 128, head) for head in (32, 64, 96, 128)),
    # Where registers are tightest.
    short("backward", 128, 64, window=True, capabilities=(80, 90)),
]
