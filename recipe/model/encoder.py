"""A BERT encoder on a stream of real tokens: no padding anywhere, no position embeddings.

What a block is made of stands in its config, so that MosaicBERT (post-norm, ALiBi) and ModernBERT (pre-norm, rotary positions,
windows, no biases) are rows of settings of it, and so is everything between the two.

Shapes: T tokens of the batch in a row, N heads, H head size, D hidden size, F feed-forward size, S sequences, M kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from kernels.backends import Resolved
from recipe.model.config import EncoderConfig
from recipe.model.shapes import round_stream


@dataclass(frozen=True)
class Backends:
    """Which implementation the encoder's operations use, resolved once by the caller."""

    attention: Resolved = Resolved("sdpa", "default")
    kernels: Resolved = Resolved("reference", "default")

    @property
    def in_short(self) -> str:
        return f"attention {self.attention.in_short}, kernels {self.kernels.in_short}"


class Sequences(NamedTuple):
    """Where the sequences of a stream are, and what tells the order of their tokens."""

    cu_seqlens: Tensor  # (S + 1,) int32
    max_seqlen: int
    slopes_N: Tensor | None = None  # ALiBi's
    tables: dict[float, Tensor] | None = None  # of rotary positions: theta -> (2, T, H / 2)


class Still(NamedTuple):
    """What narrow layers see beside the tokens that they compute."""

    x_TD: Tensor  # the residual stream as the last wide layer left it
    rows_T: Tensor  # where a token's state is: behind these T rows, those of the kept tokens follow


class LayerNorm(nn.Module):
    """LayerNorm(dropout(x) + residual) in the activations' own precision, statistics in float32."""

    def __init__(self, config: EncoderConfig, backends: Backends, dropout_p: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size)) if config.biases else None
        self.eps = config.layer_norm_eps
        self.dropout_p = dropout_p
        self.backend = backends.kernels.name

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None = None) -> Tensor:
        return kernels.layer_norm(
            x_TD, self.weight, self.bias, self.eps, residual_TD, self._dropout_p, backend=self.backend
        )

    def twice(self, x_TD: Tensor, residual_TD: Tensor) -> tuple[Tensor, Tensor]:
        """For two readers; the kernel adds their gradients."""
        return kernels.layer_norm_twice(
            x_TD, self.weight, self.bias, self.eps, residual_TD, self._dropout_p, backend=self.backend
        )

    def add(self, x_TD: Tensor, residual_TD: Tensor) -> tuple[Tensor, Tensor]:
        """The sum too, and its norm."""
        return kernels.add_layer_norm(
            x_TD, residual_TD, self.weight, self.bias, self.eps, self._dropout_p, backend=self.backend
        )

    @property
    def _dropout_p(self) -> float:
        return self.dropout_p if self.training else 0.0


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig, backends: Backends) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        types = config.type_vocab_size
        self.token_type = nn.Embedding(types, config.hidden_size) if types else None
        self.norm = LayerNorm(config, backends) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Set where the matrix is the decoder too: added to the decoder's gradient, a sparse one saves making and adding a dense
        # one. The module's own `sparse` would promise that the sum is sparse too.
        self.sparse_gradient = False

    def forward(self, input_ids_T: Tensor, token_type_ids_T: Tensor | None) -> Tensor:
        sparse = self.sparse_gradient and not torch.compiler.is_compiling()
        x_TD = F.embedding(input_ids_T, self.word.weight, sparse=sparse)
        if self.token_type is not None:
            x_TD = x_TD + (self.token_type.weight[0] if token_type_ids_T is None else self.token_type(token_type_ids_T))
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):  # the residual stream is in low precision from its first sum on
            x_TD = x_TD.to(torch.get_autocast_dtype(device))
        return self.dropout(x_TD if self.norm is None else self.norm(x_TD))


class Attention(nn.Module):
    def __init__(self, config: EncoderConfig, backends: Backends, index: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.biases)
        self.out = nn.Linear(config.hidden_size, config.hidden_size, bias=config.biases)
        self.norm = None
        if config.norm == "post":
            self.norm = LayerNorm(config, backends, config.hidden_dropout_prob)
        elif index or not config.embedding_norm:  # the embeddings' norm is the first layer's
            self.norm = LayerNorm(config, backends)
        local = config.is_local(index)
        self.reach = config.window // 2 if local else None
        self.theta = (config.local_rope_theta if local else config.rope_theta) if config.positions == "rope" else None
        self.dropout_p = config.attention_probs_dropout_prob
        self.backends = backends

    def forward(self, x_TD: Tensor, sequences: Sequences, keep_M: Tensor | None) -> Tensor:
        """What is to be added to the residual stream; of the tokens `keep_M` alone."""
        qkv_T3NH = self.qkv(x_TD).unflatten(-1, (3, self.heads, -1))
        if self.theta is not None:
            qkv_T3NH = kernels.rotary(qkv_T3NH, sequences.tables[self.theta], backend=self.backends.kernels.name)
        mixed_TNH = kernels.attention_packed(
            qkv_T3NH,
            sequences.cu_seqlens,
            sequences.max_seqlen,
            sequences.slopes_N,
            self.reach,
            self.dropout_p if self.training else 0.0,
            backend=self.backends.attention.name,
        )
        mixed_TD = mixed_TNH.flatten(1)
        if keep_M is not None:
            mixed_TD = kernels.take_rows(mixed_TD, keep_M, backend=self.backends.kernels.name)
        return self.out(mixed_TD)


