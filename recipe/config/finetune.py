"""Keys of `python -m recipe.finetune` and `recipe.predict`: tasks and files of the user's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from recipe.config.score import Jobs
from recipe.settings import COPY, MISSING, setting

# OmegaConf reads these annotations at run time, hence Optional[...] where the linter would write `... | None`.
# ruff: noqa: UP045

FORMATS = ("csv", "tsv", "jsonl", "parquet", "conll")


@dataclass
class Files:
    """How files are read."""

    format: str = setting(
        "auto",
        "auto: by the file's suffix. csv has quotes; tsv has none, a quotation mark belongs to the text; conll has a word per "
        "line and a blank line behind each sentence",
        choices=("auto", *FORMATS),
    )
    encoding: str = setting("utf-8", "of text files, such as cp1252 or utf-16")
    delimiter: str = setting(",", "between the cells of a csv file")
    columns: list[str] = setting([], "names of the columns, for files without a header line, as conll's always are")


@dataclass
class FinetuneConfig(Jobs, Files):
    """`python -m recipe.finetune`: one checkpoint, fine-tuned on a task of the user's own, with several seeds."""

    name: str = setting(MISSING, "the task's name")
    kind: str = setting(
        "classification",
        "a row of recipe.finetune.kinds. classification: one label; multilabel: any number of labels; regression: a number; "
        "siamese_classification, siamese_regression: of a pair, each text by itself; embedding: vectors of texts that belong "
        "together; mirror: the same of texts alone; entities: an IOB2 tag per word",
    )
    data: str = setting(".", "the folder that the files' names are relative to")
    train: list[str] = setting(MISSING, "files to train on")
    dev: list[str] = setting(
        [],
        "files that early stopping and the best seed are chosen by; none: drawn from `train` where `dev_share` says so",
    )
    test: list[str] = setting([], "files that the score is of; none: the dev split")
    dev_share: Optional[float] = setting(
        None,
        "share of `train` that is drawn as dev split, stratified, equal texts on one side; none: 0.1 where it is needed, that is "
        "without `dev` and `test`, or with early stopping",
        least=0,
        below=1,
    )
    split_seed: int = setting(0, "of that draw", least=0)
    text: list[str] = setting(
        ["text"], "the column of the text, or the two of a pair; embedding: also a third, which does not belong"
    )
    label: str = setting("label", "the column of the label, labels, number or tags")
    labels: list[str] = setting([], "the labels, in the order of their ids; none: those of `train`, sorted")
    separator: str = setting(
        "",
        "between several labels, or words and their tags, in one cell",
        special="empty for the kind's: comma or space",
    )
    bad_rows: int = setting(
        0,
        "rows per set that cannot be used and are left out; one more, and the run does not begin",
        least=0,
    )
    metrics: list[str] = setting([], "names of metrics, whose mean is the score; none: the kind's first")
    seeds: list[int] = setting([19, 8364, 717], "a fine-tuning for each", least=0, most=2**32 - 1)
    lr: float = setting(5e-5, "peak learning rate of AdamW (betas 0.9 and 0.98)", above=0)
    weight_decay: float = setting(5e-6, "times lr / peak lr, a step, as in pretraining", least=0)
    warmup: float = setting(0.06, "share of the run over which the learning rate rises", least=0, most=1)
    final_lr: float = setting(
        0.0, "learning rate at the end of its linear fall, as a share of the peak", least=0, most=1
    )
    epochs: float = setting(3.0, "epochs", above=0)
    batch_size: int = setting(32, "examples per step, in pieces of at most max_tokens, whose gradients add up", least=1)
    class_weights: str = setting(
        "none",
        "balanced: an example counts by examples / (classes x examples of its class); of several labels, a label's presence by "
        "absent / present",
        choices=("none", "balanced"),
    )
    temperature: float = setting(
        0.05, "by which the cosines of embedding and mirror are divided before the softmax", above=0
    )
    positives: Optional[float] = setting(
        None,
        "embedding: the least number in `label` of rows of `train` whose texts belong together; none: all rows, no label",
    )
    early_stopping: int = setting(
        0,
        "epochs without a better dev score after which training ends; the best epoch is kept",
        least=0,
        special="0 for off",
    )
    layer_decay: float = setting(
        1.0, "learning rate of a layer as a share of that of the layer above it", above=0, most=1, special="1 for off"
    )
    freeze_layers: int = setting(
        0,
        "layers from below that are not trained, the embeddings with them",
        least=-1,
        special="-1 for the complete encoder",
    )
    out: Optional[str] = setting(
        None, "the results' folder; none: `finetune-NAME` inside the checkpoint's run", result=False, local=COPY
    )


@dataclass
class PredictConfig(Files):
    """`python -m recipe.predict MODEL FILE`: predictions of a fine-tuned model, with probabilities, in the file's order."""

    model: str = setting(MISSING, "the folder that recipe.finetune wrote, or the `model` inside it")
    file: str = setting(MISSING, "csv, tsv, jsonl, parquet or conll")
    out: Optional[str] = setting(
        None,
        "the predictions, .jsonl, .csv or .tsv; none: FILE.predictions.jsonl, beside the file",
        result=False,
        local=COPY,
    )
    text: list[str] = setting([], "the column of the text, or the two of a pair; none: as in training")
    all_labels: bool = setting(False, "write the probability of every label, not only of the predicted one")
    max_tokens: int = setting(
        0,
        "tokens that run at a time",
        least=0,
        special="0 for 1,024 where a CPU runs padded rows, which then stay in its caches, and 8,192 elsewhere",
        result=False,
    )
    precision: str = setting("auto", "auto: bf16 where the device computes in it", choices=("auto", "amp_bf16", "fp32"))
    device: str = setting("auto", "auto: a GPU where there is one", choices=("auto", "gpu", "cpu"), result=False)


@dataclass
class RetrieveConfig(Files):
    """`python -m recipe.retrieve`: documents ranked for queries by the cosine of their vectors, and judged."""

    checkpoint: str = setting(
        MISSING, "a run's folder, one of its checkpoints, an encoder's folder, or a model of kind embedding or mirror"
    )
    data: str = setting(".", "the folder that the files' names are relative to")
    documents: list[str] = setting(MISSING, "files of documents")
    queries: list[str] = setting(MISSING, "files of queries")
    judgements: list[str] = setting(MISSING, "files of grades, a row for each query and document that was judged")
    id: str = setting("id", "the column of a document's or a query's name")
    document_text: list[str] = setting(["text"], "the columns of a document's text, joined by a space")
    query_text: list[str] = setting(["text"], "the columns of a query's text, likewise")
    query: str = setting("query", "the column of judgements with the query's name")
    document: str = setting("document", "that with the document's")
    grade: str = setting("grade", "that with the grade; above 0 is relevant, and more is better")
    out: Optional[str] = setting(
        None, "the results' folder; none: `retrieval` inside the checkpoint's run or folder", result=False, local=COPY
    )
    max_length: int = setting(256, "tokens of a text, beyond which it is cut", least=8)
    max_tokens: int = setting(16_384, "tokens that run at a time", least=8, result=False)
    precision: str = setting("auto", "auto: bf16 where the device computes in it", choices=("auto", "amp_bf16", "fp32"))
    device: str = setting("auto", "auto: a GPU where there is one", choices=("auto", "gpu", "cpu"), result=False)
