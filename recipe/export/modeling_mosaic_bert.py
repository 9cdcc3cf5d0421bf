"""MosaicBERT (arXiv 2312.17482) for Hugging Face's transformers 4.57 and 5: this one file, torch and transformers.

A post-norm BERT encoder without position embeddings: ALiBi (arXiv 2108.12409), the same in both directions, supplies order, and
no length is too long for it. Its feed-forward layers are gated linear units (arXiv 2002.05202). Where a mask is given, padding is
removed before the first layer and put back after the last, as zeros; only attention sees rows of sequences.

    AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)    # AutoModel, AutoModelForSequenceClassification, ...

`attn_implementation` is sdpa (the default), eager, which keeps padding and can be traced, or, where flash-attn is installed,
flash_attention_2. Parameters have the names of the reference implementation (mosaicml/examples, benchmarks/bert).

Shapes: S sequences, L padded length, l longest sequence, T real tokens, N heads, H head size, D hidden size, F feed-forward size,
V vocabulary, C labels. X stands for (S, L), or for (T,) where padding is removed.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils import is_flash_attn_2_available
from transformers.utils.generic import can_return_tuple

if is_flash_attn_2_available():
    from flash_attn import flash_attn_varlen_func

EAGER, FLASH = "eager", "flash_attention_2"


# Base, under BERT's names; `vocab_size` is 30,522 rounded up to a multiple of 64.
DEFAULTS = {
    "vocab_size": 30528,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.0,
    "classifier_dropout": None,  # as hidden_dropout_prob
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}


class MosaicBertConfig(PretrainedConfig):
    model_type = "mosaic_bert"

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**DEFAULTS, **kwargs})


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8/n), 2^(-16/n), ... for n a power of two; otherwise those of the power of two below, then every second one of the
    power of two above."""

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 2 ** math.floor(math.log2(heads))
    return geometric(below) + geometric(2 * below)[0::2][: heads - below]


class Rows:
    """Where the real tokens of a batch are, and what attention needs to know of its sequences.

    With sdpa and flash-attn padding is removed: the model computes on T real tokens, which attention lays out as rows of the
    longest sequence's length l, from the left; flash-attn takes them as they are. Eager attention keeps the rows it is given.
    A token's position is its number among the real ones of its sequence, so padding may be on either side.
    """

    def __init__(
        self, real_SL: Tensor | None, shape: tuple[int, int], heads: int, attention: str, like: Tensor
    ) -> None:
        """`like` has the device and the dtype that attention computes in."""
        self.shape, self.real_SL = shape, real_SL
        self.indices_T = self.places_T = self.cu_seqlens = (
            None  # of real tokens in (S L) and in (S l); of flash-attn's sequences
        )
        slopes_N = torch.tensor(alibi_slopes(heads), device=like.device)
        sequences, length = shape
        position_RL = torch.arange(length, device=like.device)[None]
        if real_SL is not None:
            position_RL = real_SL.long().cumsum(dim=1) - 1
        if attention == FLASH or (attention != EAGER and real_SL is not None and not bool(real_SL.all())):
            real = torch.ones(shape, dtype=torch.bool, device=like.device) if real_SL is None else real_SL
            lengths_S = real.sum(dim=1)
            self.longest = int(lengths_S.max()) if lengths_S.numel() else 0
            self.indices_T = real.flatten().nonzero()[:, 0]
            if attention == FLASH:
                self.cu_seqlens = F.pad(lengths_S.cumsum(0), (1, 0)).int()
                self.slopes_N = slopes_N
                return
            rows_S1 = torch.arange(sequences, device=like.device)[:, None] * self.longest
            self.places_T = (rows_S1 + position_RL).flatten()[self.indices_T]
            position_RL = torch.arange(self.longest, device=like.device)[None]
            real_SL = position_RL < lengths_S[:, None]
        distance = (position_RL[:, None, :, None] - position_RL[:, None, None, :]).abs()
        bias = (-slopes_N[:, None, None] * distance).to(like.dtype)  # (S or 1, N, l, l)
        # The least number and not -inf: a row without any token must not become NaN.
        hidden = torch.finfo(like.dtype).min
        self.bias = bias if real_SL is None else bias.masked_fill(~real_SL[:, None, None, :], hidden)

    def remove(self, x: Tensor) -> Tensor:
        """(S, L, ...) to X."""
        return x if self.indices_T is None else x.flatten(0, 1)[self.indices_T]

    def restore(self, x: Tensor) -> Tensor:
        """X to (S, L, ...), zero where there is padding."""
        if self.indices_T is not None:
            flat = x.new_zeros((self.shape[0] * self.shape[1], *x.shape[1:]))
            return flat.index_copy(0, self.indices_T, x).unflatten(0, self.shape)
        return x if self.real_SL is None else x * self.real_SL[:, :, None].to(x.dtype)

    def spread(self, x: Tensor) -> Tensor:
        """X to attention's rows (S, l, ...)."""
        if self.places_T is None:
            return x
        flat = x.new_zeros((self.shape[0] * self.longest, *x.shape[1:]))
        return flat.index_copy(0, self.places_T, x).unflatten(0, (self.shape[0], self.longest))

    def gather(self, x: Tensor) -> Tensor:
        """Attention's rows back to X."""
        return x if self.places_T is None else x.flatten(0, 1)[self.places_T]

    def first(self, hidden_SLD: Tensor) -> Tensor:
        """(S, D): each sequence's first real token, [CLS]."""
        if self.real_SL is None:
            return hidden_SLD[:, 0]
        places_S1D = self.real_SL.int().argmax(dim=1)[:, None, None].expand(-1, 1, hidden_SLD.shape[2])
        return hidden_SLD.gather(1, places_S1D)[:, 0]  # indexing by arange would fix S where this is traced


