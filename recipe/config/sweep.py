"""Keys of `python -m recipe.pareto sweep` and `trunk`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from recipe.settings import COPY, MISSING, setting

# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045


@dataclass
class SweepConfig:
    """`python -m recipe.pareto sweep` and `trunk`: models x budgets x seeds, each pretrained and scored."""

    out: str = setting(MISSING, "the folder of all runs", local=COPY)
    models: list[str] = setting(MISSING, "training YAMLs, each with its key=value words behind it")
    budgets: list[str] = setting(MISSING, "300ba, 2000000tok, 100000sp, 1ep, 0.5h (device-hours) or 20usd")
    glue: Optional[str] = setting(None, "the YAML of the fine-tuning, with its key=value words behind it")
    pairs: Optional[str] = setting(None, "the YAML of the minimal pairs, with its key=value words behind it")
    seeds: list[int] = setting([17], "of the pretraining runs", least=0, most=2**32 - 1)
    ranks: int = setting(1, "processes that pretrain a run together, a GPU each, on this machine", least=1)
    speed: Optional[str] = setting(None, "a run of the same kind, by whose speed hours and dollars become batches")
    decay: float = setting(0.1, "of a trunk's branches: the share of each that its decay takes", above=0, below=1)
