"""The length histogram that preparation leaves beside `dataset.json`: which sequence length a corpus calls for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipe.data.shards import Lengths

NAME = "lengths.png"
_BINS = 60


def draw(lengths: dict[str, Lengths], file: Path) -> None:
    """Share of each split's records by length in tokens; the same counts give the same bytes."""
    from matplotlib.figure import Figure  # takes a second, and only the end of a preparation needs it

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for split, of_split in lengths.items():
        sizes = np.arange(len(of_split.histogram))
        axes.hist(
            sizes,
            bins=min(_BINS, len(sizes)),
            weights=of_split.histogram / of_split.histogram.sum(),
            histtype="step",
            label=f"{split}, {of_split.histogram.sum():,}",
        )
    axes.set(xlabel="tokens of a record, without [CLS] and [SEP]", ylabel="share of the records")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=120, metadata={"Software": None})  # its version would be in the bytes
