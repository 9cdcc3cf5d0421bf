"""From a path to what is exported."""

from __future__ import annotations

from recipe.errors import UserError
from recipe.export.detectors import BareEncoder, Discriminator
from recipe.export.subject import FineTunedModel, PretrainedEncoder, Subject
from recipe.finetune.folder import is_fine_tuned, open_fine_tuned
from recipe.training.checkpoint import OwnCheckpoint, find_checkpoint


def find_subject(path: str) -> Subject:
    """What `path` holds.

    Raises:
        UserError: neither an encoder nor a fine-tuned model, or one that is not complete.
    """
    if is_fine_tuned(path):
        return FineTunedModel(open_fine_tuned(path))
    checkpoint = find_checkpoint(path)
    if not checkpoint.detects:
        return PretrainedEncoder(checkpoint)
    if checkpoint.sizes is None:
        raise UserError(
            f"checkpoint={path}: a detector of a `{checkpoint.model}`; exported are those whose embeddings are as wide as the "
            "encoder (embedding_size is hidden_size)"
        )
    return (BareEncoder if isinstance(checkpoint, OwnCheckpoint) else Discriminator)(checkpoint)
