"""A post-norm BERT encoder on a stream of real tokens: no padding anywhere, no position embeddings, ALiBi supplies order.

Shapes: T tokens of the batch in a row, N heads, H head size, D hidden size, F feed-forward size, S sequences, M kept tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

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


class LayerNorm(nn.Module):
    """LayerNorm(dropout(x) + residual) in the activations' own precision, statistics in float32."""

    def __init__(self, config: EncoderConfig, backends: Backends, dropout_p: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.eps = config.layer_norm_eps
        self.dropout_p = dropout_p
        self.backend = backends.kernels.name

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None = None) -> Tensor:
        dropout_p = self.dropout_p if self.training else 0.0
        return kernels.layer_norm(x_TD, self.weight, self.bias, self.eps, residual_TD, dropout_p, backend=self.backend)


class Embeddings(nn.Module):
    def __init__(self, config: EncoderConfig, backends: Backends) -> None:
        super().__init__()
        self.word = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.norm = LayerNorm(config, backends)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        # Set where the matrix is the decoder too: added to the decoder's gradient, a sparse one saves making and adding a dense
        # one. The module's own `sparse` would promise that the sum is sparse too.
        self.sparse_gradient = False

    def forward(self, input_ids_T: Tensor, token_type_ids_T: Tensor | None) -> Tensor:
        types = self.token_type.weight[0] if token_type_ids_T is None else self.token_type(token_type_ids_T)
        sparse = self.sparse_gradient and not torch.compiler.is_compiling()
        x_TD = F.embedding(input_ids_T, self.word.weight, sparse=sparse) + types
        device = x_TD.device.type
        if torch.is_autocast_enabled(device):  # the residual stream is in low precision from its first sum on
            x_TD = x_TD.to(torch.get_autocast_dtype(device))
        return self.dropout(self.norm(x_TD))


class Attention(nn.Module):
    def __init__(self, config: EncoderConfig, backends: Backends) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = LayerNorm(config, backends, config.hidden_dropout_prob)
        self.dropout_p = config.attention_probs_dropout_prob
        self.backend = backends.attention.name

    def forward(
        self, x_TD: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes_N: Tensor, keep_M: Tensor | None
    ) -> Tensor:
        qkv_T3NH = self.qkv(x_TD).unflatten(-1, (3, self.heads, -1))
        dropout_p = self.dropout_p if self.training else 0.0
        mixed_TNH = kernels.attention_packed(
            qkv_T3NH, cu_seqlens, max_seqlen, slopes_N, dropout_p=dropout_p, backend=self.backend
        )
        mixed_TD = mixed_TNH.flatten(1)
        if keep_M is not None:
            mixed_TD, x_TD = mixed_TD[keep_M], x_TD[keep_M]
        return self.norm(self.out(mixed_TD), x_TD)


class FeedForward(nn.Module):
    """A gated linear unit. Dropout is inside the unit and not after its output projection, as in the reference model."""

    def __init__(self, config: EncoderConfig, backends: Backends) -> None:
        super().__init__()
        self.gated = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.out = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = LayerNorm(config, backends)
        self.activation = config.hidden_act
        self.dropout_p = config.hidden_dropout_prob
        self.backend = backends.kernels.name

    def forward(self, x_TD: Tensor) -> Tensor:
        dropout_p = self.dropout_p if self.training else 0.0
        inner_TF = kernels.glu(self.gated(x_TD), self.activation, dropout_p, backend=self.backend)
        return self.norm(self.out(inner_TF), x_TD)


class Layer(nn.Module):
    def __init__(self, config: EncoderConfig, backends: Backends) -> None:
        super().__init__()
        self.attention = Attention(config, backends)
        self.feed_forward = FeedForward(config, backends)

    def forward(
        self, x_TD: Tensor, cu_seqlens: Tensor, max_seqlen: int, slopes_N: Tensor, keep_M: Tensor | None = None
    ) -> Tensor:
        return self.feed_forward(self.attention(x_TD, cu_seqlens, max_seqlen, slopes_N, keep_M))


class Encoder(nn.Module):
    """Token ids to hidden states, both as streams: `forward(batch, keep)`, as the table of architectures wants it."""

    def __init__(self, config: EncoderConfig, backends: Backends | None = None) -> None:
        super().__init__()
        backends = backends or Backends()
        self.config = config
        self.few_shapes = backends.kernels.fact("kernels", "few_sizes")  # see shapes.py
        self.embeddings = Embeddings(config, backends)
        self.layers = nn.ModuleList(Layer(config, backends) for _ in range(config.num_hidden_layers))
        self.register_buffer("slopes", kernels.alibi_slopes(config.num_attention_heads), persistent=False)

    def forward(self, batch: dict, keep: Tensor | None = None) -> Tensor:
        """Hidden states of every token, or of the tokens `keep` alone.

        Args:
            batch: input_ids (T,) int64, the sequences one after another; cu_seqlens (S + 1,) int32, where each begins, and the
                end; max_seqlen, the longest length, or more; token_type_ids (T,) int64, absent or None for all zero.
            keep: (M,) int64, the tokens whose last hidden state is wanted. The last layer leaves out the rest after its
                attention, which changes nothing for those kept.

        Returns:
            (T, D), or (M, D) with `keep`.
        """
        input_ids, token_type_ids = batch["input_ids"], batch.get("token_type_ids")
        cu_seqlens, max_seqlen = batch["cu_seqlens"], batch["max_seqlen"]
        tokens = len(input_ids)
        if self.few_shapes and not torch.compiler.is_compiling():
            input_ids, token_type_ids, cu_seqlens = round_stream(input_ids, token_type_ids, cu_seqlens)
            max_seqlen = max(max_seqlen, len(input_ids) - tokens)
        x_TD = self.embeddings(input_ids, token_type_ids)
        for layer in self.layers[:-1]:
            x_TD = layer(x_TD, cu_seqlens, max_seqlen, self.slopes)
        x_TD = self.layers[-1](x_TD, cu_seqlens, max_seqlen, self.slopes, keep)
        return x_TD if keep is not None else x_TD[:tokens]


def initialize(model: nn.Module, std: float) -> None:
    """N(0, std) for matrices and embeddings, 0 for biases; LayerNorm keeps its ones and zeros (BERT's initialisation)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
