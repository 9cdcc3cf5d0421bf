"""Kernels that issue more instructions for their bytes than budget.CEILING allows, each with a ceiling of its own, and why.

A ceiling is what the kernel has today on an H200, rounded up, so that it cannot grow; with a better kernel it comes down.
"""

from __future__ import annotations

WINDOW = "each score is compared with the window, beside the conversion of its distance"
SUMS = "reads each logit once, for five operations on it, and the bias is added in float32, which the product could do"
PRODUCTS = "its products grow with the square of the length: bytes do not bound it"

CEILINGS = {
    "attention_short backward, 128 x 64, bf16, window": (0.87, WINDOW),
    "attention_short forward, 128 x 64, bf16, no slopes, window": (0.77, WINDOW),
    "attention_short backward, 128 x 64, bf16, no slopes, window": (0.83, WINDOW),
    "attention_tiled forward, 64, bf16": (2.29, PRODUCTS),
    "attention_tiled dq, 64, bf16": (1.44, PRODUCTS),
    "attention_tiled dkdv, 64, bf16": (1.96, PRODUCTS),
    "attention_tiled dkdv, 64, bf16, window": (1.30, PRODUCTS),
    "attention_tiled forward, 128, bf16": (1.34, PRODUCTS),
    "attention_tiled dq, 128, bf16": (1.02, PRODUCTS),
    "attention_tiled dkdv, 128, bf16": (2.23, PRODUCTS),
    "attention_tiled dkdv, 32, fp16, no slopes": (2.96, PRODUCTS),
    "attention_tiled forward, 64, bf16, no slopes, window": (1.19, PRODUCTS),
    "attention_tiled dq, 64, bf16, no slopes, window": (0.77, PRODUCTS),
    "attention_tiled dkdv, 64, bf16, no slopes, window": (1.22, PRODUCTS),
    "attention_tiled forward, 128, bf16, no slopes, window": (0.85, PRODUCTS),
    "attention_tiled dkdv, 64, fp32": (9.96, PRODUCTS),
    "cross_entropy_30528": (0.96, SUMS),
}
