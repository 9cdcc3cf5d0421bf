"""The baseline: Hugging Face's own BERT, behind the two methods that this project's models have."""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

from recipe.model.config import EncoderConfig


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

    def masked_lm_loss(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Loss and accuracy at the labelled positions: input_ids, attention_mask, labels, all (S, L); -100 is no label."""
        logits = self.bert(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits
        labels = batch["labels"]
        labelled = labels != -100
        count = labelled.sum().clamp(min=1)
        # The library's own loss, but 0 and not NaN where a microbatch of short texts has no label.
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum") / count
        right = (logits.detach().argmax(dim=-1) == labels) & labelled
        return loss, right.sum() / count

    def save(self, folder: Path) -> None:
        """Hugging Face's own folder: config.json and model.safetensors."""
        self.bert.save_pretrained(folder)

    def save_config(self, folder: Path) -> None:
        """Its config.json alone."""
        self.bert.config.save_pretrained(folder)


class HFForSequenceClassification(nn.Module):
    """Any BERT-family folder with Hugging Face's classification head, on padded batches.

    Without `pretrained` the folder gives the sizes alone, and the caller the weights.
    """

    def __init__(self, folder: Path, num_labels: int, pretrained: bool = True) -> None:
        super().__init__()
        self.num_labels = num_labels
        config = AutoConfig.from_pretrained(folder, num_labels=num_labels)
        if pretrained:
            self.model = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
        else:
            self.model = AutoModelForSequenceClassification.from_config(config)

    def sequence_logits(self, batch: dict) -> Tensor:
        """(S, C) of input_ids, attention_mask, token_type_ids, all (S, L)."""
        keys = ("input_ids", "attention_mask", "token_type_ids")
        return self.model(**{key: batch[key] for key in keys if key in batch}).logits


def longest_input(folder: Path) -> int | None:
    """How many positions the folder's model has embeddings for; None where it is not limited."""
    return getattr(BertConfig.from_pretrained(folder), "max_position_embeddings", None)
