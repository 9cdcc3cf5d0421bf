"""The table of forms that an encoder is exported in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recipe.config import ExportConfig
from recipe.export import checks, onnx, pipelines, sentence, transformers_form
from recipe.export.subject import Subject


@dataclass(frozen=True)
class Format:
    """A row."""

    title: str
    packages: tuple[str, ...]  # that it takes to write or to verify it, beside what a run needs
    check: Callable[[ExportConfig], None]  # UserError: settings that do not belong to it
    write: Callable[[Subject, ExportConfig, Path], None]  # into an empty folder
    # Of the folder, in the verifying process: everything that it must share with the run. checks.Different: it does not
    verify: Callable[[checks.Exported, ExportConfig], None]


FORMATS = {
    "huggingface": Format(
        title="a folder for transformers",
        packages=(),
        check=lambda config: onnx.refuse(config) or sentence.refuse(config),
        write=transformers_form.write,
        verify=pipelines.verify,
    ),
    "sentence": Format(
        title="a sentence encoder for sentence-transformers",
        packages=("sentence_transformers",),
        check=onnx.refuse,
        write=sentence.write,
        verify=sentence.verify,
    ),
    "onnx": Format(
        title=f"ONNX, opset {onnx.OPSET}",
        packages=("onnx", "onnxruntime"),
        check=lambda config: sentence.refuse(config) or onnx.check(config),
        write=onnx.write,
        verify=onnx.verify,
    ),
}