class MosaicBertEmbeddings(nn.Module):
    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, words_XD: Tensor, token_type_ids_X: Tensor | None) -> Tensor:
        types = self.token_type_embeddings
        types_XD = types.weight[0] if token_type_ids_X is None else types(token_type_ids_X)
        return self.dropout(self.LayerNorm(words_XD + types_XD))


class SelfAttentionOverRows(nn.Module):
    """softmax(q k' / sqrt(H) - slope |i - j|) v, in each sequence."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.Wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dropout_p = config.attention_probs_dropout_prob

    def forward(self, x_XD: Tensor, rows: Rows, attention: str) -> tuple[Tensor, Tensor | None]:
        """(X, D), and, eager alone, the weights (S, N, L, L)."""
        dropout_p = self.dropout_p if self.training else 0.0
        qkv = self.Wqkv(x_XD).unflatten(-1, (3, self.heads, -1))  # (X, 3, N, H)
        if attention == FLASH:
            bounds = (rows.cu_seqlens, rows.cu_seqlens, rows.longest, rows.longest)
            out_TNH = flash_attn_varlen_func(*qkv.unbind(1), *bounds, dropout_p=dropout_p, alibi_slopes=rows.slopes_N)
            return out_TNH.flatten(1), None
        q, k, v = rows.spread(qkv).permute(2, 0, 3, 1, 4)  # (S, N, l, H) each
        bias, weights = rows.bias.to(q.dtype), None
        if attention == EAGER:
            scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias
            weights = scores.softmax(dim=-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
            out = F.dropout(weights, dropout_p) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout_p)
        return rows.gather(out.transpose(1, 2).flatten(2)), weights


class MosaicBertSelfOutput(nn.Module):
    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, mixed_XD: Tensor, x_XD: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(mixed_XD)) + x_XD)


class AttentionWithResidual(nn.Module):
    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.self = SelfAttentionOverRows(config)
        self.output = MosaicBertSelfOutput(config)

    def forward(self, x_XD: Tensor, rows: Rows, attention: str) -> tuple[Tensor, Tensor | None]:
        mixed_XD, weights = self.self(x_XD, rows, attention)
        return self.output(mixed_XD, x_XD), weights


class MosaicBertGatedUnit(nn.Module):
    """LayerNorm(W (act(a) * b) + x), where a and b are the halves of one projection. Dropout is inside the unit alone."""

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.gated_layers = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.act = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.wo = nn.Linear(config.intermediate_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_XD: Tensor) -> Tensor:
        a_XF, b_XF = self.gated_layers(x_XD).chunk(2, dim=-1)
        return self.layernorm(self.wo(self.dropout(self.act(a_XF) * b_XF)) + x_XD)


class MosaicBertLayer(GradientCheckpointingLayer):
    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.attention = AttentionWithResidual(config)
        self.mlp = MosaicBertGatedUnit(config)

    def forward(self, x_XD: Tensor, rows: Rows, attention: str) -> tuple[Tensor, Tensor | None]:
        x_XD, weights = self.attention(x_XD, rows, attention)
        return self.mlp(x_XD), weights


class MosaicBertPreTrainedModel(PreTrainedModel):
    config_class = MosaicBertConfig
    base_model_prefix = "bert"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MosaicBertLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base_model.embeddings.word_embeddings = value

    def encode(self, *inputs: Tensor | None, **kwargs) -> tuple[BaseModelOutputWithPooling, dict, dict]:
        """What the encoder makes of a head's inputs, what of it is passed on, and what `Trainer` says to the loss."""
        of_loss = {name: kwargs.pop(name) for name in ("num_items_in_batch",) if name in kwargs}
        out = self.bert(*inputs, **kwargs, return_dict=True)
        return out, {"hidden_states": out.hidden_states, "attentions": out.attentions}, of_loss


