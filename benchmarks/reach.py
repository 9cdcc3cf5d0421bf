"""`python -m benchmarks.reach ENCODER DATA [--tasks NAME ...] [--out FILE]`: our fine-tuning beside transformers' own.

ENCODER is a folder of Hugging Face's form that others trained. Both sides read the same examples and have the same settings:
AdamW's, the rate and its schedule, batches, epochs, precision, no clipping, three seeds; what differs is the loop. Theirs is
`transformers.Trainer` on `AutoModelFor...`, whose padded batches are drawn by a sampler of its own. So equal scores are not
expected digit by digit: means over the seeds are compared, with the standard error of their difference. It needs `accelerate`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import reach_tasks
from benchmarks.reach_tasks import ReachTask
from recipe.config import FinetuneConfig
from recipe.data.batch import IGNORED_LABEL
from recipe.errors import UserError, end, exit_status
from recipe.finetune.examples import WORD_BREAK, Examples
from recipe.finetune.fit import BETAS, EPS
from recipe.finetune.tasks import TaskData
from recipe.system.files import digest, write_whole
from recipe.system.hardware import find_hardware, keep_freed_memory
from recipe.system.quiet import quiet_libraries

OUT = Path("benchmarks/results/reach/minilm.json")


class Encoded(torch.utils.data.Dataset):
    """What Trainer reads: a dictionary per example."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index])


def encode(tokenizer: Any, examples: Examples, max_length: int, by_word: bool) -> Encoded:
    """As transformers' examples do it: a text or a pair, or words of which the first sub-word has the label."""
    rows = []
    for texts, label in zip(examples.sentences, examples.labels, strict=True):
        if not by_word:
            rows.append({**tokenizer(*texts, truncation=True, max_length=max_length), "labels": label})
            continue
        words = texts[0].split(WORD_BREAK)
        found = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
        places, seen, labels = found.word_ids(), set(), []
        for word in places:
            labels.append(IGNORED_LABEL if word is None or word in seen else label[word])
            seen.add(word)
        rows.append({**found, "labels": labels})
    return Encoded(rows)


def predictions(outputs: np.ndarray, encoded: Encoded, examples: Examples, data: TaskData) -> list:
    """Trainer's outputs as what the metrics read: an id, a number, or a tag per word, `O` for words that were cut off."""
    if data.kind.word_per_line:
        found = []
        for logits, row, label in zip(outputs, encoded.rows, examples.labels, strict=True):
            said = [int(one.argmax()) for one, tag in zip(logits, row["labels"], strict=False) if tag != IGNORED_LABEL]
            found.append(said + [0] * (len(label) - len(said)))
        return found
    return outputs[:, 0].tolist() if not data.labels else outputs.argmax(axis=1).tolist()


def train_theirs(checkpoint: str, config: FinetuneConfig, data: TaskData, seed: int, work: Path) -> float:
    """The score of transformers' own loop with one seed."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(seed)
    tokenizer, by_word = AutoTokenizer.from_pretrained(checkpoint), data.kind.word_per_line
    loads = AutoModelForTokenClassification if by_word else AutoModelForSequenceClassification
    model = loads.from_pretrained(checkpoint, num_labels=max(1, len(data.labels)))
    train = encode(tokenizer, data.train, config.max_length, by_word)
    steps = math.ceil(config.epochs * math.ceil(len(train) / config.batch_size))
    arguments = TrainingArguments(
        output_dir=str(work), use_cpu=True, seed=seed, bf16=find_hardware("cpu", "auto", 1).autocast is not None,
        learning_rate=config.lr, max_steps=steps, per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=32, warmup_steps=round(config.warmup * steps), lr_scheduler_type="linear",
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=EPS, weight_decay=config.weight_decay / config.lr,
        max_grad_norm=0.0, save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    joins = DataCollatorForTokenClassification if by_word else DataCollatorWithPadding
    trainer = Trainer(model, arguments, joins(tokenizer, pad_to_multiple_of=8), train)
    trainer.train()
    (examples,) = data.dev.values()
    encoded = encode(tokenizer, examples, config.max_length, by_word)
    predicted = predictions(trainer.predict(encoded).predictions, encoded, examples, data)
    measured = data.kind.measure(data.task.metrics, examples.labels, predicted, data.labels)
    return statistics.fmean(measured.values())


def theirs(checkpoint: str, config: FinetuneConfig, data: TaskData, work: Path) -> list[float]:
    """Of each seed; what a killed command had measured is read."""
    found = []
    for seed in config.seeds:
        file = work / f"{config.name}-{seed}.json"
        if not file.is_file():
            score = train_theirs(checkpoint, config, data, seed, work / "trainer")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda draft, score=score: draft.write_text(json.dumps({"score": score}), "utf-8"))
        found.append(json.loads(file.read_text("utf-8"))["score"])
        print(f"transformers: {config.name}, seed {seed}: {found[-1]:.2f}", flush=True)
    return found


def standard_error(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Of the difference of two means of independent seeds."""
    return math.sqrt(statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs))


def measure(task: ReachTask, encoder: str, data: Path, work: Path) -> dict[str, Any]:
    settings = task.settings(data, work / "ours", encoder)
    config = task.config(data, work / "ours", encoder)
    reach_tasks.fine_tune(task.yaml, settings)
    examples = reach_tasks.read(config)
    ours = reach_tasks.scores(config)
    other = theirs(encoder, config, examples, work / "theirs")
    return {
        **reach_tasks.about(config, examples),
        "recipe": ours,
        "transformers": other,
        "difference": statistics.fmean(ours) - statistics.fmean(other),
        "standard_error": standard_error(ours, other),
    }


def versions() -> dict[str, str]:
    import accelerate
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__, "accelerate": accelerate.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder")
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", nargs="*", default=[], help="none: all")
    parser.add_argument("--work", type=Path, default=Path("runs/reach"), help="what the two sides write")
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args()
    quiet_libraries()
    keep_freed_memory()
    weights = Path(words.encoder) / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{words.encoder}: no model.safetensors in it; give a folder of Hugging Face's form")
    chosen = reach_tasks.chosen(words.tasks, reach_tasks.TASKS)
    encoder = {"name": Path(words.encoder).resolve().name, "weights": digest([weights])}
    found = reach_tasks.start(words.out, {"encoder": encoder, "versions": versions()})
    for task in chosen:
        row = measure(task, words.encoder, words.data, words.work)
        reach_tasks.keep(words.out, found, task.name, row)
        print(
            f"{task.name}: recipe {statistics.fmean(row['recipe']):.2f}, transformers "
            f"{statistics.fmean(row['transformers']):.2f}, difference {row['difference']:+.2f} "
            f"(standard error {row['standard_error']:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    end(lambda: exit_status(main))
