"""`python -m recipe.predict MODEL FILE [key=value ...]`: predictions of a fine-tuned model for every row of a file.

The rows are read, predicted and written a few thousand at a time, in the file's order, so memory does not grow with the file. A
row that cannot be read keeps its place and says why. The predictions appear under their name when they are complete.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from recipe.config import PredictConfig, run_main
from recipe.config.finetune import Files
from recipe.errors import UserError, end
from recipe.finetune.batches import Batch, ExampleCollator, outputs_of
from recipe.finetune.examples import Examples
from recipe.finetune.files import PREDICTIONS, SUFFIXES, Position, Row, read_rows
from recipe.finetune.folder import FineTunedFolder, open_fine_tuned
from recipe.finetune.own import text_of
from recipe.settings import check_values
from recipe.system import inert
from recipe.system.files import write_whole
from recipe.system.hardware import Hardware, find_hardware, keep_freed_memory
from recipe.system.progress import ProgressLine, clock, time_left
from recipe.system.quiet import quiet_libraries

CHUNK_ROWS, CHUNK_CHARACTERS = 4096, 1 << 22  # that are in memory at a time: the first of the two that is reached
MAX_TOKENS, MAX_TOKENS_PADDED = 8192, 1024  # that run at a time, the second for padded rows on a CPU
NAMED = 5  # rows without a prediction that are named at the end
Write = Callable[[dict[str, Any]], None]


@dataclass
class Tally:
    """What has been done so far."""

    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    problems: int = 0
    named: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Predictor:
    """A model on its device, which answers texts."""

    found: FineTunedFolder
    module: nn.Module
    hardware: Hardware
    collator: ExampleCollator
    all_labels: bool = False

    def answers(self, texts: Sequence[tuple[str, ...]], tally: Tally) -> Iterator[dict[str, Any]]:
        """Of each text, or pair, what is written of it."""
        kind, task = self.found.kind, self.found.task
        examples = Examples(list(texts), [kind.unlabelled] * len(texts))
        encoded = kind.encode(self.found.checkpoint.tokenizer, examples, task["max_length"])
        tally.tokens += len(encoded.ids)
        tally.truncated += encoded.truncated
        outputs = outputs_of(self._forward, encoded, self.collator, self.hardware.device)
        return kind.answers(encoded, outputs, self.found.labels, self.all_labels)

    def _forward(self, batch: Batch) -> Tensor:
        with torch.autocast(self.hardware.device, self.hardware.autocast, enabled=self.hardware.autocast is not None):
            return self.module(batch)


def load_predictor(config: PredictConfig) -> Predictor:
    """The model of `config.model`, on the device.

    Raises:
        UserError: no fine-tuned model there, or one whose weights do not fit.
    """
    hardware = find_hardware(config.device, config.precision, ranks=1)
    found = open_fine_tuned(config.model)
    length, padding = found.task["max_length"], found.checkpoint.padding
    if 0 < config.max_tokens < length:
        raise UserError(f"max_tokens={config.max_tokens}: a text of this model has up to {length}; set at least that")
    if hardware.kind == "cpu":
        keep_freed_memory()
    usual = MAX_TOKENS_PADDED if hardware.kind == "cpu" and padding is not None else MAX_TOKENS
    collator = ExampleCollator(config.max_tokens or max(usual, length), padding)
    return Predictor(found, found.model(hardware), hardware, collator, config.all_labels)


def predict(config: PredictConfig) -> Path:
    """Write the predictions; returns their file.

    Raises:
        UserError: before anything is written, for whatever cannot work; a file that cannot be read to its end, or of which no row
            can be read.
    """
    check_values(config)
    file = Path(config.file)
    out = Path(config.out) if config.out else file.with_name(f"{file.name}.predictions.jsonl")
    check_places(file, out)
    predictor = load_predictor(config)
    task = predictor.found.task
    how = as_in_training(config, file, task["files"])
    columns = config.text or task["text"]
    if len(columns) != len(task["text"]):
        raise UserError(f"text={columns}: the model reads {len(task['text'])} of them ({', '.join(task['text'])})")
    position, tally = Position(), Tally()
    rows = read_rows(file, how, columns, position)
    started = time.perf_counter()
    line = ProgressLine(sys.stdout, lambda: progress(tally, position.share(), time.perf_counter() - started))
    print(
        f"{config.model}: {task['name']}, {task['kind']}, {len(task['labels'])} labels, {predictor.found.checkpoint.model}\n"
        f"  on {predictor.hardware.devices}, {str(predictor.hardware.activation_dtype).removeprefix('torch.')}; {file} -> {out}",
        flush=True,
    )

    def write(draft: Path) -> None:
        with draft.open("w", encoding="utf-8", newline="") as stream:
            put = _writer(stream, out.suffix, predictor)
            for chunk in _chunks(rows, columns, predictor):
                _predict_chunk(file, chunk, predictor, tally, put)
                line.show()
        if tally.rows == tally.problems:
            raise UserError(f"{tally.named[0] if tally.named else f'{file}: no row in it'}; no row could be read")

    try:
        write_whole(out, write)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from None
    finally:
        line.clear()
    say_end(tally, out, time.perf_counter() - started, task["max_length"])
    return out


def check_places(file: Path, out: Path) -> None:
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    if out.suffix not in (".jsonl", ".csv", ".tsv"):
        raise UserError(f"out={out}: predictions are .jsonl, .csv or .tsv")
    if out.resolve() == file.resolve() or out.is_dir():
        raise UserError(f"out={out} is {'a folder' if out.is_dir() else 'what is read'}; choose another name")
    if not out.parent.is_dir():
        raise UserError(f"out={out}: no folder {out.parent}; make it first")


def as_in_training(config: PredictConfig, file: Path, training: dict[str, Any]) -> Files:
    """How the file is read: as the config says, and where it says nothing as the training files were."""
    usual = Files()
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(Files)}
    how = {name: training.get(name, value) if value == getattr(usual, name) else value for name, value in given.items()}
    if given["format"] == usual.format and file.suffix.lower() in SUFFIXES:
        how["format"] = usual.format  # the suffix says it
    return Files(**how)


@dataclass(frozen=True)
class Read:
    """A row as it was read: its texts, or why there is nothing to predict."""

    line: int
    texts: tuple[str, ...]
    problem: str | None


def _chunks(rows: Iterator[Row], columns: Sequence[str], predictor: Predictor) -> Iterator[list[Read]]:
    chunk, characters = [], 0
    for row in rows:
        texts, problem = text_of(row, columns, predictor.found.kind)
        chunk.append(Read(row.line, texts, problem))
        characters += sum(map(len, texts))
        if len(chunk) == CHUNK_ROWS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _predict_chunk(file: Path, chunk: list[Read], predictor: Predictor, tally: Tally, put: Write) -> None:
    good = [read.texts for read in chunk if read.problem is None]
    answers = predictor.answers(good, tally) if good else iter(())
    for read in chunk:
        if read.problem is None:
            put({"row": read.line, **next(answers)})
            continue
        put({"row": read.line, "prediction": None, "problem": read.problem})
        tally.problems += 1
        if len(tally.named) < NAMED:
            tally.named.append(f"{file}:{read.line}: {read.problem}")
    tally.rows += len(chunk)


def _writer(stream: IO[str], suffix: str, predictor: Predictor) -> Write:
    """What puts one row of the predictions into the stream. In a table lists become words of one cell, divided as in training."""
    if suffix == ".jsonl":
        return lambda row: stream.write(json.dumps(row, ensure_ascii=False) + "\n") and None
    divider = predictor.found.task.get("separator") or predictor.found.kind.separator or ","
    columns = [*PREDICTIONS, *(["probabilities"] if predictor.all_labels else [])]
    table = csv.DictWriter(
        stream, columns, restval="", delimiter="\t" if suffix == ".tsv" else ",", lineterminator="\n"
    )
    table.writeheader()

    def cell(value: Any) -> Any:
        if isinstance(value, dict):
            return json.dumps(value, ensure_ascii=False)
        return divider.join(map(str, value)) if isinstance(value, list) else value

    return lambda row: table.writerow({key: inert.cell(cell(value)) for key, value in row.items()})


def progress(tally: Tally, share: float, seconds: float) -> str:
    left = clock(time_left(seconds, share))
    return f"  {tally.rows:,} rows, {share:.0%}, {tally.rows / max(seconds, 1e-3):,.0f} rows/s, {left} left"


def say_end(tally: Tally, out: Path, seconds: float, max_length: int) -> None:
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = [
        f"{tally.rows:,} rows in {seconds:,.1f} s ({tally.rows / seconds:,.0f} rows/s, {tally.tokens / seconds:,.0f} tokens/s), "
        f"peak memory {peak_mib:,.0f} MiB"
    ]
    if tally.truncated:
        lines.append(f"  {tally.truncated:,} rows are longer than the model's {max_length} tokens and were cut")
    if tally.problems:
        lines.append(f"  {tally.problems:,} rows have no prediction, the first:")
        lines += [f"    {one}" for one in tally.named]
    print("\n".join([*lines, f"predictions in {out}"]), flush=True)


def main(config: PredictConfig) -> None:
    """The entry point's own part: a clean terminal, then `predict`."""
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    predict(config)


if __name__ == "__main__":
    end(lambda: run_main(PredictConfig, main, first=("model", "file")))