class FeedForward(nn.Module):
    """A gated linear unit. Dropout is inside the unit and not after its output projection, as in the reference models."""

    def __init__(self, config: EncoderConfig, backends: Backends) -> None:
        super().__init__()
        self.gated = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.biases)
        # Before it, the norm adds what attention gives, with that one's dropout.
        self.norm = LayerNorm(config, backends, 0.0 if config.norm == "post" else config.hidden_dropout_prob)
        self.activation = config.hidden_act
        self.dropout_p = config.hidden_dropout_prob
        self.backend = backends.kernels.name

    def forward(self, x_TD: Tensor) -> Tensor:
        """What is to be added to the residual stream."""
        dropout_p = self.dropout_p if self.training else 0.0
        return self.out(kernels.glu(self.gated(x_TD), self.activation, dropout_p, backend=self.backend))


class Layer(nn.Module):
    """Attention and feed-forward, post-norm or pre-norm. A norm takes the last sum with it, as one operation; so the sum behind a
    pre-norm layer is left to the next one's norm.

    What goes from layer to layer is the residual stream and something beside it, None for nothing: pre-norm, what is still to be
    added to the stream; post-norm, the stream once more, for attention to read, as the norm that made it adds both gradients.
    """

    def __init__(self, config: EncoderConfig, backends: Backends, index: int) -> None:
        super().__init__()
        self.attention = Attention(config, backends, index)
        self.feed_forward = FeedForward(config, backends)
        self.post_norm = config.norm == "post"
        self.is_last = index == config.num_hidden_layers - 1
        self.backend = backends.kernels.name

    def forward(
        self,
        x_TD: Tensor,
        beside_TD: Tensor | None,
        sequences: Sequences,
        keep_M: Tensor | None = None,
        still: Still | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The residual stream, and what is beside it, behind this layer. With `still` both are given of the tokens `keep_M`
        alone, (M, D), which see the others as they stand still."""
        if still is not None:
            return self._narrow(x_TD, beside_TD, sequences, keep_M, still)
        x_TD, y_TD = self._before_attention(x_TD, beside_TD)
        added_TD = self.attention(y_TD, sequences, keep_M)
        if keep_M is not None:
            x_TD = kernels.take_rows(x_TD, keep_M, backend=self.backend)
        return self._after_attention(x_TD, added_TD)

    def _narrow(
        self, x_MD: Tensor, beside_MD: Tensor | None, sequences: Sequences, keep_M: Tensor, still: Still
    ) -> tuple[Tensor, Tensor | None]:
        x_MD, y_MD = self._before_attention(x_MD, beside_MD)
        _, y_TD = self._before_attention(still.x_TD, None)
        newest_TD = kernels.take_rows(torch.cat([y_TD, y_MD]), still.rows_T, backend=self.backend)
        added_MD = self.attention(newest_TD, sequences, keep_M)
        return self._after_attention(x_MD, added_MD)

    def _before_attention(self, x_TD: Tensor, beside_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        """The residual stream with all added to it, and what attention takes."""
        norm = self.attention.norm
        if self.post_norm:
            return x_TD, x_TD if beside_TD is None else beside_TD
        if norm is None:
            return x_TD, x_TD
        return (x_TD, norm(x_TD)) if beside_TD is None else norm.add(beside_TD, x_TD)

    def _after_attention(self, x_TD: Tensor, added_TD: Tensor) -> tuple[Tensor, Tensor | None]:
        feed_forward = self.feed_forward
        if self.post_norm:
            x_TD, y_TD = self.attention.norm.twice(added_TD, x_TD)
            given = (feed_forward(y_TD), x_TD)
            return (feed_forward.norm(*given), None) if self.is_last else feed_forward.norm.twice(*given)
        x_TD, y_TD = feed_forward.norm.add(added_TD, x_TD)
        return x_TD, feed_forward(y_TD)

    def summed(self, x_TD: Tensor, beside_TD: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The same, with nothing left to be added."""
        return (x_TD, beside_TD) if self.post_norm or beside_TD is None else (x_TD + beside_TD, None)


class Encoder(nn.Module):
    """Token ids to hidden states, both as streams: `forward(batch, keep)`, as the table of architectures wants it."""

    def __init__(self, config: EncoderConfig, backends: Backends | None = None) -> None:
        super().__init__()
        backends = backends or Backends()
        self.config = config
        self.few_shapes = backends.kernels.fact("kernels", "few_sizes")  # see shapes.py
        self.embeddings = Embeddings(config, backends)
        self.layers = nn.ModuleList(Layer(config, backends, index) for index in range(config.num_hidden_layers))
        self.final_norm = LayerNorm(config, backends) if config.norm == "pre" else None
        slopes_N = kernels.alibi_slopes(config.num_attention_heads) if config.positions == "alibi" else None
        self.register_buffer("slopes", slopes_N, persistent=False)

    def forward(
        self, batch: dict, keep: Tensor | None = None, narrow_layers: int = 1, counted: Tensor | None = None
    ) -> Tensor:
        """Hidden states of every token, or of the tokens `keep` alone.

        With `narrow_layers` above 1 it is another function, that of a cheaper step of pretraining: the last so many layers
        compute tokens of `keep` alone. The others keep the state that the last layer before these gave them, and are seen so:
        each narrow layer makes keys and values of every token, of the kept ones from their newest states. Every token thus
        stays in sight, at its distance, and a layer's weights do in it what they do in a wide one.

        Args:
            batch: input_ids (T,) int64, the sequences one after another; cu_seqlens (S + 1,) int32, where each begins, and the
                end; max_seqlen, the longest length, or more; token_type_ids (T,) int64, absent or None for all zero; an encoder
                without token types does not look at them.
            keep: (M,) int64, the tokens whose last hidden state is wanted. The last layer leaves out the rest after its
                attention, which changes nothing for those kept.
            narrow_layers: 1 to all of them; above 1 with `keep`.
            counted: (M,) bool, with narrow_layers above 1: the tokens of `keep` that stand there once. The others are filling:
                nobody sees what becomes of them.

        Returns:
            (T, D), or (M, D) with `keep`.
        """
        input_ids, token_type_ids = batch["input_ids"], batch.get("token_type_ids")
        cu_seqlens, max_seqlen = batch["cu_seqlens"], batch["max_seqlen"]
        tokens = len(input_ids)
        if self.few_shapes and not torch.compiler.is_compiling():
            input_ids, token_type_ids, cu_seqlens = round_stream(input_ids, token_type_ids, cu_seqlens)
            max_seqlen = max(max_seqlen, len(input_ids) - tokens)
        sequences = Sequences(cu_seqlens, max_seqlen, self.slopes, self._tables(cu_seqlens, len(input_ids)))
        x_TD = self.embeddings(input_ids, token_type_ids)
        layers = list(self.layers)  # whose slices are lists, and no modules that each forward makes
        beside_TD, wide = None, len(layers) - narrow_layers
        for layer in layers[:wide]:
            x_TD, beside_TD = layer(x_TD, beside_TD, sequences)
        if narrow_layers > 1:
            x_TD, beside_TD = layers[wide].summed(x_TD, beside_TD)
            still = Still(x_TD, _rows(keep, counted, len(input_ids)))
        x_TD, beside_TD = layers[wide](x_TD, beside_TD, sequences, keep)
        for layer in layers[wide + 1 :]:
            x_TD, beside_TD = layer(x_TD, beside_TD, sequences, keep, still)
        if self.final_norm is not None:
            x_TD = self.final_norm(beside_TD, x_TD)
        return x_TD if keep is not None else x_TD[:tokens]

    def _tables(self, cu_seqlens: Tensor, tokens: int) -> dict[float, Tensor]:
        """Angles of the rotary positions, for each theta that a layer has; none without such positions."""
        thetas = {layer.attention.theta for layer in self.layers} - {None}
        return {theta: kernels.rotary_table(cu_seqlens, tokens, self.config.head_dim, theta) for theta in thetas}


def _rows(keep_M: Tensor, counted_M: Tensor, tokens: int) -> Tensor:
    """(T,) of each token its own number, or, if it is kept, T + its place in `keep_M`. No place is written twice save the one
    behind the last, so this is the same every time."""
    rows_T = torch.arange(tokens + 1, device=keep_M.device)
    places_M = torch.where(counted_M, keep_M, tokens)
    return rows_T.index_put((places_M,), tokens + torch.arange(len(keep_M), device=keep_M.device))[:tokens]


def initialize(model: nn.Module, std: float) -> None:
    """N(0, std) for matrices and embeddings, 0 for biases; LayerNorm keeps its ones and zeros (BERT's initialisation).

    What a pre-norm encoder adds to its residual stream, which else grows with depth, begins smaller by sqrt(2 layers) (Megatron's
    initialisation, arXiv 1909.08053, and ModernBERT's).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx] = 0
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    encoders = (module for module in model.modules() if isinstance(module, Encoder) and module.config.norm == "pre")
    with torch.no_grad():
        for encoder in encoders:
            for layer in encoder.layers:
                for part in (layer.attention, layer.feed_forward):
                    part.out.weight.mul_((2 * len(encoder.layers)) ** -0.5)
