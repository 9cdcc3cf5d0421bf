"""The baseline: Hugging Face's own BERT, trained from scratch, and its row in the table of architectures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedModel

from kernels.backends import Requirements, Resolved
from recipe import convert
from recipe.model import electra
from recipe.model.architecture import PADDED, Architecture, Shapes
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.examples import full_rows

# Of others' BERT: what only next-sentence prediction needs, and a buffer that older versions stored.
_LEFT_OUT = re.compile(r"bert\.pooler\.|cls\.seq_relationship\.|bert\.embeddings\.position_ids$")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}  # of LayerNorm's parameters, in what was converted from TensorFlow
WORD, _DECODER = "bert.bert.embeddings.word_embeddings.weight", "bert.cls.predictions.decoder.weight"
_BIASES = ("bert.cls.predictions.bias", "bert.cls.predictions.decoder.bias")  # one parameter


class HFBertForMaskedLM(nn.Module):
    """`BertForMaskedLM` on padded batches, its head on masked positions: on all of them it takes half of a small step."""

    def __init__(self, config: EncoderConfig, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.bert = BertForMaskedLM(_config(config, max_length))

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`loss` and `masked_accuracy` of input_ids, attention_mask, labels, all (S, L), at masked_indices (M,), places in the
        flattened (S, L)."""
        logits_MV = self.masked_logits(batch)
        labels_M = batch["labels"].flatten()[batch["masked_indices"]]
        count = max(1, len(labels_M))
        # The library's own loss, but 0 and not NaN where a microbatch of short texts has no label.
        loss = F.cross_entropy(logits_MV.float(), labels_M, reduction="sum") / count
        return {"loss": loss, "masked_accuracy": (logits_MV.detach().argmax(dim=-1) == labels_M).sum() / count}

    def masked_logits(self, batch: dict) -> Tensor:
        """(M, V) at these places."""
        hidden = self.bert.bert(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return self.bert.cls(hidden.flatten(0, 1)[batch["masked_indices"]])


class HFBertEncoder(nn.Module):
    """The same without a head, which has the same names."""

    def __init__(self, config: EncoderConfig, max_length: int) -> None:
        super().__init__()
        self.bert = BertModel(_config(config, max_length), add_pooling_layer=False)

    def forward(self, batch: dict) -> Tensor:
        """(S L, D) of input_ids and, where they are given, attention_mask and token_type_ids, all (S, L)."""
        given = {name: batch[name] for name in _INPUTS if name in batch}
        return self.bert(**given).last_hidden_state.flatten(0, 1)


def _config(config: EncoderConfig, max_length: int) -> BertConfig:
    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        hidden_act=config.hidden_act,
        type_vocab_size=config.type_vocab_size,
        pad_token_id=config.pad_token_id,
        hidden_dropout_prob=config.hidden_dropout_prob,
        attention_probs_dropout_prob=config.attention_probs_dropout_prob,
        layer_norm_eps=config.layer_norm_eps,
        initializer_range=config.initializer_range,
        max_position_embeddings=max_length,
        attn_implementation="sdpa",
    )


def _backends(attention: str, kernels: str, needs: Requirements) -> Backends:
    for key, wanted in (("attention", attention), ("kernels", kernels)):
        if wanted != "auto":
            raise ValueError(f"model.{key}: hf_bert runs on Hugging Face's own code; leave the key out")
    return Backends(*[Resolved("transformers", "Hugging Face's own BERT, attention by torch SDPA")] * 2)


def _masked_lm(sizes: EncoderConfig, length: int, backends: Backends) -> nn.Module:
    return HFBertForMaskedLM(sizes, length)


def _largest_batch(sequences: int, length: int, mask_rate: float) -> dict[str, Any]:
    """Of a mask (S, L) the library's version 4 would look up the values, which do not exist where memory is traced; (S, 1, L) it
    takes as it is. Version 5 knows where it is traced, and takes no other mask."""
    batch = full_rows(sequences, length, mask_rate)
    if transformers.__version__.startswith("4."):
        batch["attention_mask"] = batch["attention_mask"].unsqueeze(1)
    return batch


def _native(model: nn.Module) -> PreTrainedModel:
    """What a run keeps as transformers has it: BERT with its head or, where it learnt to detect, ELECTRA's discriminator."""
    if isinstance(model.bert, PreTrainedModel):
        return model.bert
    return electra.discriminator(model, model.bert.bert.config)


def _save_sizes(model: nn.Module, folder: Path) -> None:
    headed = isinstance(model.bert, PreTrainedModel)
    config = model.bert.config if headed else electra.config_of(model.bert.bert.config)
    config.save_pretrained(folder)


def _recognise(values: Mapping[str, Any], shapes: Shapes) -> EncoderConfig | None:
    if sizes := electra.recognise(values):
        return sizes
    if values.get("model_type") != "bert" or values.get("is_decoder"):
        return None
    if any("Wqkv" in name for name in shapes()):  # MosaicBERT's own classes, under BERT's name
        return None
    return EncoderConfig.from_dict(dict(values))


def _named(tensors: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """Names of `BertForMaskedLM`, of `BertForPreTraining` with what it has more, or of `BertModel`, which has no prefix; or of
    `ElectraForPreTraining`."""
    if any(name.startswith("electra.") for name in tensors):
        return electra.named(tensors)
    prefix = "" if any(name.startswith("bert.") for name in tensors) else "bert."
    found, left_out = {}, []
    for given, tensor in tensors.items():
        name = prefix + given
        stem, _, last = name.rpartition(".")
        if _LEFT_OUT.match(name):
            left_out.append(given)
        elif stem.endswith("LayerNorm"):
            found[f"bert.{stem}.{_OLD_NAMES.get(last, last)}"] = tensor
        else:
            found[f"bert.{name}"] = tensor
    convert.check_tied(_DECODER.removeprefix("bert."), found.get(_DECODER), found.get(WORD), where)
    for one, other in ((WORD, _DECODER), _BIASES, _BIASES[::-1]):
        if one in found:
            found[other] = found[one]
    return found, left_out


HF_BERT = Architecture(
    name="hf_bert",
    form=PADDED,
    gated=False,
    backends=_backends,
    masked_lm=_masked_lm,
    largest_batch=_largest_batch,
    save=lambda model, folder: _native(model).save_pretrained(folder),
    save_sizes=_save_sizes,
    prefix="bert.bert.",
    bare=lambda sizes, length, backends: HFBertEncoder(sizes, length),
    recognise=_recognise,
    named=_named,
    vocabulary_rows=(WORD, _DECODER, *_BIASES),
)
