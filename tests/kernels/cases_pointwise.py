"""What is compiled ahead of time of the kernels that move memory: Base's and Large's shapes, each with what training uses."""

from __future__ import annotations

from collections.abc import Callable

from kernels.triton import cross_entropy, glu, layer_norm, padding, rotary, rows
from tests.kernels.aot import Case
from tests.kernels.budget import Work

# A microbatch of Base at length 128, of two in a step of 4096 sequences, and the multiprocessors of an H200.
TOKENS, PROCESSORS = 4096 * 115 // 2, 132
BYTES = 2  # of a bfloat16
FEW = "a few short programs, bound by their launch"
LOW, FULL, COUNT, BIG = "*bf16", "*fp32", "i32", "i64"

_GLU_SCALARS = dict.fromkeys(("tokens", "rows", "columns", "x_t", "threshold"), COUNT) | {
    "scale": "fp32",
    "seed": "*i64",
}


def _glu(kernel: str, columns: int, activation: str, dropout: bool) -> Case:
    signature = {"x": LOW, "out": LOW, "dout": LOW, "dx": LOW, "out_t": COUNT, "dout_t": COUNT, "dx_t": COUNT}

    def constants(capability: int) -> dict:
        seed = {} if dropout else {"seed": None}
        return {"ACTIVATION": activation, "DROPOUT": dropout, **seed, **glu.parameters(columns)}

    def work(chosen: dict) -> Work:
        tensors = 3 if kernel == "forward" else 5  # x is two of them, and so is dx
        programs = PROCESSORS * glu.programs_per_processor(backward=kernel == "backward")
        passes = TOKENS * columns // (programs * chosen["BLOCK_T"] * chosen["BLOCK_F"])
        return Work(passes * chosen["BLOCK_T"] * chosen["BLOCK_F"] * BYTES * tensors, (passes,))

    name = f"glu_{kernel}_{columns}_{activation}" + ("_dropout" if dropout else "")
    odd = ("tokens", "rows", "threshold")
    return Case(name, "glu", f"{kernel}_kernel", signature | _GLU_SCALARS, constants, dot=False, odd=odd, work=work)


