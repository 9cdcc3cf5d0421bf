"""What sits on the encoder: masked-language-model prediction, or the head of a kind of fine-tuning.

Shapes: S sequences, L padded length, T real tokens, M masked and K kept ones, D hidden size, V vocabulary, R rows of C outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from kernels.reference import IGNORED_LABEL
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends, Encoder, LayerNorm, initialize
from recipe.model.shapes import round_predictions


@dataclass
class Output:
    """What a model called the Hugging Face way returns."""

    logits: Tensor
    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None


class PredictionHead(nn.Module):
    """Hidden states to the space of the word embeddings, whose matrix, tied, is the decoder."""

    def __init__(self, config: EncoderConfig, backends: Backends) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.biases)
        self.norm = LayerNorm(config, backends)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x_MD: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(x_MD)))


class MosaicBertForMaskedLM(nn.Module):
    """The pretraining model, MosaicBERT's and that of every row with its encoder.

    Calling it takes a stream; `padded` takes padded batches, as Hugging Face's models do.
    """

    def __init__(self, config: EncoderConfig, backends: Backends | None = None) -> None:
        super().__init__()
        self.config = config
        self.backends = backends or Backends()
        self.encoder = Encoder(config, self.backends)
        self.encoder.embeddings.sparse_gradient = self.backends.kernels.fact("kernels", "adds_sparse")
        self.head = PredictionHead(config, self.backends)
        initialize(self, config.initializer_range)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`loss` and `masked_accuracy` at the masked positions of a stream, float32 scalars.

        `batch` holds input_ids (T,) int64, cu_seqlens (S + 1,) int32, max_seqlen, masked_indices (M,) int64, labels (M,) int64.
        Only in training are the last `narrow_layers` narrow: what is evaluated is what is kept, the plain encoder.
        """
        keep_M, labels_M = batch["masked_indices"], batch["labels"]
        if self.encoder.few_shapes and not torch.compiler.is_compiling():
            keep_M, labels_M = round_predictions(keep_M, labels_M)
        if self.training and self.config.narrow_layers > 1:
            hidden_MD = self.encoder(batch, keep_M, self.config.narrow_layers, labels_M != IGNORED_LABEL)
        else:
            hidden_MD = self.encoder(batch, keep_M)
        loss, accuracy = kernels.masked_cross_entropy(
            self.head(hidden_MD),
            self.encoder.embeddings.word.weight,
            self.head.bias,
            labels_M,
            backend=self.backends.kernels.name,
        )
        return {"loss": loss, "masked_accuracy": accuracy}

    def masked_logits(self, batch: dict) -> Tensor:
        """(M, V) of a stream at its tokens `masked_indices` (M,) int64: input_ids (T,), cu_seqlens (S + 1,) int32, max_seqlen."""
        keep_M = batch["masked_indices"]
        wanted = len(keep_M)
        if self.encoder.few_shapes and not torch.compiler.is_compiling():
            keep_M, _ = round_predictions(keep_M, keep_M)
        hidden_MD = self.encoder(batch, keep_M)
        return F.linear(self.head(hidden_MD), self.encoder.embeddings.word.weight, self.head.bias)[:wanted]

    def padded(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """Logits (S, L, V) of padded sequences (S, L), padding's hidden state taken as 0; with labels (S, L), -100 where there is
        none, also the loss."""
        backend = self.backends.kernels.name
        batch, indices_T = _stream(input_ids, attention_mask, token_type_ids, backend)
        hidden_TD = self.encoder(batch)
        hidden_SLD = kernels.pad(hidden_TD, indices_T, *input_ids.shape, backend=backend)
        logits = F.linear(self.head(hidden_SLD), self.encoder.embeddings.word.weight, self.head.bias)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)
        return Output(logits, loss, hidden_SLD)


class FineTuned(nn.Module):
    """An encoder with the head of a kind of fine-tuning on it."""

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        keep: Callable[[dict], Tensor | None],
        pool: Callable[[Tensor, dict], Tensor],
    ) -> None:
        """`keep` gives a batch's tokens whose hidden states are looked at, `pool` makes of them what the head takes."""
        super().__init__()
        self.encoder = encoder
        self.head = head
        self._keep = keep
        self._pool = pool

    def forward(self, batch: dict) -> Tensor:
        """(R, C), what the head makes of the hidden states (K, D)."""
        return self.head(self._pool(self.encoder(batch, self._keep(batch)), batch))


def _stream(
    input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, backend: str
) -> tuple[dict, Tensor]:
    """A padded batch as a stream, and the flat positions of its tokens in the batch."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    ids_T, indices_T, cu_seqlens, max_seqlen = kernels.unpad(input_ids, mask, backend=backend)
    types_T = None if token_type_ids is None else token_type_ids.flatten()[indices_T]
    batch = {"input_ids": ids_T, "token_type_ids": types_T, "cu_seqlens": cu_seqlens, "max_seqlen": max_seqlen}
    return batch, indices_T
