"""How many floating-point operations a model needs: the numerator of MFU.

Matrix products only, a multiply and an add each counted, as in PaLM's appendix B (arXiv 2204.02311). Every layer is counted on
every real token, also where an implementation leaves some of the last one out; padding counts for nothing.
"""

from __future__ import annotations

BACKWARD = 2  # each product of the forward pass needs two in the backward pass


def layer_flops_per_token(hidden_size: int, intermediate_size: int, gated: bool) -> int:
    """Forward, one layer, without attention's own products: q, k, v, output, and the feed-forward's two or three matrices."""
    attention = 2 * 4 * hidden_size**2
    feed_forward = 2 * (3 if gated else 2) * hidden_size * intermediate_size
    return attention + feed_forward


def attention_flops(hidden_size: int, sum_of_squared_lengths: float) -> float:
    """Forward, one layer: scores and weighted sum, over sequences that each attend to themselves."""
    return 4 * hidden_size * sum_of_squared_lengths


def head_flops_per_position(hidden_size: int, vocab_size: int) -> int:
    """Forward, the dense layer and the decoder, at one predicted position."""
    return 2 * hidden_size**2 + 2 * hidden_size * vocab_size


def training_flops(
    model: dict, gated: bool, tokens: int, sum_of_squared_lengths: float, predicted_positions: float
) -> float:
    """Forward and backward over `tokens` real tokens.

    Args:
        model: hidden_size, intermediate_size, num_hidden_layers, vocab_size.
        gated: whether the feed-forward is a gated unit.
        tokens: real tokens.
        sum_of_squared_lengths: of their sequences.
        predicted_positions: how many of them the head is applied to.
    """
    hidden_size = model["hidden_size"]
    layer = tokens * layer_flops_per_token(hidden_size, model["intermediate_size"], gated)
    layer += attention_flops(hidden_size, sum_of_squared_lengths)
    head = predicted_positions * head_flops_per_position(hidden_size, model["vocab_size"])
    return (1 + BACKWARD) * (model["num_hidden_layers"] * layer + head)
