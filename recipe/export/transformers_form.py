"""A run's encoder as one of transformers' own models, and as the folder that it leaves.

What transformers has becomes its class, without code of its own. For the rest the row in the table of architectures names the
file that ships with the weights, which transformers loads through `auto_map`.
"""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

import transformers
from transformers import AutoTokenizer, PreTrainedModel

from recipe.config import ExportConfig
from recipe.errors import UserError, class_and_line
from recipe.model.architecture import Export
from recipe.model.architectures import architecture
from recipe.model.encoder import Backends
from recipe.model.huggingface import has_token_types
from recipe.training.checkpoint import Checkpoint, OwnCheckpoint

# What transformers' Auto classes call the classes of a model, behind the name that they begin with.
AUTO = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
}


def row_of(checkpoint: Checkpoint) -> Export | None:
    """How its architecture is exported; None for one of Hugging Face's own, which is what it is already.

    Raises:
        UserError: an architecture in this project's form whose row does not say how.
    """
    if not isinstance(checkpoint, OwnCheckpoint):
        return None
    row = architecture(checkpoint.model).export
    if row is None:
        raise UserError(
            f"{checkpoint.name}: a `{checkpoint.model}`, whose row in the table of architectures has no export yet"
        )
    return row


def masked_lm(checkpoint: Checkpoint) -> PreTrainedModel:
    """Its masked-language model as transformers has it, every weight the run's, float32.

    Raises:
        UserError: a weight is missing, or there is no class for such a block.
    """
    row, ours = row_of(checkpoint), checkpoint.masked_lm(Backends())
    if row is None:
        return ours.model.eval()
    code = row.code() if row.code else transformers
    try:
        settings = {**row.settings(checkpoint.sizes), "pad_token_id": checkpoint.pad_id}
    except ValueError as error:
        raise UserError(f"{checkpoint.name} cannot be exported: {error}") from None
    config = getattr(code, f"{row.classes}Config")(**settings)
    model = getattr(code, f"{row.classes}ForMaskedLM")(config)
    missing, unknown = model.load_state_dict({row.name(n): t for n, t in ours.state_dict().items()}, strict=False)
    untied = [name for name in missing if model.get_parameter(name) is not model.get_input_embeddings().weight]
    assert not untied and not unknown, (untied, unknown)
    if row.code:
        file = Path(inspect.getfile(code)).stem
        model.config.auto_map = {auto: f"{file}.{row.classes}{rest}" for auto, rest in AUTO.items()}
    return model.eval()


def write(checkpoint: Checkpoint, config: ExportConfig, folder: Path) -> None:
    """config.json, model.safetensors, the tokenizer's files and, where transformers lacks the class, its code."""
    write_model(checkpoint, masked_lm(checkpoint), folder)


def write_model(checkpoint: Checkpoint, model: PreTrainedModel, folder: Path) -> None:
    """The same of a model that was made of `checkpoint`, or of a part of it."""
    model.save_pretrained(folder)
    row = row_of(checkpoint)
    if getattr(model.config, "auto_map", None):
        shutil.copyfile(inspect.getfile(row.code()), folder / Path(inspect.getfile(row.code())).name)
    # A tokenizer of BERT's kind tells a pair's texts apart, which a model without token types does not take.
    untyped = row is not None and not has_token_types(model.config)
    inputs = {"model_input_names": ["input_ids", "attention_mask"]} if untyped else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, use_fast=True, trust_remote_code=False, **inputs)
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"{checkpoint.folder}: its tokenizer cannot be loaded ({class_and_line(error)})") from None
    if checkpoint.max_length is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, checkpoint.max_length)
    tokenizer.save_pretrained(folder)
