"""`python -m benchmarks.reach_small RUN FLOOR DATA [--tasks NAME ...] [--out FILE]`: our encoder on everybody's tasks.

RUN is a finished run of recipe.train, FLOOR the same encoder at its random initialisation (the same YAML with duration=1ba and
schedule.warmup=1, whose only step has a learning rate of 0). Both are fine-tuned with the same settings and three seeds. Beside
them stands what needs no encoder: TF-IDF with logistic regression (of a number, ridge regression; of a word's tag, the words
around it), and the constant answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from benchmarks import convert_tasks, reach_tasks
from benchmarks.reach_tasks import ReachTask
from recipe.errors import UserError, end, exit_status
from recipe.finetune.examples import WORD_BREAK, Examples
from recipe.finetune.tasks import TaskData
from recipe.records import read_record
from recipe.retrieve import RESULT

OUT = Path("benchmarks/results/reach/small.json")
CRANFIELD = "cranfield"

# A pair's texts each by itself, as a small encoder learns them. GLUE-5's rates times ten, in minutes of a core per seed.
RATE = ("lr=5e-4", "batch_size=32")
TASKS = {
    task.name: task
    for task in (
        ReachTask("banking77", "intents", ("epochs=3", *RATE)),
        ReachTask("clinc150", "intents", ("epochs=3", *RATE)),
        ReachTask("sick-relatedness", "pairs", ("kind=siamese_regression", "epochs=4", *RATE)),
        ReachTask("sick-entailment", "pairs", ("kind=siamese_classification", "epochs=4", *RATE)),
        ReachTask("conll2003", "ner", ("epochs=2", *RATE)),
        ReachTask(CRANFIELD, "retrieval", ()),
    )
}


# Without an encoder.


def answers_without_an_encoder(data: TaskData) -> list:
    """What a linear model of counted words predicts for the scored examples."""
    (scored,) = data.dev.values()
    if data.kind.word_per_line:
        return tags_of_windows(data.train, scored)
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    vectorizer.fit(text for texts in data.train.sentences for text in texts)
    train, test = (features(vectorizer, examples) for examples in (data.train, scored))
    model = LogisticRegression(max_iter=1000, C=10.0) if data.labels else Ridge()
    return model.fit(train, data.train.labels).predict(test).tolist()


def features(vectorizer: TfidfVectorizer, examples: Examples) -> sparse.csr_matrix:
    """(N, F): a text's TF-IDF u; of a pair [u, v, |u - v|, u * v] and the cosine, which is what siamese kinds read."""
    columns = [vectorizer.transform(column) for column in zip(*examples.sentences, strict=True)]
    if len(columns) == 1:
        return columns[0]
    u, v = columns
    product = u.multiply(v)
    return sparse.hstack([u, v, abs(u - v), product, sparse.csr_matrix(product.sum(axis=1))]).tocsr()


def tags_of_windows(train: Examples, scored: Examples) -> list[list[int]]:
    """Logistic regression on each word, its neighbours and its shape; a word's tag does not know the tags beside it."""
    vectorizer = DictVectorizer()
    words_F = vectorizer.fit_transform(list(windows(train)))
    words_F.indices, words_F.indptr = (one.astype(np.int32) for one in (words_F.indices, words_F.indptr))  # saga's
    model = LogisticRegression(max_iter=200, C=1.0, solver="saga", tol=1e-2)
    model.fit(words_F, [tag for tags in train.labels for tag in tags])
    said = model.predict(vectorizer.transform(list(windows(scored))))
    ends = np.cumsum([len(tags) for tags in scored.labels])[:-1]
    return [part.tolist() for part in np.split(said, ends)]


def windows(examples: Examples) -> Iterator[dict[str, float]]:
    for (text,) in examples.sentences:
        words = ["<s>", *text.split(WORD_BREAK), "</s>"]
        for place in range(1, len(words) - 1):
            word = words[place]
            named = {"word": word.lower(), "before": words[place - 1].lower(), "after": words[place + 1].lower(),
                     "end": word[-3:].lower(), "title": str(word[:1].isupper()), "capitals": str(word.isupper())}  # fmt: skip
            yield {f"{name}={value}": 1.0 for name, value in named.items()}


