"""A sentence encoder: transformers' folder with the three modules that sentence-transformers reads, none of them own code."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from recipe.config import ExportConfig
from recipe.errors import UserError
from recipe.export.checks import FLOAT32, HARD, Different, Exported, check_tokens, padded
from recipe.export.subject import Subject
from recipe.export.transformers_form import converted, write_model
from recipe.finetune.batches import encodings

MODULES = ("Transformer", "Pooling", "Normalize")
COMPARED, AT_A_TIME = 48, 8  # texts


def refuse(config: ExportConfig) -> None:
    """Raise a `UserError` for settings of a sentence encoder where another form is asked for."""
    if config.pooling != ExportConfig.pooling:
        raise UserError(f"pooling={config.pooling} is a sentence encoder's; set format=sentence, or leave it out")


def write(subject: Subject, config: ExportConfig, folder: Path) -> None:
    """The encoder without a head, its tokenizer, and the modules' own files."""
    model = converted(subject).base_model
    write_model(subject, model, folder)
    listed = [
        {"idx": place, "name": str(place), "path": f"{place}_{name}" if place else "",
         "type": f"sentence_transformers.models.{name}"}
        for place, name in enumerate(MODULES)
    ]  # fmt: skip
    pooling = {
        "word_embedding_dimension": model.config.hidden_size,
        "pooling_mode_cls_token": config.pooling == "cls",
        "pooling_mode_mean_tokens": config.pooling == "mean",
        "include_prompt": True,
    }
    _write(folder / "modules.json", listed)
    _write(folder / "1_Pooling" / "config.json", pooling)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": subject.longest_text, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})


def _write(file: Path, content: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


@torch.no_grad()
def verify(exported: Exported, config: ExportConfig) -> None:
    """`encode` of texts of all lengths, some of them cut, is what the run's hidden states become: pooled, of length 1."""
    from sentence_transformers import SentenceTransformer

    check_tokens(exported)
    model = SentenceTransformer(str(exported.folder), device="cpu", **exported.trust)
    names = tuple(type(module).__name__ for module in model)
    if names != MODULES:
        raise Different(f"sentence-transformers loads {', '.join(names)}, not {', '.join(MODULES)}")
    found, subject = exported.texts, exported.subject
    sample = sorted([*found[:: len(found) // COMPARED], max(found, key=len), *HARD], key=len)
    theirs = model.encode(sample, batch_size=AT_A_TIME, convert_to_tensor=True)
    checkpoint, longest = subject.checkpoint, subject.longest_text
    for start in range(0, len(sample), AT_A_TIME):
        part = list(encodings(checkpoint.tokenizer, sample[start : start + AT_A_TIME], longest))
        inputs = padded(part, checkpoint.pad_id, left=False, typed=False)
        ours = subject.vectors(subject.hidden(inputs), inputs, config.pooling)
        exported.compare("embeddings", ours, theirs[start : start + AT_A_TIME], FLOAT32)
    exported.facts["texts whose embeddings were compared"] = len(sample)
    exported.facts["tokens at which a text is cut"] = longest
