"""What is compiled ahead of time of the kernels that move memory: Base's and Large's shapes, each with what training uses."""

from __future__ import annotations

from collections.abc import Callable

from kernels.triton import cross_entropy, glu, layer_norm, padding, rotary
from tests.kernels.aot import Case

LOW, FULL, COUNT, BIG = "*bf16", "*fp32", "i32", "i64"

_GLU_SCALARS = {"tokens": COUNT, "columns": COUNT, "x_t": COUNT, "threshold": COUNT, "scale": "fp32", "seed": "*i64"}


def _glu(kernel: str, columns: int, activation: str, dropout: bool) -> Case:
    signature = {"x": LOW, "out": LOW, "dout": LOW, "dx": LOW, "out_t": COUNT, "dout_t": COUNT, "dx_t": COUNT}

    def constants(capability: int) -> dict:
        seed = {} if dropout else {"seed": None}
        return {"ACTIVATION": activation, "DROPOUT": dropout, **seed, **glu.parameters(capability, columns)}

    name = f"glu_{kernel}_{columns}_{activation}" + ("_dropout" if dropout else "")
    return Case(
        name, "glu", f"{kernel}_kernel", signature | _GLU_SCALARS, constants, dot=False, odd=("tokens", "threshold")
    )


_NORM = {
    "x": LOW,
    "residual": LOW,
    "stream": LOW,
    "dstream": LOW,
    "weight": FULL,
    "bias": FULL,
    "out": LOW,
    "dout": LOW,
    "dx": LOW,
    "dresidual": LOW,
}
_NORM |= {
    "statistics": FULL,
    "partial": FULL,
    "dweight": FULL,
    "dbias": FULL,
    "seed": "*i64",
    "eps": "fp32",
    "scale": "fp32",
}
_NORM |= dict.fromkeys(("tokens", "columns", "rows", "x_t", "residual_t", "threshold", "programs"), COUNT)


def _norm(kernel: str, columns: int, fused: bool, prenorm: bool = False) -> Case:
    """`fused`: with residual and dropout, as after attention; without dropout, as after the feed-forward. `prenorm`: without a
    bias, and with the sum."""

    def constants(capability: int) -> dict:
        own = {"OWN_DRESIDUAL": fused} if kernel == "backward" else {}
        absent = [] if fused else ["seed"]
        if prenorm:
            absent += ["bias"] if kernel == "forward" else ["residual"]
        else:
            absent += ["stream"] if kernel == "forward" else ["dstream"]
        constants = own | dict.fromkeys(absent) | layer_norm.parameters(capability, columns)
        residual = kernel == "forward" or not prenorm
        return {"RESIDUAL": residual, "DROPOUT": fused, "BIAS": not prenorm, "STREAM": prenorm, **constants}

    name = f"layer_norm_{kernel}_{columns}" + ("_dropout" if fused else "") + ("_prenorm" if prenorm else "")
    odd = ("tokens", "threshold", "rows")
    return Case(name, "layer_norm", f"{kernel}_kernel", _NORM, constants, dot=False, odd=odd)


_LOSS = {
    "logits": LOW,
    "bias": FULL,
    "labels": "*i64",
    "losses": FULL,
    "right": FULL,
    "z_loss": "fp32",
    "smoothing": "fp32",
}
_LOSS |= {"columns": COUNT, "logits_m": COUNT}


def _loss(vocabulary: int, gradient: bool) -> Case:
    def constants(capability: int) -> dict:
        return {"GRADIENT": gradient, "SMOOTHING": gradient, **cross_entropy.parameters(capability, vocabulary)}

    name = f"cross_entropy_{vocabulary}" + ("_gradient_smoothing" if gradient else "")
    return Case(name, "cross_entropy", "rows_kernel", _LOSS, constants, dot=False, odd=("losses", "right"))


_PADDING = {"x": "*i16", "out": "*i16", "mask": "*i64", "lengths": "*i32", "cu_seqlens": "*i32", "totals": "*i32"}
_PADDING |= {"indices": "*i64", "inverse": "*i32"}
_PADDING |= dict.fromkeys(("sources", "rows", "columns", "x_n", "tokens", "sequences", "length", "mask_s"), COUNT)


def _padding(name: str, kernel: str, constants: Callable[[int], dict], **types: str) -> Case:
    odd = ("sources", "rows", "tokens", "sequences", "length", "mask_s")
    return Case(f"padding_{name}", "padding", f"{kernel}_kernel", _PADDING | types, constants, dot=False, odd=odd)


_ROTARY = {"qkv": LOW, "table": FULL, "out": LOW} | dict.fromkeys(("tokens", "heads", "qkv_t", "qkv_p", "qkv_n"), COUNT)


def _rotary(size: int, backwards: bool) -> Case:
    def constants(capability: int) -> dict:
        return {"BACKWARDS": backwards, **rotary.parameters(capability, size)}

    name = f"rotary_{size}" + ("_backwards" if backwards else "")
    return Case(name, "rotary", "rotate_kernel", _ROTARY, constants, dot=False, odd=("tokens", "heads"))


CASES = [
    *(
        _glu(k, columns, "gelu", dropout)
        for k in ("forward", "backward")
        for columns, dropout in ((3072, True), (4096, False))
    ),
    *(_norm(k, columns, fused) for k in ("forward", "backward") for columns, fused in ((768, True), (1024, False))),
    *(
        _norm(k, columns, fused, True)
        for k in ("forward", "backward")
        for columns, fused in ((768, False), (1024, True))
    ),
    Case(
        "layer_norm_reduction",
        "layer_norm",
        "reduction_kernel",
        _NORM,
        lambda _: {"BIAS": True, **layer_norm.REDUCTION},
        dot=False,
        odd=("programs",),
    ),
    *(_loss(30528, gradient) for gradient in (False, True)),
    _padding("gather_768", "gather", lambda capability: padding.parameters(capability, 768)),
    _padding("scatter_1024", "gather", lambda capability: padding.parameters(capability, 1024), indices="*i32"),
    _padding("count", "count", lambda _: dict(padding.PLAN)),
    _padding("index", "index", lambda _: dict(padding.PLAN)),
    _padding("inversion", "inversion", lambda _: dict(padding.INVERSION)),
    _rotary(64, False),
    _rotary(64, True),
    _rotary(96, False),
]
