"""`python -m recipe.retrieve YAML checkpoint=ENCODER [key=value ...]`: documents ranked for queries by their vectors' cosine.

An encoder's vector of a text is the mean of its tokens' last hidden states; one that `recipe.finetune` made of kind embedding or
mirror was trained for it, any other is taken as pretraining left it. TF-IDF's ranking of the same texts stands beside.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from recipe.config import RetrieveConfig, run_main, to_dict
from recipe.errors import UserError
from recipe.finetune.batches import Batch, ExampleCollator, outputs_of
from recipe.finetune.examples import Examples
from recipe.finetune.files import Row, read_rows
from recipe.finetune.folder import is_fine_tuned, open_fine_tuned
from recipe.finetune.kinds.embedding import EMBEDDING, Direction
from recipe.finetune.ranking import RECALL_AT, Grades, measure
from recipe.records import provenance
from recipe.settings import check_values
from recipe.system.files import write_whole
from recipe.system.hardware import Hardware, find_hardware, keep_freed_memory
from recipe.system.quiet import quiet_libraries
from recipe.training.checkpoint import Checkpoint, find_checkpoint

RESULT, RANKINGS = "retrieval.json", "rankings.jsonl"


def retrieve(config: RetrieveConfig) -> dict[str, Any]:
    """Rank, judge and write; returns what `retrieval.json` holds.

    Raises:
        UserError: before anything is encoded, for whatever is wrong with model or files.
    """
    check_values(config)
    documents, queries = texts_of("documents", config), texts_of("queries", config)
    judged = judgements(config, documents, queries)
    hardware = find_hardware(config.device, config.precision, ranks=1)
    checkpoint, model = load(config, hardware)
    if checkpoint.max_length is not None and config.max_length > checkpoint.max_length:
        raise UserError(
            f"max_length={config.max_length}, but the model has {checkpoint.max_length} position embeddings; lower it"
        )
    place = checkpoint.run or checkpoint.folder
    out = Path(config.out) if config.out else place / "retrieval"
    print(
        f"{len(documents):,} documents, {len(queries):,} queries, {len(judged):,} of them judged; {checkpoint.name} on "
        f"{hardware.devices}",
        flush=True,
    )
    started = time.perf_counter()
    vectors = [embed(list(texts.values()), checkpoint, model, hardware, config) for texts in (queries, documents)]
    seconds = time.perf_counter() - started
    rankings = ranked(vectors[0] @ vectors[1].T, list(queries), list(documents))
    found = {
        "what": "documents ranked by the cosine of mean hidden states, beside TF-IDF of the same texts",
        "checkpoint": checkpoint.name,
        "metrics": measure(_names(rankings), judged),
        "tfidf": measure(_names(ranked(tfidf(queries, documents), list(queries), list(documents))), judged),
        "documents": len(documents),
        "queries": len(judged),
        "seconds": seconds,
        "config": to_dict(config),
        "provenance": provenance(),
    }
    out.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"query": query, "documents": one}, ensure_ascii=False) for query, one in rankings.items())
    write_whole(out / RANKINGS, "".join(f"{line}\n" for line in lines))
    write_whole(out / RESULT, json.dumps(found, indent=1) + "\n")
    print("\n".join([*table(found), f"{out / RESULT}, {out / RANKINGS}"]), flush=True)
    return found


def _rows(name: str, config: RetrieveConfig, columns: Sequence[str]) -> Iterator[tuple[Path, Row]]:
    for word in getattr(config, name):
        file = Path(config.data) / word
        for row in read_rows(file, config, list(columns)):
            if row.problem:
                raise UserError(f"{file}:{row.line}: {row.problem}; repair or remove the row")
            yield file, row


def texts_of(name: str, config: RetrieveConfig) -> dict[str, str]:
    """Texts by their id; of several columns, joined by a space."""
    columns = config.document_text if name == "documents" else config.query_text
    found: dict[str, str] = {}
    for file, row in _rows(name, config, [config.id, *columns]):
        key, text = row.cells[config.id], " ".join(filter(None, (row.cells[column].strip() for column in columns)))
        if key in found:
            raise UserError(f"{file}:{row.line}: id `{key}` stands there twice")
        if not text and name == "queries":
            raise UserError(f"{file}:{row.line}: query `{key}` is empty")
        found[key] = text  # a document may be empty: it is found by nothing
    if not found:
        raise UserError(f"{name}: no row in {', '.join(getattr(config, name)) or 'no file'}")
    return found


def judgements(config: RetrieveConfig, documents: dict[str, str], queries: dict[str, str]) -> dict[str, Grades]:
    """Grades by query and document, of queries that have a relevant one."""
    found: dict[str, dict[str, float]] = {}
    for file, row in _rows("judgements", config, [config.query, config.document, config.grade]):
        query, document, grade = (row.cells[column] for column in (config.query, config.document, config.grade))
        for what, name, known in (("queries", query, queries), ("documents", document, documents)):
            if name not in known:
                raise UserError(f"{file}:{row.line}: `{name}` is in no row of {what}")
        try:
            found.setdefault(query, {})[document] = float(grade)
        except ValueError:
            raise UserError(f"{file}:{row.line}: grade `{grade}` is not a number") from None
    found = {query: grades for query, grades in found.items() if max(grades.values()) > 0}
    if not found:
        raise UserError("judgements: no query has a document with a grade above 0")
    return found


def load(config: RetrieveConfig, hardware: Hardware) -> tuple[Checkpoint, nn.Module]:
    """The encoder with a mean over each text, in evaluation, on the device."""
    if hardware.kind == "cpu":
        keep_freed_memory()
    place = Path(config.checkpoint)
    if is_fine_tuned(config.checkpoint):
        found = open_fine_tuned(config.checkpoint)
        if found.kind.head is not Direction:
            raise UserError(
                f"checkpoint={place}: of kind `{found.kind.name}`, which makes no vectors; give one of kind embedding or mirror"
            )
        return found.checkpoint, found.model(hardware)
    checkpoint = find_checkpoint(config.checkpoint)
    model = checkpoint.fine_tuned(EMBEDDING, 0, checkpoint.resolve_backends(hardware))
    return checkpoint, model.to(hardware.device).eval()


def embed(
    texts: Sequence[str], checkpoint: Checkpoint, model: nn.Module, hardware: Hardware, config: RetrieveConfig
) -> np.ndarray:
    """(N, D) float32, of length 1."""
    examples = Examples([(text,) for text in texts], [0.0] * len(texts))
    encoded = EMBEDDING.encode(checkpoint.tokenizer, examples, config.max_length)

    def forward(batch: Batch) -> Tensor:
        with torch.autocast(hardware.device, hardware.autocast, enabled=hardware.autocast is not None):
            return model(batch)

    return outputs_of(forward, encoded, ExampleCollator(config.max_tokens, checkpoint.padding), hardware.device)


def tfidf(queries: dict[str, str], documents: dict[str, str]) -> np.ndarray:
    """(queries, documents), the cosines of scikit-learn's vectors."""
    vectorizer = TfidfVectorizer(sublinear_tf=True)
    of_documents = vectorizer.fit_transform(documents.values())
    return (vectorizer.transform(queries.values()) @ of_documents.T).toarray()


def ranked(scores_QN: np.ndarray, queries: list[str], documents: list[str]) -> dict[str, dict[str, float]]:
    """Of each query the documents with the highest scores, as many as are looked at, best first; of equal ones the earlier."""
    best = np.argsort(-scores_QN, axis=1, kind="stable")[:, :RECALL_AT]
    return {
        query: {documents[i]: float(row[i]) for i in places}
        for query, row, places in zip(queries, scores_QN, best, strict=True)
    }


def _names(rankings: dict[str, dict[str, float]]) -> dict[str, list[str]]:
    return {query: list(found) for query, found in rankings.items()}


def table(found: dict[str, Any]) -> list[str]:
    width = max(len(found["checkpoint"]), len("TF-IDF"))
    rows = [("", dict.fromkeys(found["metrics"])), (found["checkpoint"], found["metrics"]), ("TF-IDF", found["tfidf"])]
    return [
        "  ".join(
            [name.ljust(width), *((key if value is None else f"{value:.2f}").rjust(10) for key, value in one.items())]
        )
        for name, one in rows
    ]


def main(config: RetrieveConfig) -> None:
    quiet_libraries()
    retrieve(config)


if __name__ == "__main__":
    sys.exit(run_main(RetrieveConfig, main))
