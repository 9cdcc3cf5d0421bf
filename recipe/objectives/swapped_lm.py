"""Swapped language modelling (arXiv 2309.08272): masked language modelling without [MASK], which no later task has: every chosen
token becomes a random one, and the model says what stood there."""

from __future__ import annotations

import dataclasses

from recipe.objectives.masked_lm import MASKED_LM
from recipe.objectives.objective import fates

SWAPPED_LM = dataclasses.replace(MASKED_LM, name="swapped_lm", collator=fates(masked=0.0, swapped=1.0))
