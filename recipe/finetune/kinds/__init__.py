"""The table of kinds of fine-tuning: what a head gives for an example, and how that is learnt and measured."""

from __future__ import annotations

from recipe.finetune.kinds.embedding import EMBEDDING, MIRROR
from recipe.finetune.kinds.entities import ENTITIES
from recipe.finetune.kinds.kind import Kind
from recipe.finetune.kinds.sequence import CLASSIFICATION, MULTILABEL, REGRESSION
from recipe.finetune.kinds.siamese import SIAMESE_CLASSIFICATION, SIAMESE_REGRESSION

ROWS = (
    CLASSIFICATION, MULTILABEL, REGRESSION, SIAMESE_CLASSIFICATION, SIAMESE_REGRESSION, EMBEDDING, MIRROR, ENTITIES
)  # fmt: skip
KINDS: dict[str, Kind] = {kind.name: kind for kind in ROWS}
