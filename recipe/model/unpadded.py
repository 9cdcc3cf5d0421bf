"""BERT of transformers without its padding, for prediction: its own modules on the stream of real tokens.

A padded batch of ragged texts is padding to a tenth or a half, on which every product is made; and a head that reads the first
token alone needs nothing else of the last layer. Neither shows in what comes out.

Shapes: S sequences, L padded length, T real tokens, K tokens whose hidden states are read, N heads, H head size, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

import kernels
from kernels.backends import Requirements, resolve
from recipe.model.huggingface import HFEncoder, HFFineTuned

# Whose layers are BERT's, and whose head for a whole text reads the first token.
MODEL_TYPES = ("bert", "electra", "roberta", "xlm-roberta", "camembert")
_READS_FIRST = "AutoModelForSequenceClassification"


class Unpadded(nn.Module):
    """In the place of a `BertModel` or its like, in evaluation: padded batches in, the same hidden states out.

    With `first` these are of the first token of each text alone, (S, 1, D).
    """

    def __init__(self, model: PreTrainedModel, attention: str, first: bool) -> None:
        """`attention` is a backend's name. The model's queries, keys and values become views of one matrix."""
        super().__init__()
        self.model = model
        self.heads = model.config.num_attention_heads
        self.attention = attention
        self.first = first
        self.qkv = [_joined(layer.attention.self) for layer in model.encoder.layer]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None, **_: object
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Of (S, L) each: last_hidden_state (S, L, D), 0 at padding, or (S, 1, D); pooler_output where the model has one."""
        ids_T, indices_T, cu_seqlens, longest = kernels.unpad(input_ids, attention_mask)
        types_T = None if token_type_ids is None else token_type_ids.flatten()[indices_T]
        keep_K = cu_seqlens[:-1].long() if self.first else None
        x_KD = self._encode(ids_T, types_T, cu_seqlens, longest, keep_K)
        hidden = x_KD[:, None] if self.first else kernels.pad(x_KD, indices_T, *input_ids.shape)
        pooler = getattr(self.model, "pooler", None)
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden, pooler_output=None if pooler is None else pooler(hidden)
        )

    def _encode(
        self, ids_T: Tensor, types_T: Tensor | None, cu_seqlens: Tensor, longest: int, keep_K: Tensor | None
    ) -> Tensor:
        x_TD = self._embed(ids_T, types_T, cu_seqlens)
        for layer, (weight, bias) in zip(self.model.encoder.layer, self.qkv, strict=True):
            qkv_T3NH = F.linear(x_TD, weight, bias).unflatten(-1, (3, self.heads, -1))
            mixed_TD = kernels.attention_packed(qkv_T3NH, cu_seqlens, longest, backend=self.attention).flatten(1)
            if keep_K is not None and layer is self.model.encoder.layer[-1]:
                mixed_TD, x_TD = mixed_TD[keep_K], x_TD[keep_K]
            x_TD = layer.attention.output(mixed_TD, x_TD)
            x_TD = layer.output(layer.intermediate(x_TD), x_TD)
        return x_TD

    def _embed(self, ids_T: Tensor, types_T: Tensor | None, cu_seqlens: Tensor) -> Tensor:
        embeddings = self.model.embeddings
        padding = embeddings.position_embeddings.padding_idx  # RoBERTa's kin count from behind the padding's own row
        starts_T = cu_seqlens[:-1].long().repeat_interleave(cu_seqlens.diff())
        positions_T = torch.arange(len(ids_T), device=ids_T.device) - starts_T + (0 if padding is None else padding + 1)
        types = torch.zeros_like(ids_T) if types_T is None else types_T
        x_TD = embeddings(input_ids=ids_T[None], token_type_ids=types[None], position_ids=positions_T[None])[0]
        project = getattr(self.model, "embeddings_project", None)  # ELECTRA's, where its embeddings are narrower
        return x_TD if project is None else project(x_TD)


def _joined(attention: nn.Module) -> tuple[Tensor, Tensor]:
    """Weights (3 D, D) and biases (3 D,) of the three projections, which are views of them from now on."""
    parts = (attention.query, attention.key, attention.value)
    joined = tuple(torch.cat([getattr(part, name).detach() for part in parts]) for name in ("weight", "bias"))
    for name, whole in zip(("weight", "bias"), joined, strict=True):
        for part, piece in zip(parts, whole.chunk(3), strict=True):
            getattr(part, name).data = piece
    return joined


def unpad_for_prediction(model: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Put `Unpadded` into a fine-tuned model of Hugging Face's, in evaluation and on its device, where that can be done.

    Args:
        model: any; what is not of `MODEL_TYPES` stays as it is.
        device: cpu or cuda.
        dtype: that the activations will have.
    """
    if isinstance(model, HFFineTuned):
        whole, first = model.model, model.auto_class.__name__ == _READS_FIRST
        if base := _unpadded(whole.base_model, first, device, dtype):
            setattr(whole, whole.base_model_prefix, base)
    for holder in (one for one in model.modules() if isinstance(one, HFEncoder)):
        if base := _unpadded(holder.model, False, device, dtype):
            holder.model = base


def _unpadded(base: PreTrainedModel, first: bool, device: str, dtype: torch.dtype) -> Unpadded | None:
    config = base.config
    if config.model_type not in MODEL_TYPES or getattr(config, "position_embedding_type", "absolute") != "absolute":
        return None
    head_dim = config.hidden_size // config.num_attention_heads
    return Unpadded(base, resolve("attention", "auto", Requirements(device, dtype, head_dim, alibi=False)).name, first)
