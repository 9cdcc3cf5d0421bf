"""Products as a GPU's tensor cores make them, for Triton's interpreter, whose own are more exact.

A tensor core adds a few products and the accumulator at a time and cuts the sum off, where a processor rounds to nearest: errors
of one sign, which grow with the length of the sum. float32 operands become TF32, with 10 bits after the first: as Triton's tf32x3
compiles, three products make up for that, of the operands rounded and of what rounding left of each, cut off by the hardware.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tests.kernels.conftest import to_float32

# Products that are added at once: few, as on an A100 (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor
# cores", 2021). GPUs that add more cut off less often.
TERMS = {"tf32": 4, "16 bits": 8}


def rounded(x: np.ndarray) -> np.ndarray:
    """float32 to TF32, to nearest, ties away from zero, as cvt.rna does."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def cut(x: np.ndarray) -> np.ndarray:
    """float32 to TF32 as the hardware reads it."""
    return (x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def towards_zero(x: np.ndarray) -> np.ndarray:
    """float64 to float32."""
    nearest = x.astype(np.float32)
    beyond = np.abs(nearest.astype(np.float64)) > np.abs(x)
    return np.where(beyond, np.nextafter(nearest, np.float32(0)), nearest)


def accumulated(a: np.ndarray, b: np.ndarray, total: np.ndarray, terms: int) -> np.ndarray:
    """total + a @ b in float32; each product and each sum of `terms` of them is exact, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    for k in range(0, a.shape[1], terms):
        total = towards_zero(total + a[:, k : k + terms] @ b[k : k + terms])
    return total


def product(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """total + a @ b in float32, by tf32x3. What is not a number in the small products is dropped, as infinity less itself is."""
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    great, small = zip(*((rounded(x), cut(x - rounded(x))) for x in (a, b)), strict=True)
    made = np.zeros_like(total)
    for left, right in ((small[0], great[1]), (great[0], small[1]), (great[0], great[1])):
        made = accumulated(left, right, np.where(np.isnan(made), np.float32(0), made), TERMS["tf32"])
    return made + total


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Within, tl.dot is `product`."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    before = builder.create_dot

    def create_dot(self, a, b, total, *_):
        if a.dtype.scalar == tl.float32:
            return interpreter.TensorHandle(product(a.data, b.data, total.data), total.dtype.scalar)
        a, b = (to_float32(x.data) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b))
        return interpreter.TensorHandle(accumulated(a, b, total.data, TERMS["16 bits"]), total.dtype.scalar)

    builder.create_dot = create_dot
    try:
        yield
    finally:
        builder.create_dot = before
