"""A sentence encoder: transformers' folder with the three modules that sentence-transformers reads, none of them own code."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from recipe import records
from recipe.config import ExportConfig
from recipe.errors import UserError
from recipe.export.checks import FLOAT32, HARD, Different, Exported, padded, pooled, texts
from recipe.export.transformers_form import masked_lm, write_model
from recipe.finetune.batches import encodings
from recipe.training.checkpoint import Checkpoint

MODULES = ("Transformer", "Pooling", "Normalize")
LONGEST = 512  # tokens of a text where no run says more
COMPARED, AT_A_TIME = 48, 8  # texts


def refuse(config: ExportConfig) -> None:
    """Raise a `UserError` for settings of a sentence encoder where another form is asked for."""
    if config.pooling != ExportConfig.pooling:
        raise UserError(f"pooling={config.pooling} is a sentence encoder's; set format=sentence, or leave it out")


def longest_text(checkpoint: Checkpoint) -> int:
    """Tokens, beyond which a text is cut: what the run was trained on, but no more than the model can take."""
    run = records.read_record(checkpoint.run)["config"] if checkpoint.run else {}
    trained = run.get("data", {}).get("sequence_length", LONGEST)
    return min(trained, checkpoint.max_length or trained)


def write(checkpoint: Checkpoint, config: ExportConfig, folder: Path) -> None:
    """The encoder without a head, its tokenizer, and the modules' own files."""
    model = masked_lm(checkpoint).base_model
    write_model(checkpoint, model, folder)
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
    _write(folder / "sentence_bert_config.json", {"max_seq_length": longest_text(checkpoint), "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})


def _write(file: Path, content: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


@torch.no_grad()
def verify(exported: Exported, config: ExportConfig) -> None:
    """`encode` of texts of all lengths, some of them cut, is the run's hidden states, pooled, of length 1."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(exported.folder), device="cpu", **exported.trust)
    names = tuple(type(module).__name__ for module in model)
    if names != MODULES:
        raise Different(f"sentence-transformers loads {', '.join(names)}, not {', '.join(MODULES)}")
    found = texts()
    sample = sorted([*found[:: len(found) // COMPARED], max(found, key=len), *HARD], key=len)
    theirs = model.encode(sample, batch_size=AT_A_TIME, convert_to_tensor=True)
    longest = longest_text(exported.checkpoint)
    for start in range(0, len(sample), AT_A_TIME):
        part = list(encodings(exported.checkpoint.tokenizer, sample[start : start + AT_A_TIME], longest))
        inputs = padded(part, exported.checkpoint.pad_id, left=False, typed=False)
        ours = pooled(exported.of_run(inputs)[1], inputs["attention_mask"].sum(dim=1), config.pooling)
        exported.compare("embeddings", ours, theirs[start : start + AT_A_TIME], FLOAT32)
    exported.facts["texts whose embeddings were compared"] = len(sample)
    exported.facts["tokens at which a text is cut"] = longest
