"""An objective that needs a second network, and batches of its own: every chosen token is masked, a small network fills them in,
and the encoder says what stood there before."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recipe.data.batch import Batch, Collator, Samples
from recipe.model.architecture import Architecture
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.objectives.masked_lm import flops
from recipe.objectives.objective import Counts, Objective


@dataclass(frozen=True)
class AllMasked:
    """None of the chosen tokens stays as it is or becomes a random one."""

    masking: Collator

    def __call__(self, samples: Samples) -> Batch:
        batch = self.masking(samples)
        batch["input_ids"][batch["masked_indices"]] = self.masking.masker.mask_id
        return batch


class TwoNetworks(nn.Module):
    def __init__(self, architecture: Architecture, sizes: EncoderConfig, length: int, backends: Backends) -> None:
        super().__init__()
        small = dataclasses.replace(sizes, num_hidden_layers=1)
        self.filler = architecture.masked_lm(small, length, backends)
        self.main = architecture.masked_lm(sizes, length, backends)

    def forward(self, batch: dict) -> dict[str, Tensor]:
        filled = self.filler(batch)
        ids = batch["input_ids"].clone()
        with torch.no_grad():
            ids[batch["masked_indices"]] = self.filler.masked_logits(batch).argmax(-1)
        loss = self.main({**batch, "input_ids": ids})["loss"]
        return {"loss": loss + filled["loss"], "filler_loss": filled["loss"], "main_loss": loss}


def both(architecture: Architecture, sizes: dict, counts: Counts) -> float:
    return flops(architecture, sizes, counts) + flops(architecture, {**sizes, "num_hidden_layers": 1}, counts)


TWO_NETWORKS = Objective(
    "two_networks", ("loss", "filler_loss", "main_loss"), TwoNetworks, both, encoder="main", collator=AllMasked
)
