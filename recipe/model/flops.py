"""How many floating-point operations a model needs: the numerator of MFU.

Matrix products only, a multiply and an add each counted, as in PaLM's appendix B (arXiv 2204.02311). Every layer is counted on
every real token; padding counts for nothing. What the last one spares at positions that nothing is predicted at is counted too,
because it changes no result; what `narrow_layers` beyond 1 spares before it is another model's step, and is not.
"""

from __future__ import annotations

BACKWARD = 2  # each product of the forward pass needs two in the backward pass


def layer_flops_per_token(hidden_size: int, intermediate_size: int, gated: bool) -> int:
    """Forward, one layer, without attention's own products: q, k, v, output, and the feed-forward's two or three matrices."""
    projections = 2 * 3 * hidden_size**2
    return projections + narrow_flops_per_token(hidden_size, intermediate_size, gated)


def narrow_flops_per_token(hidden_size: int, intermediate_size: int, gated: bool) -> int:
    """Of these, what a narrow layer leaves out where nothing is predicted: attention's output, and the feed-forward."""
    return 2 * hidden_size**2 + 2 * (3 if gated else 2) * hidden_size * intermediate_size


def attention_flops(model: dict, tokens: float, sum_of_squared_lengths: float) -> float:
    """Forward, all layers: scores and weighted sum, over sequences that each attend to themselves, in a local layer each token
    to its window only. For windows the sequences count as equally long, which is exact where they are, else an upper bound.

    Args:
        model: hidden_size, num_hidden_layers, and, where there are local layers, window and global_every.
        tokens: real tokens.
        sum_of_squared_lengths: of their sequences.
    """
    layers, window, every = model["num_hidden_layers"], model.get("window"), model.get("global_every", 1)
    everywhere = -(-layers // every) if window else layers
    pairs = everywhere * sum_of_squared_lengths
    if everywhere < layers and tokens:
        length = sum_of_squared_lengths / tokens
        reach = min(window // 2, length - 1)
        pairs += (layers - everywhere) * tokens * (2 * reach + 1 - reach * (reach + 1) / length)
    return 4 * model["hidden_size"] * pairs


def head_flops_per_position(hidden_size: int, vocab_size: int) -> int:
    """Forward, the dense layer and the decoder, at one predicted position."""
    return 2 * hidden_size**2 + 2 * hidden_size * vocab_size


def training_flops(
    model: dict, gated: bool, tokens: int, sum_of_squared_lengths: float, predicted_positions: float
) -> float:
    """Forward and backward over `tokens` real tokens.

    Args:
        model: hidden_size, intermediate_size, num_hidden_layers, vocab_size; window and global_every as in `attention_flops`;
            narrow_layers, 1 where it is absent.
        gated: whether the feed-forward is a gated unit.
        tokens: real tokens.
        sum_of_squared_lengths: of their sequences.
        predicted_positions: how many of them the head is applied to.
    """
    hidden_size = model["hidden_size"]
    layers = model["num_hidden_layers"] * tokens * layer_flops_per_token(hidden_size, model["intermediate_size"], gated)
    left_out = ((model.get("narrow_layers") or 1) - 1) * (tokens - predicted_positions)
    layers -= left_out * narrow_flops_per_token(hidden_size, model["intermediate_size"], gated)
    attention = attention_flops(model, tokens, sum_of_squared_lengths)
    head = predicted_positions * head_flops_per_position(hidden_size, model["vocab_size"])
    return (1 + BACKWARD) * (layers + attention + head)
