"""Random token substitution (arXiv 2309.08272): some tokens become random ones, and the encoder says which."""

from __future__ import annotations

from torch import Tensor

from recipe.objectives.detector import Detector, detector_flops, no_detector
from recipe.objectives.objective import Objective, fates


class SwappedTokens(Detector):
    def forward(self, batch: dict) -> dict[str, Tensor]:
        """`loss` and `found`, both per chosen token: see `Detector.detect`."""
        loss, found = self.detect(batch, batch["input_ids"])
        return {"loss": loss, "found": found}


SWAPPED_TOKENS = Objective(
    "swapped_tokens",
    ("loss", "found"),
    SwappedTokens,
    detector_flops,
    collator=fates(masked=0.0, swapped=1.0),
    problem=lambda architecture, sizes: no_detector("swapped_tokens", architecture, sizes),
)