# With one.


def measure(task: ReachTask, encoders: dict[str, Path], data: Path, work: Path) -> dict[str, Any]:
    """A task's row: scores by seed of each encoder, and what needs none."""
    found: dict[str, list[float]] = {}
    for name, checkpoint in encoders.items():
        settings = task.settings(data, work / name, str(checkpoint))
        reach_tasks.fine_tune(task.yaml, settings)
        config = task.config(data, work / name, str(checkpoint))
        found[name] = reach_tasks.scores(config)
    examples = reach_tasks.read(config)
    (scored,) = examples.dev.values()

    def score(answers: Sequence) -> float:
        measured = examples.kind.measure(examples.task.metrics, scored.labels, answers, examples.labels)
        return statistics.fmean(measured.values())

    constant = score(examples.kind.constant(examples.train.labels, scored.labels))
    linear = score(answers_without_an_encoder(examples))
    return {**reach_tasks.about(config, examples), **found, "tfidf": linear, "constant": constant}


def rank(task: ReachTask, encoders: dict[str, Path], data: Path, work: Path) -> dict[str, Any]:
    """Cranfield's row: rankings without training, by the mean of the hidden states."""
    lines, row = work / "cranfield-lines", {"metrics": ["ndcg@10"], "seeds": []}
    if not lines.is_dir():
        convert_tasks.cranfield(
            *(data / "retrieval" / name for name in ("cran.all.1400", "cran.qry", "cranqrel")), lines
        )
    for name, checkpoint in encoders.items():
        out = work / name / CRANFIELD
        command = [sys.executable, "-m", "recipe.retrieve", "yamls/retrieve/cranfield.yaml", f"checkpoint={checkpoint}",
                   f"data={lines}", f"out={out}", "max_length=128"]  # fmt: skip
        if not (out / RESULT).is_file() and subprocess.run(command).returncode:
            raise UserError(f"{' '.join(command)} failed; repair it and run the same command again")
        result = json.loads((out / RESULT).read_text("utf-8"))
        row |= {name: [result["metrics"]["ndcg@10"]], "tfidf": result["tfidf"]["ndcg@10"]}
    return {**row, "scored_examples": result["queries"]}


def encoder_of(run: Path) -> dict[str, Any]:
    """Which encoder it is: what its record says of it."""
    record = read_record(run)
    keys = ("model", "tokens", "batches", "parameters")
    loss = record["eval_curve"][-1]["loss"] if record["eval_curve"] else None
    config = record["config"]
    config |= {"out": None, "cost": None, "data": {**config["data"], "path": Path(config["data"]["path"]).name}}
    return {
        **{key: record[key] for key in keys},
        "seconds": record["cost"]["seconds"],
        "eval_loss": loss,
        "config": config,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("run", "floor", "data"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tasks", nargs="*", default=[], help="none: all")
    parser.add_argument("--work", type=Path, default=Path("runs/reach-small"), help="what fine-tuning writes")
    parser.add_argument("--out", type=Path, default=OUT)
    words = parser.parse_args()
    encoders = {"pretrained": words.run, "floor": words.floor}
    found = reach_tasks.start(words.out, {"encoder": encoder_of(words.run)})
    for task in reach_tasks.chosen(words.tasks, TASKS):
        how: Callable[..., dict[str, Any]] = rank if task.name == CRANFIELD else measure
        row = how(task, encoders, words.data, words.work)
        reach_tasks.keep(words.out, found, task.name, row)
        said = ", ".join(f"{name} {statistics.fmean(row[name]):.2f}" for name in encoders)
        print(f"{task.name}: {said}, TF-IDF {row['tfidf']:.2f}", flush=True)


if __name__ == "__main__":
    end(lambda: exit_status(main))
