"""Points that others published, for an overlay: MosaicBERT's figure, read off by eye (arXiv 2312.17482, 8 x A100-80GB).

They are of the paper's own runs, on all eight GLUE tasks; no run of this project is among them, and no frontier here holds one.
"""

from __future__ import annotations

from dataclasses import dataclass

from recipe.cost import prices
from recipe.errors import UserError

SOURCE = "read off a figure of arXiv 2312.17482, 8 x A100-80GB, mean of 8 GLUE tasks"
GPUS, ROW, TASKS = 8, "a100-80gb", 8
HOURS_AND_SCORES = {
    "MosaicBERT, published": (
        (0.5, 76.1),
        (1.45, 80.6),
        (2.4, 81.8),
        (3.4, 82.5),
        (4.35, 83.0),
        (5.8, 83.5),
        (9.66, 84.3),
    ),
    "BERT, published": ((0.55, 72.6), (1.65, 79.9), (2.75, 81.0), (4.95, 82.1), (11.05, 83.5)),
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
        for name, points in HOURS_AND_SCORES.items()
    ]
