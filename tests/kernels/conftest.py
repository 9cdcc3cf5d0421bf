"""Triton's interpreter, mended for bfloat16 on the test's side; kernels are never bent to suit it.

Triton 3.6's interpreter keeps bfloat16 as numpy uint16. Its tl.dot multiplies those integers, and its rounding from float32
adds the cut-off bit without carrying it into the exponent and without ties to even. Both are replaced by what hardware does.
"""

from __future__ import annotations

import os

import numpy as np

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """float32 to bfloat16's bits, to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded)


def to_float32(bits: np.ndarray) -> np.ndarray:
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def mend_bfloat16() -> None:
    """Replace the interpreter's float conversion and product where bfloat16 is involved."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert_float, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def mended_convert(data, source, target, rounding):
        if source == tl.bfloat16:
            wide = to_float32(data)
            return wide if target == tl.float32 else convert_float(wide, tl.float32, target, rounding)
        if target == tl.bfloat16:
            return to_bfloat16(data.astype(np.float32))
        if {source, target} <= {tl.float16, tl.float32, tl.float64}:
            return data.astype(interpreter._get_np_dtype(target))  # numpy rounds these as hardware does
        return convert_float(data, source, target, rounding)

    def mended_cast(self, source, target):
        if tl.bfloat16 in (source.dtype.scalar, target.scalar) and source.dtype.scalar != target.scalar:
            wide = source.data if source.dtype.scalar != tl.bfloat16 else to_float32(source.data)
            out = to_bfloat16(wide) if target.scalar == tl.bfloat16 else wide.astype(interpreter._get_np_dtype(target))
            return interpreter.TensorHandle(out, target.scalar)
        return cast(self, source, target)

    def mended_dot(self, a, b, d, *rest):
        if a.dtype.scalar == tl.bfloat16:
            a = interpreter.TensorHandle(to_float32(a.data), tl.float32)
            b = interpreter.TensorHandle(to_float32(b.data), tl.float32)
        return dot(self, a, b, d, *rest)

    cast = interpreter.InterpreterBuilder.cast_impl
    interpreter._convert_float = mended_convert
    interpreter.InterpreterBuilder.cast_impl = mended_cast
    interpreter.InterpreterBuilder.create_dot = mended_dot


if INTERPRETING:
    mend_bfloat16()
