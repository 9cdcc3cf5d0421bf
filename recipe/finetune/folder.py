"""A fine-tuned model as a folder: encoder and head, their labels, what they were trained to do, and the tokenizer.

    config.json, model.safetensors   in the encoder's form: this project's names, or Hugging Face's, whose classes load it
    task.json                        kind, labels, columns, length, scores
    tokenizer.json, ...              of the encoder

Nothing in it is executed when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from recipe import records
from recipe.config import FinetuneConfig
from recipe.config.finetune import Files
from recipe.errors import UserError, class_and_line
from recipe.finetune.kinds import KINDS
from recipe.finetune.kinds.kind import Kind
from recipe.finetune.tasks import TaskData
from recipe.model.encoder import Backends
from recipe.model.heads import FineTuned
from recipe.model.huggingface import HFEncoder, HFFineTuned
from recipe.model.unpadded import unpad_for_prediction
from recipe.system.files import read_json, write_whole_folder
from recipe.system.hardware import Hardware
from recipe.training.checkpoint import Checkpoint, find_checkpoint

FOLDER = "model"  # what it is called in a job's folder, and in the results'
TASK = "task.json"
FORMAT = 1
WEIGHTS = "model.safetensors"
HF_ENCODER = "encoder.model."  # of `recipe.model.huggingface.HFEncoder` in a fine-tuned model
# Of a tokenizer, whichever are there.
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json",
             "merges.txt", "spiece.model", "sentencepiece.bpe.model", "spm.model")  # fmt: skip
REQUIRED = {"format": int, "name": str, "kind": str, "labels": list, "text": list, "max_length": int, "files": dict}


@dataclass(frozen=True)
class FineTunedFolder:
    """One that was found and checked, its weights not read yet."""

    folder: Path
    checkpoint: Checkpoint
    task: dict[str, Any]  # task.json

    @property
    def kind(self) -> Kind:
        return KINDS[self.task["kind"]]

    @property
    def labels(self) -> list[str]:
        return self.task["labels"]

    @property
    def results(self) -> dict[str, Any] | None:
        """The record of the fine-tuning that it is of; None where it does not lie in its results' folder."""
        folder = self.folder.resolve()
        record = _results(folder.parent) if folder.name == FOLDER else None
        return record if record and record["finetune"].get("model") else None

    def model(self, hardware: Hardware) -> nn.Module:
        """The model in evaluation, on the device; `forward(batch)` gives the kind's outputs (R, C).

        Raises:
            UserError: weights that do not fit, each counted and the first named.
        """
        model = self.build(self.checkpoint.resolve_backends(hardware)).to(hardware.device).eval()
        unpad_for_prediction(model, hardware.device, hardware.activation_dtype)
        return model

    def build(self, backends: Backends) -> nn.Module:
        """The same on the CPU, in training."""
        model = self.checkpoint.fine_tuned(self.kind, self.kind.outputs(self.labels), backends)
        whole = _inner(model)
        try:
            weights = {_inside(model, name): tensor for name, tensor in load_file(self.folder / WEIGHTS).items()}
            unmatched = whole.load_state_dict(weights, strict=False)
        except Exception as error:  # safetensors' own errors, and torch's for a shape
            raise UserError(f"{self.folder / WEIGHTS}: cannot be loaded: {class_and_line(error)}") from None
        missing, unknown = unmatched.missing_keys, unmatched.unexpected_keys
        if missing or unknown:
            problem = f"no weights for `{missing[0]}`" if missing else f"the model has no `{unknown[0]}`"
            raise UserError(f"{self.folder}: {problem} ({len(missing)} missing, {len(unknown)} unknown)")
        return model


