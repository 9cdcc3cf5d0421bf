"""ONNX: two graphs, `model.onnx` (logits) and `encoder.onnx` (last_hidden_state), for batches of any size.

They are traced with eager attention, which keeps padding, so that no shape depends on a value.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipe.config import ExportConfig
from recipe.errors import UserError
from recipe.export.checks import Exported, check_tokens
from recipe.export.subject import Subject, real_tokens, rows_of
from recipe.export.transformers_form import converted, write_model
from recipe.finetune.batches import ExampleCollator
from recipe.finetune.minimal_pairs import REPORTED, mask_each, read_pairs
from recipe.model.huggingface import has_token_types
from recipe.pairs import pseudo_log_likelihoods
from recipe.system.hardware import find_hardware

OPSET = 17  # the first with LayerNormalization as one operation
ALLOWED = 1e-4
GRAPHS = {"model.onnx": "logits", "encoder.onnx": "last_hidden_state"}
INT8 = "model.int8.onnx"
TRACED = (2, 8)  # sequences and tokens; both are free in the graph
AT_A_TIME = 4096  # tokens, of the task that int8 is scored on


class Graph(nn.Module):
    """A model of transformers as a function of its inputs, in their order, with one output."""

    def __init__(self, model: nn.Module, names: list[str], output: str) -> None:
        super().__init__()
        self.model, self.names, self.output = model, names, output

    def forward(self, *inputs: Tensor) -> Tensor:
        return getattr(self.model(**dict(zip(self.names, inputs, strict=True))), self.output)


def refuse(config: ExportConfig) -> None:
    """Raise a `UserError` for settings of ONNX where another form is asked for."""
    if config.int8 is not None:
        raise UserError(f"int8={config.int8} is for ONNX; set format=onnx, or leave it out")


def check(config: ExportConfig) -> None:
    """Raise a `UserError` for a task that int8 cannot be scored on, before minutes of work."""
    if config.int8 is not None:
        try:
            read_pairs(config.int8, REPORTED)
        except UserError as error:
            raise UserError(f"int8={str(error).removeprefix('data=')}") from None


def write(subject: Subject, config: ExportConfig, folder: Path) -> None:
    """The graphs with config.json and the tokenizer's files, and no weights beside them."""
    model = converted(subject)
    if hasattr(model.config, "auto_map"):
        del model.config.auto_map  # the graphs need no code
    write_model(subject, model, folder)
    (folder / "model.safetensors").unlink()
    model.set_attn_implementation("eager")
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if has_token_types(model.config) else [])]
    ids = torch.full(TRACED, subject.checkpoint.pad_id)
    inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))[: len(names)]
    for (file, output), part in zip(GRAPHS.items(), (model, model.base_model), strict=True):
        graph = Graph(part, names, output).eval()
        with torch.no_grad():
            every_token = graph(*inputs).dim() == 3  # a classifier of texts answers for each sequence
        axes = {name: {0: "sequences", 1: "tokens"} for name in [*names, output]}
        axes[output] = axes[output] if every_token else {0: "sequences"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing's advice
            torch.onnx.export(
                graph, inputs, str(folder / file), opset_version=OPSET, dynamo=False,
                input_names=names, output_names=[output], dynamic_axes=axes,
            )  # fmt: skip
    if config.int8 is not None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        logging.disable(logging.WARNING)  # its advice to pre-process a graph that tracing has folded already
        quantize_dynamic(folder / "model.onnx", folder / INT8, weight_type=QuantType.QInt8)
        logging.disable(logging.NOTSET)


def verify(exported: Exported, config: ExportConfig) -> None:
    """ONNX Runtime's numbers on batches of several shapes are the run's; of int8, the score on one task."""
    check_tokens(exported)
    graphs = {file: session(exported.folder / file) for file in GRAPHS}
    for name, inputs in exported.cases():
        logits, hidden = (torch.from_numpy(run(graph, inputs)) for graph in graphs.values())
        pairs = (
            (exported.subject.logits(inputs), rows_of(logits, inputs)),
            (exported.subject.hidden(inputs), hidden[real_tokens(inputs)]),
        )
        for file, (ours, theirs) in zip(graphs, pairs, strict=True):
            exported.compare(f"{GRAPHS[file]}, {name}, ONNX Runtime", ours, theirs, ALLOWED)
    exported.facts["opset"] = OPSET
    if config.int8 is not None:
        exact, rounded = (minimal_pairs(exported, config.int8, name) for name in ("model.onnx", INT8))
        exported.facts |= {"minimal pairs, float32": exact, "minimal pairs, int8": rounded}
        exported.facts["int8 in score"] = rounded - exact


def session(file: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def run(graph: Any, inputs: dict[str, Tensor]) -> np.ndarray:
    """A graph's output; an input that is not given is as the models take its absence: all tokens real, of the first text."""
    like = inputs["input_ids"]
    absent = {"attention_mask": torch.ones_like(like), "token_type_ids": torch.zeros_like(like)}
    given = {one.name: (absent | inputs)[one.name].numpy() for one in graph.get_inputs()}
    return graph.run(None, given)[0]


class MaskedLM:
    """A graph behind the method that minimal pairs are scored by."""

    def __init__(self, graph: Any) -> None:
        self.graph = graph

    def masked_logits(self, batch: dict[str, Tensor]) -> Tensor:
        """(M, V) at `masked_indices` (M,), places in the flattened (S, L)."""
        return torch.from_numpy(run(self.graph, batch)).flatten(0, 1)[batch["masked_indices"]]


def minimal_pairs(exported: Exported, data: str, file: str) -> float:
    """A graph's score, as `recipe.pairs` scores the run: percent, mean over paradigms."""
    checkpoint, hardware = exported.subject.checkpoint, find_hardware("cpu", "fp32", ranks=1)
    model, collator = MaskedLM(session(exported.folder / file)), ExampleCollator(AT_A_TIME, checkpoint.pad_id)
    scores = []
    for paradigm in read_pairs(data, REPORTED):
        sentences = [sentence for pair in paradigm.pairs for sentence in pair]
        copies, which = mask_each(checkpoint.tokenizer, sentences, checkpoint.mask_id)
        good, bad = pseudo_log_likelihoods(model, copies, collator, hardware)[which.reshape(-1, 2)].T
        scores.append(100 * float(np.mean(np.where(good == bad, 0.5, good > bad))))
    return sum(scores) / len(scores)
