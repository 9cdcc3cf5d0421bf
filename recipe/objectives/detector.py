"""An encoder that says of every real token whether it was replaced: what objectives share that detect replacements. Its batches
are streams, or padded rows, whose tokens are looked at one after another.

Its sums over a batch are divided by the number of chosen tokens, as every objective's are, so that neither microbatches nor ranks
change them: the loss is that of all real tokens per chosen one.

Shapes: T tokens of a stream, or places of padded rows, M chosen ones, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.reference import ACTIVATIONS
from recipe.model.architecture import Architecture
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends, initialize
from recipe.model.flops import BACKWARD, training_flops
from recipe.objectives.objective import Counts

IGNORED_LABEL = -100
# Parameters that every detector has and no other head, as they are called here and in ELECTRA's folders.
HEADS = ({"dense.weight", "out.weight"}, {"discriminator_predictions.dense_prediction.weight"})


class Detector(nn.Module):
    """ELECTRA's discriminator (arXiv 2003.10555): a dense layer, the encoder's activation and one logit on the encoder."""

    def __init__(self, architecture: Architecture, sizes: EncoderConfig, length: int, backends: Backends) -> None:
        super().__init__()
        self.config = sizes
        self._encoder = architecture.prefix.partition(".")[0]
        self.add_module(self._encoder, architecture.bare(sizes, length, backends))
        self.dense = nn.Linear(sizes.hidden_size, sizes.hidden_size, bias=sizes.biases)
        self.out = nn.Linear(sizes.hidden_size, 1)
        initialize(self, sizes.initializer_range)

    def hidden(self, batch: dict) -> Tensor:
        """(T, D)"""
        return getattr(self, self._encoder)(batch)

    def logits(self, batch: dict) -> Tensor:
        """(T,), above 0 for a token that was replaced."""
        return self.judge(self.hidden(batch))

    def judge(self, hidden_TD: Tensor) -> Tensor:
        """(T,), the same of hidden states."""
        return self.out(ACTIVATIONS[self.config.hidden_act](self.dense(hidden_TD))).squeeze(-1)

    def detect(self, batch: dict, shown: Tensor) -> tuple[Tensor, Tensor]:
        """The loss over all real tokens of `shown`, and how many of the chosen ones it judges rightly, both per chosen token.

        `shown` stands for the batch's `input_ids`. A shown token that is the same counts as original.
        """
        chosen_M, was_M, shown_T = batch["masked_indices"], labels_of(batch), shown.flatten()
        labelled_M = was_M != IGNORED_LABEL
        count = labelled_M.sum().clamp(min=1)
        replaced_M = (shown_T[chosen_M] != was_M) & labelled_M
        # Places without a label are a packed bin's first token, which is never chosen.
        replaced_T = torch.zeros_like(shown_T, dtype=torch.float32).index_put((chosen_M,), replaced_M.float())
        real_T = batch["input_ids"].flatten() != self.config.pad_token_id  # in a stream that is not packed all are
        logits_T = self.logits({**batch, "input_ids": shown}).float()
        losses_T = F.binary_cross_entropy_with_logits(logits_T, replaced_T, reduction="none")
        right_M = ((logits_T.detach()[chosen_M] > 0) == replaced_M) & labelled_M
        return (losses_T * real_T).sum() / count, right_M.sum() / count


def labels_of(batch: dict) -> Tensor:
    """(M,) what stood at `masked_indices`: a stream's labels, or, of padded rows, those at these places."""
    labels = batch["labels"]
    return labels if labels.dim() == 1 else labels.flatten()[batch["masked_indices"]]


def detector_flops(architecture: Architecture, sizes: dict, counts: Counts) -> float:
    """Of a detector: its head is on every token."""
    layers = training_flops(sizes, architecture.gated, counts.tokens, counts.squared_lengths, 0)
    head = 2 * sizes["hidden_size"] * (sizes["hidden_size"] + 1)
    return layers + (1 + BACKWARD) * head * counts.tokens


def no_detector(name: str, architecture: Architecture, sizes: EncoderConfig) -> str | None:
    """Why a model cannot serve the objective `name`; None if it can."""
    if sizes.narrow_layers > 1:
        return (
            f"model.narrow_layers={sizes.narrow_layers}: objective={name} judges every token, so no layer can leave any out; "
            "leave the key out"
        )
    if architecture.bare:
        return None
    return (
        f"objective={name}: needs the hidden state of every token, which {architecture.name} does not give; set "
        "model.name=mosaic_bert or objective=masked_lm"
    )
