"""Replaced token detection (ELECTRA, arXiv 2003.10555): a small generator fills in the masked tokens by drawing from what it
predicts, and the encoder says of every token whether it is the original.

Both have one matrix of word embeddings. For a narrower generator it is projected once a batch, and the projection serves its
embeddings and its decoder.

Shapes: T tokens of a stream, or places of padded rows, M masked ones, V vocabulary, D the encoder's width, G the generator's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from recipe.model.architecture import Architecture
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.flops import BACKWARD
from recipe.objectives.detector import IGNORED_LABEL, Detector, detector_flops, labels_of, no_detector
from recipe.objectives.masked_lm import flops
from recipe.objectives.objective import Counts, Objective, fates

# Of a sequence of points in the unit square that leaves no gaps (the plastic number's powers): document and position give one.
_STEPS = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True)
class Generator:
    """What the group `generator` of a config says; absent sizes follow the encoder's."""

    hidden_size: int | None
    num_hidden_layers: int | None
    detection_weight: float

    def sizes(self, encoder: EncoderConfig) -> EncoderConfig:
        """Heads as large as the encoder's, a third as many where nothing else is said; the feed-forward as much narrower."""
        width = self.hidden_size or max(encoder.num_attention_heads // 3, 1) * encoder.head_dim
        return dataclasses.replace(
            encoder,
            hidden_size=width,
            num_attention_heads=width // encoder.head_dim,
            intermediate_size=max(encoder.intermediate_size * width // encoder.hidden_size, 1),
            num_hidden_layers=self.num_hidden_layers or encoder.num_hidden_layers,
        )

    def problem(self, architecture: Architecture, encoder: EncoderConfig) -> str | None:
        width = self.hidden_size
        if width and width > encoder.hidden_size:
            return f"generator.hidden_size={width} is wider than the encoder, {encoder.hidden_size}; give at most that"
        if width and width % encoder.head_dim:
            return f"generator.hidden_size={width}: give a multiple of the encoder's head size, {encoder.head_dim}"
        return no_detector("replaced_tokens", architecture, encoder)


class MaskedLogits(nn.Module):
    """A masked language model whose word embeddings come from outside, for its decoder too."""

    def __init__(self, network: nn.Module, word: str) -> None:
        super().__init__()
        self.network = network
        own, every = network.get_parameter(word), network.named_parameters(remove_duplicate=False)
        tied = [name for name, parameter in every if parameter is own]
        self._words = [f"network.{name}" for name in tied]
        for place, _, name in (one.rpartition(".") for one in tied):
            network.get_submodule(place).register_parameter(name, None)

    def forward(self, batch: dict) -> Tensor:
        return self.network.masked_logits(batch)

    def with_word(self, word_VG: Tensor, batch: dict) -> Tensor:
        """(M, V)"""
        return functional_call(self, dict.fromkeys(self._words, word_VG), (batch,))


class ReplacedTokens(nn.Module):
    def __init__(
        self, architecture: Architecture, sizes: EncoderConfig, small: EncoderConfig, weight: float, length: int,
        backends: Backends,
    ) -> None:  # fmt: skip
        """`small` are the generator's sizes, `weight` is that of detection's loss per masked token."""
        super().__init__()
        self._word, self._weight = architecture.vocabulary_rows[0], weight
        self.discriminator = Detector(architecture, sizes, length, backends)
        self.generator = MaskedLogits(architecture.masked_lm(small, length, backends), self._word)
        narrower = small.hidden_size != sizes.hidden_size
        self.projection = nn.Linear(sizes.hidden_size, small.hidden_size, bias=False) if narrower else None

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """Per masked token: `generator_loss`; `detection_loss` and `found`, as `Detector.detect` has them; `loss`,
        the weighted sum.

        `batch` is a stream or padded rows, with document_ids in evaluation.
        """
        ids, masked_M, labels_M = batch["input_ids"], batch["masked_indices"], labels_of(batch)
        word_VD = self.discriminator.get_parameter(self._word)
        word_VG = word_VD if self.projection is None else self.projection(word_VD)
        logits_MV = self.generator.with_word(word_VG, batch).float()
        labelled_M = labels_M != IGNORED_LABEL
        count = labelled_M.sum().clamp(min=1)
        generator_loss = F.cross_entropy(logits_MV, labels_M, reduction="sum", ignore_index=IGNORED_LABEL) / count
        drawn_M = draw(logits_MV.detach(), self._chances(batch, logits_MV))
        ids_T = ids.flatten()
        shown_T = ids_T.index_put((masked_M,), torch.where(labelled_M, drawn_M, ids_T[masked_M]))
        detection_loss, found = self.discriminator.detect(batch, shown_T.view_as(ids))
        loss = generator_loss + self._weight * detection_loss
        return {"loss": loss, "generator_loss": generator_loss, "detection_loss": detection_loss, "found": found}

    def _chances(self, batch: dict, logits_MV: Tensor) -> Tensor:
        """(M,) in [0, 1): random in training; in evaluation of document and position alone, so that what is evaluated depends
        neither on microbatches nor on when, and takes nothing from training's random numbers."""
        if self.training:
            return torch.rand(len(logits_MV), device=logits_MV.device)
        sequence_M, position_M = _places(batch)
        points_M = _STEPS[0] * batch["document_ids"][sequence_M].double() + _STEPS[1] * position_M.double()
        return points_M.frac().abs().to(logits_MV.dtype)


def _places(batch: dict) -> tuple[Tensor, Tensor]:
    """(M,) each: the sequence that a masked token is of, and its position therein."""
    masked_M, starts = batch["masked_indices"], batch.get("cu_seqlens")
    if starts is None:
        length = batch["input_ids"].shape[1]
        return masked_M // length, masked_M % length
    sequence_M = torch.searchsorted(starts, masked_M.to(starts.dtype), right=True) - 1
    return sequence_M, masked_M - starts[sequence_M]


def draw(logits_MV: Tensor, chances_M: Tensor) -> Tensor:
    """(M,) entries of the vocabulary, each where its distribution's sum passes the chance: with chances that are uniform, draws
    from the distribution, at one number each."""
    sums_MV = logits_MV.softmax(-1).cumsum(-1)
    drawn_M1 = torch.searchsorted(sums_MV, chances_M.unsqueeze(-1) * sums_MV[:, -1:], right=True)
    return drawn_M1.squeeze(-1).clamp(max=logits_MV.shape[1] - 1)


def replaced_tokens(config: Mapping[str, Any]) -> Objective:
    """The row for a run's config. ELECTRA weighs the mean over all tokens; per masked token that weight is times the masking
    rate."""
    generator = Generator(**config["generator"])
    weight = generator.detection_weight * config["data"]["mask_rate"]

    def model(architecture: Architecture, sizes: EncoderConfig, length: int, backends: Backends) -> nn.Module:
        return ReplacedTokens(architecture, sizes, generator.sizes(sizes), weight, length, backends)

    def both(architecture: Architecture, sizes: dict, counts: Counts) -> float:
        """Of both networks; the projection is counted at the tokens that it is looked up for."""
        small = generator.sizes(EncoderConfig.from_dict(sizes))
        filled = flops(architecture, dataclasses.asdict(small), counts)
        if small.hidden_size != sizes["hidden_size"]:
            filled += (1 + BACKWARD) * 2 * sizes["hidden_size"] * small.hidden_size * counts.tokens
        return filled + detector_flops(architecture, sizes, counts)

    return Objective(
        "replaced_tokens",
        ("loss", "generator_loss", "detection_loss", "found"),
        model,
        both,
        encoder="discriminator",
        collator=fates(masked=1.0, swapped=0.0),
        problem=generator.problem,
    )
