"""A subject as one of transformers' own models, and as the folder that it leaves.

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
from recipe.export.subject import Subject

# What transformers' Auto classes call the classes of a model, behind the name that they begin with.
AUTO = {
    "AutoConfig": "Config",
    "AutoModel": "Model",
    "AutoModelForMaskedLM": "ForMaskedLM",
    "AutoModelForSequenceClassification": "ForSequenceClassification",
    "AutoModelForTokenClassification": "ForTokenClassification",
}


def converted(subject: Subject) -> PreTrainedModel:
    """Encoder and head as transformers has them, every weight the subject's, float32.

    Raises:
        UserError: a weight is missing, or there is no class for such a block.
    """
    row, checkpoint = subject.row, subject.checkpoint
    if row is None:
        model = subject.native(subject.load())
        for key, value in subject.settings.items():
            setattr(model.config, key, value)
        return model.eval()
    code = row.code() if row.code else transformers
    try:
        settings = {**row.settings(checkpoint.sizes), "pad_token_id": checkpoint.pad_id, **subject.settings}
    except ValueError as error:
        raise UserError(f"{subject.called} cannot be exported: {error}") from None
    config = getattr(code, f"{row.classes}Config")(**settings)
    model = getattr(code, f"{row.classes}{AUTO[subject.auto]}")(config)
    # The encoder alone has no prefix before its own names.
    prefix = "" if model.base_model is not model else f"{model.base_model_prefix}."
    weights = {subject.name(name).removeprefix(prefix): tensor for name, tensor in subject.load().state_dict().items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    untied = [name for name in missing if model.get_parameter(name) is not model.get_input_embeddings().weight]
    assert not untied and not unknown, (untied, unknown)
    if row.code:
        file = Path(inspect.getfile(code)).stem
        model.config.auto_map = {auto: f"{file}.{row.classes}{rest}" for auto, rest in AUTO.items()}
    return model.eval()


def write(subject: Subject, config: ExportConfig, folder: Path) -> None:
    """config.json, model.safetensors, the tokenizer's files and, where transformers lacks the class, its code."""
    write_model(subject, converted(subject), folder)


def write_model(subject: Subject, model: PreTrainedModel, folder: Path) -> None:
    """The same of a model that was made of the subject, or of a part of it."""
    model.save_pretrained(folder)
    row, source = subject.row, subject.checkpoint.folder
    if getattr(model.config, "auto_map", None):
        shutil.copyfile(inspect.getfile(row.code()), folder / Path(inspect.getfile(row.code())).name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, use_fast=True, trust_remote_code=False, split_special_tokens=subject.plain_text
        )
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"{source}: its tokenizer cannot be loaded ({class_and_line(error)})") from None
    if subject.longest is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, subject.longest)
    # Token types are made by default, and a model that has none, such as ModernBERT, stops at them.
    taken = inspect.signature(model.forward).parameters
    if any(name not in taken for name in tokenizer.model_input_names):
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name in taken]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what is saved
    tokenizer.save_pretrained(folder)