def save_fine_tuned(
    folder: Path,
    model: nn.Module,
    checkpoint: Checkpoint,
    data: TaskData,
    config: FinetuneConfig,
    scores: dict[str, Any],
) -> None:
    """Write the folder; it appears under its name when it is whole. `scores` are a job's `metrics` and `seed`."""

    def fill(draft: Path) -> None:
        whole = _inner(model)
        if isinstance(model, HFFineTuned):
            if data.labels:
                whole.config.id2label = dict(enumerate(data.labels))
                whole.config.label2id = {label: number for number, label in enumerate(data.labels)}
            whole.config.problem_type = data.kind.problem_type
            whole.save_pretrained(draft, safe_serialization=True, max_shard_size="100GB")
        else:
            shutil.copyfile(checkpoint.folder / "config.json", draft / "config.json")
            weights = {_outside(model, name): value for name, value in whole.state_dict().items()}
            save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, draft / WEIGHTS)
        for name in TOKENIZER:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, draft / name)
        task = {
            "format": FORMAT,
            "name": data.task.name,
            "kind": data.task.kind,
            "labels": list(data.labels),
            "text": list(data.task.sentences),
            "label": data.task.label,
            "max_length": config.max_length,
            "files": {field.name: getattr(config, field.name) for field in dataclasses.fields(Files)},
            "separator": config.separator,
            "encoder": checkpoint.name,
            "seed": scores["seed"],
            "metrics": scores["metrics"],
        }
        (draft / TASK).write_text(json.dumps(task, indent=1, ensure_ascii=False) + "\n", "utf-8")

    write_whole_folder(folder, fill)


def is_fine_tuned(path: str) -> bool:
    """Whether `open_fine_tuned` is who says what is there, be it that the fine-tuning has not ended."""
    given = Path(path)
    return any((folder / TASK).is_file() for folder in (given, given / FOLDER)) or _results(given) is not None


def _results(folder: Path) -> dict[str, Any] | None:
    """The record of a fine-tuning that the folder holds."""
    record = records.read_record(folder) if (folder / records.FILE_NAME).is_file() else None
    return record if record and record["kind"] == "finetune" else None


def open_fine_tuned(path: str) -> FineTunedFolder:
    """What `path` holds: such a folder, or that of the results, with such a folder in it.

    Raises:
        UserError: nothing of that kind, one of a newer format, a kind that is not known, or no encoder in it.
    """
    given = Path(path)
    folder = given / FOLDER if (given / FOLDER / TASK).is_file() else given
    file = folder / TASK
    if not file.is_file():
        why = (
            "its fine-tuning has not ended; run it again"
            if _results(given)
            else "give the folder that recipe.finetune wrote"
        )
        raise UserError(f"{path}: no {TASK} in it; {why}")
    try:
        task = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: no JSON ({error})") from None
    if not isinstance(task, dict) or any(not isinstance(task.get(key), kind) for key, kind in REQUIRED.items()):
        raise UserError(f"{file}: not what recipe.finetune writes: {', '.join(REQUIRED)} belong in it")
    if task["format"] != FORMAT:
        raise UserError(f"{file}: format {task['format']}; this version reads {FORMAT}")
    if task["kind"] not in KINDS:
        raise UserError(f"{file}: kind `{task['kind']}`; this version knows {', '.join(KINDS)}")
    return FineTunedFolder(folder, find_checkpoint(str(folder)), task)


def _outside(model: nn.Module, name: str) -> str:
    """What a folder calls a weight: of Hugging Face's encoders without a head of theirs as their own classes do."""
    if isinstance(model, FineTuned) and isinstance(model.encoder, HFEncoder) and name.startswith(HF_ENCODER):
        return f"{model.encoder.model.base_model_prefix}.{name.removeprefix(HF_ENCODER)}"
    return name


def _inside(model: nn.Module, name: str) -> str:
    """What a module calls that weight."""
    if isinstance(model, FineTuned) and isinstance(model.encoder, HFEncoder):
        prefix = f"{model.encoder.model.base_model_prefix}."
        return HF_ENCODER + name.removeprefix(prefix) if name.startswith(prefix) else name
    return name


def _inner(model: nn.Module) -> nn.Module:
    """The module whose names the folder's weights have."""
    return model.model if isinstance(model, HFFineTuned) else model
