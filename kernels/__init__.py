"""The encoder's operations on a stream of real tokens, one function each, one signature for every backend."""

from kernels.attention import attention, attention_packed
from kernels.cross_entropy import masked_cross_entropy
from kernels.glu import glu
from kernels.layer_norm import add_layer_norm, layer_norm, layer_norm_twice
from kernels.padding import pad, unpad
from kernels.reference import alibi_slopes
from kernels.rotary import rotary, rotary_table
from kernels.rows import take_rows

__all__ = [
    "add_layer_norm",
    "alibi_slopes",
    "attention",
    "attention_packed",
    "glu",
    "layer_norm",
    "layer_norm_twice",
    "masked_cross_entropy",
    "pad",
    "rotary",
    "rotary_table",
    "take_rows",
    "unpad",
]