class MosaicBertModel(MosaicBertPreTrainedModel):
    """Token ids to hidden states. A pooler there is only under a sequence classifier, which trains it."""

    def __init__(self, config: MosaicBertConfig, add_pooling_layer: bool = False) -> None:
        super().__init__(config)
        self.embeddings = MosaicBertEmbeddings(config)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(MosaicBertLayer(config) for _ in range(config.num_hidden_layers))
        pooler = {"dense": nn.Linear(config.hidden_size, config.hidden_size)}
        self.pooler = nn.ModuleDict(pooler) if add_pooling_layer else None
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """`last_hidden_state` (S, L, D), zero at padding, and `pooler_output` (S, D) where there is a pooler.

        input_ids, attention_mask, which is 0 at padding, and token_type_ids are (S, L), inputs_embeds, instead of input_ids,
        (S, L, D). Attentions are computed eagerly.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        given = inputs_embeds if input_ids is None else input_ids
        shape = given.shape[:2]
        if attention_mask is not None and attention_mask.shape != shape:
            raise ValueError(
                f"attention_mask is {tuple(attention_mask.shape)}; it must be {tuple(shape)}, as the input"
            )
        real_SL = None if attention_mask is None else attention_mask != 0
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        weighed = self.config.output_attentions if output_attentions is None else output_attentions
        attention = EAGER if weighed else self.config._attn_implementation
        like = _computed(self.embeddings.word_embeddings.weight)
        rows = Rows(real_SL, shape, self.config.num_attention_heads, attention, like)
        given_X = rows.remove(given)
        words_XD = self.embeddings.word_embeddings(given_X) if inputs_embeds is None else given_X
        x_XD = self.embeddings(words_XD, None if token_type_ids is None else rows.remove(token_type_ids))
        hidden_states, attentions = [x_XD], []
        for layer in self.encoder.layer:
            x_XD, weights = layer(x_XD, rows, attention)
            hidden_states.append(x_XD)
            attentions.append(weights)
        hidden_SLD = rows.restore(x_XD)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_SLD,
            pooler_output=None if self.pooler is None else self.pooler["dense"](rows.first(hidden_SLD)).tanh(),
            hidden_states=tuple(map(rows.restore, hidden_states)) if states else None,
            attentions=tuple(attentions) if weighed else None,
        )


def _computed(weight: Tensor) -> Tensor:
    """An empty tensor of the device and the dtype that products of this weight are computed in."""
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return torch.empty(0, dtype=dtype, device=weight.device)


class MosaicBertTransform(nn.Module):
    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x_SLD: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(x_SLD)))  # GELU whatever the feed-forward layers have


class MosaicBertMaskedLMHead(nn.Module):
    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__()
        self.predictions = nn.Module()
        self.predictions.transform = MosaicBertTransform(config)
        self.predictions.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x_SLD: Tensor) -> Tensor:
        return self.predictions.decoder(self.predictions.transform(x_SLD))


class MosaicBertForMaskedLM(MosaicBertPreTrainedModel):
    """Logits (S, L, V) of every position, by a decoder whose matrix is the word embeddings'."""

    _tied_weights_keys = {"cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight"}

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.bert = MosaicBertModel(config)
        self.cls = MosaicBertMaskedLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.cls.predictions.decoder

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.cls.predictions.decoder = value

    @can_return_tuple
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
                token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
                labels: Tensor | None = None, **kwargs) -> MaskedLMOutput:  # fmt: skip
        """With labels (S, L), -100 where there is none, also the loss; the rest as in `MosaicBertModel`."""
        out, states, of_loss = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.cls(out.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **of_loss)
        return MaskedLMOutput(loss=loss, logits=logits, **states)


class MosaicBertClassifier(MosaicBertPreTrainedModel):
    """An encoder, dropout and a linear layer of C outputs."""

    pooled = False

    def __init__(self, config: MosaicBertConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.bert = MosaicBertModel(config, add_pooling_layer=self.pooled)
        dropout = config.classifier_dropout
        self.dropout = nn.Dropout(config.hidden_dropout_prob if dropout is None else dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


class MosaicBertForSequenceClassification(MosaicBertClassifier):
    """Logits (S, C) of each sequence's first token."""

    pooled = True

    @can_return_tuple
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
                token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
                labels: Tensor | None = None, **kwargs) -> SequenceClassifierOutput:  # fmt: skip
        """With labels also the loss that `config.problem_type` names: classes (S,), several of them (S, C), or numbers (S,); the
        rest as in `MosaicBertModel`."""
        out, states, of_loss = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(out.pooler_output))
        arguments = {"labels": labels, "pooled_logits": logits, "config": self.config}
        loss = None if labels is None else self.loss_function(**arguments, **of_loss)
        return SequenceClassifierOutput(loss=loss, logits=logits, **states)


class MosaicBertForTokenClassification(MosaicBertClassifier):
    """Logits (S, L, C) of every token."""

    @can_return_tuple
    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None,
                token_type_ids: Tensor | None = None, inputs_embeds: Tensor | None = None,
                labels: Tensor | None = None, **kwargs) -> TokenClassifierOutput:  # fmt: skip
        """With labels (S, L), -100 where there is none, also the loss; the rest as in `MosaicBertModel`."""
        out, states, of_loss = self.encode(input_ids, attention_mask, token_type_ids, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(out.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **of_loss)
        return TokenClassifierOutput(loss=loss, logits=logits, **states)
