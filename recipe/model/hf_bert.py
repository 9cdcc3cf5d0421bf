"""The baseline: Hugging Face's own BERT, trained from scratch, and its row in the table of architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from kernels.backends import Requirements, Resolved
from recipe.errors import UserError
from recipe.model.architecture import PADDED, Architecture
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.examples import full_rows


class HFBertForMaskedLM(nn.Module):
    """`BertForMaskedLM` on padded batches, its head on every position, as its users run it."""

    def __init__(self, config: EncoderConfig, max_length: int) -> None:
        super().__init__()
        self.config = config
        self.bert = BertForMaskedLM(
            BertConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                hidden_dropout_prob=config.hidden_dropout_prob,
                attention_probs_dropout_prob=config.attention_probs_dropout_prob,
                layer_norm_eps=config.layer_norm_eps,
                max_position_embeddings=max_length,
                attn_implementation="sdpa",
            )
        )

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`loss` and `masked_accuracy` at the labels of input_ids, attention_mask, labels, all (S, L); -100 is no label."""
        logits = self.bert(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits
        labels = batch["labels"]
        labelled = labels != -100
        count = labelled.sum().clamp(min=1)
        # The library's own loss, but 0 and not NaN where a microbatch of short texts has no label.
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum") / count
        right = (logits.detach().argmax(dim=-1) == labels) & labelled
        return {"loss": loss, "masked_accuracy": right.sum() / count}


def _backends(attention: str, kernels: str, needs: Requirements) -> Backends:
    for key, wanted in (("attention", attention), ("kernels", kernels)):
        if wanted != "auto":
            raise ValueError(f"model.{key}: hf_bert runs on Hugging Face's own code; leave the key out")
    return Backends(*[Resolved("transformers", "Hugging Face's own BERT, attention by torch SDPA")] * 2)


def _masked_lm(sizes: EncoderConfig, length: int, backends: Backends) -> nn.Module:
    return HFBertForMaskedLM(sizes, length)


def _largest_batch(sequences: int, length: int, mask_rate: float) -> dict[str, Any]:
    """Of a mask (S, L) the library would look up the values, which do not exist where memory is traced; (S, 1, L) it takes as it
    is."""
    batch = full_rows(sequences, length, mask_rate)
    return {**batch, "attention_mask": batch["attention_mask"].unsqueeze(1)}


def _read(folder: Path) -> tuple[EncoderConfig, dict[str, Tensor]]:
    raise UserError(
        "init_from: hf_bert's positions are made for one length, so it starts from no other run; leave the key out"
    )


HF_BERT = Architecture(
    name="hf_bert",
    form=PADDED,
    gated=False,
    predicts_all=True,
    backends=_backends,
    masked_lm=_masked_lm,
    largest_batch=_largest_batch,
    save=lambda model, folder: model.bert.save_pretrained(folder),
    save_sizes=lambda model, folder: model.bert.config.save_pretrained(folder),
    read=_read,
)
