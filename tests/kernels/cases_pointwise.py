"""What is compiled ahead of time of the kernels that move memory: Base's and Large's shapes, each with what training uses."""

from __future__ import annotations

from kernels.triton import glu
from tests.kernels.aot import Case

LOW, FULL, COUNT, BIG = "*bf16", "*fp32", "i32", "i64"

_GLU_SCALARS = {"tokens": COUNT, "columns": COUNT, "x_t": COUNT, "threshold": COUNT, "scale": "fp32", "seed": "*i64"}


def _glu(kernel: str, columns: int, activation: str, dropout: bool) -> Case:
    signature = {"x": LOW, "out": LOW, "dout": LOW, "dx": LOW, "out_t": COUNT, "dout_t": COUNT, "dx_t": COUNT}

    def constants(capability: int) -> dict:
        return {"ACTIVATION": activation, "DROPOUT": dropout, **glu.parameters(capability, columns)}

    name = f"glu_{kernel}_{columns}_{activation}" + ("_dropout" if dropout else "")
    return Case(
        name, "glu", f"{kernel}_kernel", signature | _GLU_SCALARS, constants, dot=False, odd=("tokens", "threshold")
    )


CASES = [
    _glu(kernel, columns, "gelu", dropout)
    for kernel in ("forward", "backward")
    for columns, dropout in ((3072, True), (4096, False))
]
