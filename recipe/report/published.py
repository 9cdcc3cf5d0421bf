"""Points that others published, for an overlay: MosaicBERT's figure, read off by eye (arXiv 2312.17482, 8 x A100-80GB).

They are of the paper's own runs, on all eight GLUE tasks; no run of this project is among them, and no frontier here holds one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from recipe.cost import prices
from recipe.errors import UserError

SOURCE = "read off a figure of arXiv 2312.17482, 8 x A100-80GB, mean of 8 GLUE tasks"
GPUS, ROW, TASKS = 8, "a100-80gb", 8
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
# by the name of the architecture: what the curve is called, and (hours, score)
HOURS_AND_SCORES = {
    "mosaic_bert": (
        "MosaicBERT, published",
        ((0.5, 76.1), (1.45, 80.6), (2.4, 81.8), (3.4, 82.5), (4.35, 83.0), (5.8, 83.5), (9.66, 84.3)),
    ),
    "hf_bert": ("BERT, published", ((0.55, 72.6), (1.65, 79.9), (2.75, 81.0), (4.95, 82.1), (11.05, 83.5))),
}


@dataclass(frozen=True)
class Published:
    name: str
    xs: list[float]
    scores: list[float]


def curves(axis: str, prices_path: str) -> list[Published]:
    """The published points on `axis`.

    Raises:
        UserError: for tokens, which the figure does not have, or a price table without the paper's GPU.
    """
    if axis == "tokens":
        raise UserError("--published: the paper's figure has hours and no tokens; use --axis usd, gpu_hours or seconds")
    price = prices.row_named(ROW, prices_path).usd_per_hour
    of_an_hour = {"usd": GPUS * price, "gpu_hours": float(GPUS), "seconds": 3600.0}[axis]
    return [
        Published(name, [hours * of_an_hour for hours, _ in points], [score for _, score in points])
        for name, points in HOURS_AND_SCORES.values()
    ]


def published_score(model: str, shape: dict[str, int | None], usd: float, prices_path: str) -> str | None:
    """What the figure gives for so many dollars, in words; None for a model that is not in it, or beyond its points."""
    if model not in HOURS_AND_SCORES or shape != BASE:
        return None
    curve = next(one for one in curves("usd", prices_path) if one.name == HOURS_AND_SCORES[model][0])
    for x0, x1, y0, y1 in zip(curve.xs, curve.xs[1:], curve.scores, curve.scores[1:], strict=False):
        if x0 <= usd <= x1:
            score = y0 + (y1 - y0) * math.log(usd / x0) / math.log(x1 / x0)
            return f"{score:.1f} for so many dollars of {GPUS} x {ROW}, not measured here ({SOURCE})"
    return None
