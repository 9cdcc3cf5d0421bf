"""An architecture that takes padded rows: each word beside the mean of its row, through one layer."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.backends import Requirements, Resolved
from recipe import convert
from recipe.model.architecture import PADDED, Architecture
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.examples import full_rows


class Words(nn.Module):
    def __init__(self, sizes: EncoderConfig, backends: Backends) -> None:
        super().__init__()
        self.word = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        self.layer = nn.Linear(2 * sizes.hidden_size, sizes.hidden_size)

    def forward(self, batch: dict, keep: Tensor | slice | None = None) -> Tensor:
        words, real = self.word(batch["input_ids"]), batch["attention_mask"].unsqueeze(-1)
        mean = ((words * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)).expand_as(words)
        keep = batch["indices"] if keep is None else keep
        return torch.tanh(self.layer(torch.cat([words, mean], -1))).flatten(0, 1)[keep]


class BagOfWords(nn.Module):
    def __init__(self, sizes: EncoderConfig, backends: Backends) -> None:
        super().__init__()
        self.config, self.encoder = sizes, Words(sizes, backends)
        self.out = nn.Linear(sizes.hidden_size, sizes.vocab_size)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        logits, labels = self.masked_logits(batch), batch["labels"].flatten()[batch["masked_indices"]]
        count = max(1, len(labels))
        loss = F.cross_entropy(logits.float(), labels, reduction="sum") / count
        return {"loss": loss, "masked_accuracy": (logits.argmax(-1) == labels).sum() / count}

    def masked_logits(self, batch: dict) -> Tensor:
        return self.out(self.encoder(batch, batch["masked_indices"]))


def backends(attention: str, kernels: str, needs: Requirements) -> Backends:
    return Backends(Resolved("none", "no attention"), Resolved("torch", "plain"))


def save(model: nn.Module, folder: Path) -> None:
    convert.save_encoder(model, model.config, folder, "bag_of_words")


BAG_OF_WORDS = Architecture(
    "bag_of_words", PADDED, gated=False, backends=backends,
    masked_lm=lambda sizes, length, chosen: BagOfWords(sizes, chosen), largest_batch=full_rows, save=save,
    save_sizes=lambda model, folder: model.config.save(folder, "bag_of_words"), encoder=Words,
)  # fmt: skip