_NORM = {
    "x": LOW,
    "residual": LOW,
    "stream": LOW,
    "dstream": LOW,
    "weight": FULL,
    "bias": FULL,
    "out": LOW,
    "dout": LOW,
    "dagain": LOW,
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


def _norm(kernel: str, columns: int, fused: bool, prenorm: bool = False, twice: bool = False, **more) -> Case:
    """`fused`: with residual and dropout, as after attention; without dropout, as after the feed-forward. `prenorm`: without a
    bias, and with the sum. `twice`: of the backward, with the gradients of two readers."""

    def constants(capability: int) -> dict:
        own = {"OWN_DRESIDUAL": fused, "AGAIN": twice} if kernel == "backward" else {}
        absent = [] if fused else ["seed"]
        absent += ["dagain"] if kernel == "backward" and not twice else []
        if prenorm:
            absent += ["bias"] if kernel == "forward" else ["residual"]
        else:
            absent += ["stream"] if kernel == "forward" else ["dstream"]
        constants = own | dict.fromkeys(absent) | layer_norm.parameters(columns)
        residual = kernel == "forward" or not prenorm
        return {"RESIDUAL": residual, "DROPOUT": fused, "BIAS": not prenorm, "STREAM": prenorm, **constants}

    def work(chosen: dict) -> Work:
        forward = kernel == "forward"
        tensors = (3 + prenorm) if forward else (4 + fused + twice)
        programs = PROCESSORS * layer_norm.programs_per_processor(90, columns, not forward, twice)
        passes = -(-TOKENS // programs // chosen["BLOCK_T"])
        moved = passes * chosen["BLOCK_T"] * (columns * BYTES * tensors + 8)  # with mean and reciprocal deviation
        return Work(moved, (passes,))

    name = f"layer_norm_{kernel}_{columns}" + ("_dropout" if fused else "") + ("_prenorm" if prenorm else "")
    name += "_twice" if twice else ""
    odd = ("tokens", "threshold", "rows")
    return Case(name, "layer_norm", f"{kernel}_kernel", _NORM, constants, dot=False, odd=odd, work=work, **more)


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

    def work(chosen: dict) -> Work:
        """Before the label's columns, behind them, and the row again; what is beside the loops, and the label's columns, once."""
        passes = vocabulary // (chosen["BLOCK_V"] * chosen["AT_ONCE"])
        twice = ((passes - 1) / 2,) * 2
        # A row that has a label is read, read again, half of it out of the cache, and written; the first loop is for one without.
        return Work(vocabulary * BYTES * 2.5, (0, *twice, passes)) if gradient else Work(vocabulary * BYTES, twice)

    name = f"cross_entropy_{vocabulary}" + ("_gradient_smoothing" if gradient else "")
    odd = ("labels", "losses", "right")
    return Case(name, "cross_entropy", "rows_kernel", _LOSS, constants, dot=False, odd=odd, work=work)


_PADDING = {"x": "*i16", "out": "*i16", "mask": "*i64", "lengths": "*i32", "cu_seqlens": "*i32", "totals": "*i32"}
_PADDING |= {"indices": "*i64", "inverse": "*i32"}
_PADDING |= dict.fromkeys(("sources", "rows", "columns", "x_n", "tokens", "sequences", "length", "mask_s"), COUNT)


def _padding(
    name: str, kernel: str, constants: Callable[[int], dict], work: Callable[[dict], Work] | None = None, **types: str
) -> Case:
    odd = ("sources", "rows", "tokens", "sequences", "length", "mask_s")
    types, more = _PADDING | types, {"work": work, "unbudgeted": "" if work else FEW}
    return Case(f"padding_{name}", "padding", f"{kernel}_kernel", types, constants, dot=False, odd=odd, **more)


def _gathered(chosen: dict) -> Work:
    return Work(chosen["BLOCK_T"] * chosen["BLOCK_E"] * 2 * BYTES)


_ROWS = {"rows": "*i64", "places": "*i32", "dout": LOW, "dx": LOW}
_ROWS |= dict.fromkeys(("taken", "tokens", "columns"), COUNT)
TAKEN = 0.3  # of a stream's tokens, those that are predicted


def _taken(chosen: dict) -> Work:
    """Of each row, where it was taken first and last; of each that was, its number and its gradient, by one turn of the loop."""
    row = chosen["BLOCK_E"] * BYTES
    return Work(chosen["BLOCK_T"] * (row + 2 * 4 + TAKEN * (row + 8)), (1,))


_ROTARY = {"qkv": LOW, "table": FULL, "out": LOW} | dict.fromkeys(("tokens", "heads", "qkv_t", "qkv_p", "qkv_n"), COUNT)


def _rotary(size: int, backwards: bool, **more) -> Case:
    def constants(capability: int) -> dict:
        return {"BACKWARDS": backwards, **rotary.parameters(capability, size)}

    def work(chosen: dict) -> Work:
        """Of three programs one copies v, in the first loop, and two turn q or k, which share the table's float32 angles."""
        heads = 12
        moved = chosen["BLOCK_T"] * (heads * size * BYTES * 2 + chosen["HALF"] * 2 * 4 / 3)
        return Work(moved, (heads / 3, heads * 2 / 3))

    name = f"rotary_{size}" + ("_backwards" if backwards else "")
    odd = ("tokens", "heads")
    return Case(name, "rotary", "rotate_kernel", _ROTARY, constants, dot=False, odd=odd, work=work, **more)


CASES = [
    *(
        _glu(k, columns, "gelu", dropout)
        for k in ("forward", "backward")
        for columns, dropout in ((3072, True), (4096, False))
    ),
    *(_norm(k, columns, fused) for k in ("forward", "backward") for columns, fused in ((768, True), (1024, False))),
    _norm("backward", 768, True, twice=True),
    _norm("backward", 1024, False, twice=True, capabilities=(80, 90, 100)),
    *(_norm(k, 768, False, True) for k in ("forward", "backward")),
    *(_norm(k, 1024, True, True, capabilities=(80, 90)) for k in ("forward", "backward")),
    Case(
        "layer_norm_reduction",
        "layer_norm",
        "reduction_kernel",
        _NORM,
        lambda _: {"BIAS": True, **layer_norm.REDUCTION},
        dot=False,
        odd=("programs",),
        unbudgeted=FEW,
    ),
    *(_loss(30528, gradient) for gradient in (False, True)),
    _padding("gather_768", "gather", lambda capability: padding.parameters(capability, 768), _gathered),
    _padding(
        "scatter_1024", "gather", lambda capability: padding.parameters(capability, 1024), _gathered, indices="*i32"
    ),
    _padding("count", "count", lambda _: dict(padding.PLAN)),
    _padding("index", "index", lambda _: dict(padding.PLAN)),
    _padding("inversion", "inversion", lambda _: dict(padding.INVERSION)),
    Case(
        "rows_backward_768",
        "rows",
        "backward_kernel",
        _ROWS,
        lambda capability: rows.parameters(capability, 768),
        dot=False,
        odd=("taken", "tokens"),
        work=_taken,
    ),
    Case(
        "rows_places",
        "rows",
        "places_kernel",
        _ROWS,
        lambda _: dict(rows.PLACES),
        dot=False,
        odd=("taken", "tokens"),
        unbudgeted=FEW,
    ),
    _rotary(64, False),
    _rotary(64, True, capabilities=(80, 100)),
    _rotary(96, False, capabilities=(90,)),
]
