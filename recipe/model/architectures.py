"""The table of architectures. Nothing outside of a row's own room compares names.

A room is imported when its row is asked for, so the table itself needs neither torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Callable

from recipe.model.architecture import Architecture


def _mosaic_bert() -> Architecture:
    from recipe.model.mosaic_bert import MOSAIC_BERT

    return MOSAIC_BERT


def _modern() -> Architecture:
    from recipe.model.modern import MODERN

    return MODERN


def _hf_bert() -> Architecture:
    from recipe.model.hf_bert import HF_BERT

    return HF_BERT


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {
    "mosaic_bert": _mosaic_bert,
    "modern": _modern,
    "hf_bert": _hf_bert,
}


def architecture(name: str) -> Architecture:
    """The row of that name; `recipe.config` has checked that there is one."""
    return ARCHITECTURES[name]()
