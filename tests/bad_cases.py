"""The bad inputs of docs/bad-input.md: what is wrong, the command, and what is done to the valid files before it runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from tokenizers import Tokenizer, models

Files = dict[str, Any]  # name -> None: gone; text, bytes, a link's Path; or what makes the new bytes of the old
Case = tuple[str, str, Files]


def cut(keep: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(len(content) * keep)]


def begin(content: bytes) -> bytes:
    """So little that nothing in it depends on where it was written."""
    return content[:60]


def flip(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 255]) + content[-8:]


def to(*path_and_value: Any) -> Callable[[bytes], bytes]:
    """JSON with another value at a path; without the key for `...`."""
    *path, last, value = path_and_value

    def made(content: bytes) -> bytes:
        tree = place = json.loads(content)
        for key in path:
            place = place[key]
        if value is ...:
            del place[last]
        else:
            place[last] = value
        return json.dumps(tree).encode()

    return made


def swap(old: str, new: str) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old.encode(), new.encode(), 1)


def repeated(_: bytes) -> bytes:
    """Parquet in which a column `text` has a megabyte a million times."""
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array(np.zeros(1_000_000, np.int32)), ["a" * (1 << 20)])
    out = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(
        pyarrow.table({"text": column}), out, dictionary_pagesize_limit=1 << 30, store_schema=False
    )
    return out.getvalue().to_pybytes()


def packed(content: bytes, kind: str) -> bytes:
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, kind) as stream:
        stream.write(content)
    return out.getvalue().to_pybytes()


class Evil:
    def __reduce__(self):
        return os.system, ("touch made-by-a-pickle",)


def pickled_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Evil()], object), allow_pickle=True)
    return stream.getvalue()


BIGGER = Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0")).to_str()
TRAIN, PREPARE, FINETUNE = "train train.yaml", "prepare prepare.yaml", "finetune finetune.yaml"
INDEX, SHARD = "dataset/train/index.json", "dataset/train/part-00000/shard.00000.mds"
INFO, LENGTHS = "dataset/dataset.json", "dataset/train/lengths.npy"
MULTILABEL = f"{FINETUNE} train=[train.jsonl] label=labels kind=multilabel"
GLUE, PAIRS, RETRIEVE = "glue glue.yaml", "pairs pairs.yaml", "retrieve retrieve.yaml"
RUN = "runs/one/run.json"
EXPORT = "export encoder out=made"
PREDICT = "predict model own/test.csv"
PLOT = "pareto plot runs --out drawn"
PLAN = "plan --model train.yaml --prices prices.yaml --gpu h200 --budget-usd 20 --mfu 0.3"
LAUGHS = "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))

CONFIG: list[Case] = [
    ("a misspelt key", f"{TRAIN} optimzer.lr=1e-3", {}),
    ("a key of nothing", f"{TRAIN} zzz=1", {}),
    ("a misspelt key in the file", TRAIN, {"train.yaml": lambda c: c + b"batchsize: 3\n"}),
    ("a word without `=`", f"{TRAIN} batch_size", {}),
    ("text for a number", f"{TRAIN} batch_size=many", {}),
    ("a fraction for a whole number", f"{TRAIN} batch_size=2.5", {}),
    ("no documents in a batch", f"{TRAIN} batch_size=0", {}),
    ("a negative seed", f"{TRAIN} seed=-1", {}),
    ("a number that is none", f"{TRAIN} optimizer.lr=nan", {}),
    ("an infinite rate", f"{TRAIN} optimizer.lr=inf", {}),
    ("more than everything masked", f"{TRAIN} data.mask_rate=1.5", {}),
    ("a number for a list", f"{TRAIN} optimizer.betas=0.9", {}),
    ("a value for a group", f"{TRAIN} optimizer=adam", {}),
    ("a list for a value", f"{TRAIN} seed=[1]", {}),
    ("null for a number", f"{TRAIN} seed=null", {}),
    ("an unknown architecture", f"{TRAIN} model.name=gpt", {}),
    ("an unknown objective", f"{TRAIN} objective=next_sentence", {}),
    ("an unknown optimizer", f"{TRAIN} optimizer.name=sdg", {}),
    ("an unknown schedule", f"{TRAIN} schedule.shape=round", {}),
    ("no patience at all", f"{TRAIN} rank_timeout=0", {}),
    ("a run in an object store", f"{TRAIN} out=s3://bucket/run", {}),
    ("results in an object store", f"{FINETUNE} out=gs://bucket/results", {}),
    ("an unknown order", f"{TRAIN} data.order=random", {}),
    ("a part of nothing", f"{TRAIN} data.order=canonical data.canonical_parts=1", {}),
    ("a batch that does not hold every part", f"{TRAIN} data.order=canonical data.canonical_parts=3", {}),
    ("a duration without a unit", f"{TRAIN} duration=5", {}),
    ("a duration of nothing", f"{TRAIN} duration=0ba", {}),
    ("a start of the words that is none", f"{TRAIN} model.initial_words=zipf", {}),
    ("a model shared by one rank", f"{TRAIN} parallel=fsdp", {}),
    ("heads that do not divide the width", f"{TRAIN} model.num_attention_heads=3", {}),
    ("more narrow layers than layers", f"{TRAIN} model.narrow_layers=9", {}),
    (
        "narrow layers where every token is judged",
        f"{TRAIN} objective=swapped_tokens model.num_hidden_layers=2 model.narrow_layers=2",
        {},
    ),
    ("narrow layers of the baseline", f"{TRAIN} model.name=hf_bert model.narrow_layers=2", {}),
    ("stages without shares", f"{TRAIN} stages.batch_size=[4,8]", {}),
    ("stages that are not the whole run", f"{TRAIN} stages.share=[0.5,0.4]", {}),
    ("two lengths for three stages", f"{TRAIN} stages.share=[0.5,0.4,0.1] stages.sequence_length=[16,32]", {}),
    (
        "a stage of another length than the run's last",
        f"{TRAIN} stages.share=[0.5,0.5] stages.sequence_length=[32,64]",
        {},
    ),
    ("sequences that become shorter", f"{TRAIN} stages.share=[0.5,0.5] stages.sequence_length=[64,32]", {}),
    ("a stage without a batch", f"{TRAIN} stages.share=[0.9,0.1]", {}),
    ("stages of tokens", f"{TRAIN} stages.share=[0.5,0.5] duration=900tok", {}),
    ("an unbalanced bracket", f"{TRAIN} seed=[1", {}),
    ("a function of the environment on the command line", f"{TRAIN} 'out=${{oc.env:HF_TOKEN}}'", {}),
    ("no such file", "train nowhere.yaml", {}),
    ("an empty file", TRAIN, {"train.yaml": ""}),
    ("a list", TRAIN, {"train.yaml": "- a\n- b\n"}),
    ("no YAML", TRAIN, {"train.yaml": "out: [x\n"}),
    ("tabs for spaces", TRAIN, {"train.yaml": "out: x\ndata:\n\tpath: y\n"}),
    ("UTF-16", TRAIN, {"train.yaml": "out: x\n".encode("utf-16")}),
    ("bytes", TRAIN, {"train.yaml": bytes(range(256))}),
    ("a key twice", TRAIN, {"train.yaml": "out: x\nout: y\n"}),
    ("a required key missing", TRAIN, {"train.yaml": "out: x\n"}),
    ("a tag that calls a function", TRAIN, {"train.yaml": 'out: !!python/object/apply:os.system ["id"]\n'}),
    ("a tag of somebody's own", TRAIN, {"train.yaml": "out: !run x\n"}),
    ("aliases that stand for billions of values", TRAIN, {"train.yaml": LAUGHS}),
    ("an alias of itself", TRAIN, {"train.yaml": "out: &a [*a]\n"}),
    ("five thousand brackets", TRAIN, {"train.yaml": "out: " + "[" * 5000}),
    ("a function of the environment", TRAIN, {"train.yaml": "out: ${oc.env:HF_TOKEN}\ndata: {path: dataset}\n"}),
    ("a value that stands for itself", TRAIN, {"train.yaml": "out: ${out}\ndata: {path: dataset}\n"}),
]
TEXT: list[Case] = [
    ("no source", f"{PREPARE} train.files=[]", {}),
    ("two sources", f"{PREPARE} train.dataset=a/b", {}),
    ("no such file", f"{PREPARE} train.files=[nowhere.txt]", {}),
    ("a folder", f"{PREPARE} train.files=[own]", {}),
    ("an unknown suffix", f"{PREPARE} train.files=[a.doc]", {"a.doc": "x"}),
    ("a file in both splits", f"{PREPARE} validation.files=[text.jsonl] train.files=[text.jsonl,text.txt]", {}),
    ("the same text twice", f"{PREPARE} validation.files=[text.jsonl]", {}),
    ("no such column", f"{PREPARE} train.files=[text.csv] train.text_key=body", {}),
    ("no such field", f"{PREPARE} train.text_key=body", {}),
    ("only bad lines", PREPARE, {"text.jsonl": "no JSON\n{}\n"}),
    ("an empty file", PREPARE, {"text.jsonl": ""}),
    ("no UTF-8", f"{PREPARE} train.files=[a.txt]", {"a.txt": b"\xff\xfe\xfd\n"}),
    ("a JSON list cut off", f"{PREPARE} train.files=[text.json]", {"text.json": cut(0.5)}),
    ("a gzip file cut off", f"{PREPARE} train.files=[text.jsonl.gz]", {"text.jsonl.gz": cut(0.5)}),
    ("no gzip", f"{PREPARE} train.files=[text.jsonl.gz]", {"text.jsonl.gz": b"plain text"}),
    ("a Zstandard file cut off", f"{PREPARE} train.files=[text.txt.zst]", {"text.txt.zst": cut(0.5)}),
    (
        "a Zstandard file of zeros without end",
        f"{PREPARE} train.files=[a.txt.zst]",
        {"a.txt.zst": lambda _: packed((b"a" * 8191 + b"\n\n") * 9000, "zstd")},
    ),
    ("a Parquet file cut off", f"{PREPARE} train.files=[text.parquet]", {"text.parquet": cut(0.5)}),
    ("a Parquet file of a text, a million times", f"{PREPARE} train.files=[text.parquet]", {"text.parquet": repeated}),
    ("a quotation mark without an end", f"{PREPARE} train.files=[text.csv]", {"text.csv": 'text\n"never closed\n'}),
    ("a vocabulary without special tokens", PREPARE, {"vocab.txt": "the\ncat\n"}),
    ("a vocabulary with an entry twice", PREPARE, {"vocab.txt": lambda c: c + b"the\n"}),
    ("a vocabulary with capitals", PREPARE, {"vocab.txt": lambda c: c + b"Paris\n"}),
    ("a vocabulary that is no UTF-8", PREPARE, {"vocab.txt": lambda c: c + b"\xff\n"}),
    ("no such vocabulary", PREPARE, {"vocab.txt": None}),
    ("a vocabulary and a name", f"{PREPARE} tokenizer.name=bert-base-uncased", {}),
    ("a vocabulary of ten", f"{PREPARE} tokenizer.vocab_size=10", {}),
    (
        "a tokenizer's folder with a damaged tokenizer.json",
        f"{PREPARE} tokenizer.vocab_file=null tokenizer.name=encoder",
        {"encoder/tokenizer.json": begin, "encoder/tokenizer_config.json": None, "encoder/config.json": None},
    ),
    ("a folder of something else at `out`", f"{PREPARE} out=own", {}),
    ("a dataset of another configuration at `out`", f"{PREPARE} out=dataset", {}),
    ("credentials in a URL", f"{PREPARE} out=s3://me:wJalrXUtnFEMI@bucket/data", {}),
    ("a token in a URL", f"{PREPARE} out=s3://bucket/data?token=wJalrXUtnFEMI", {}),
    ("an unknown kind of store", f"{PREPARE} out=ftp://host/data", {}),
    ("a third machine of two", f"{PREPARE} shard_of=3/2", {}),
    ("`work` for a local folder", f"{PREPARE} work=there", {}),
    ("tasks of other text", f"{PREPARE} tasks=there", {}),
    ("all held out", f"{PREPARE} validation_fraction=2", {}),
]
DATASETS: list[Case] = [
    ("no such folder", f"{TRAIN} data.path=nowhere", {}),
    ("no dataset in it", f"{TRAIN} data.path=own", {}),
    ("dataset.json cut off", TRAIN, {INFO: begin}),
    ("dataset.json of a newer version", TRAIN, {INFO: to("format", 9)}),
    ("dataset.json without a vocabulary", TRAIN, {INFO: to("vocabulary", ...)}),
    ("dataset.json with ids of 64 bits", TRAIN, {INFO: to("dtype", "int64")}),
    ("dataset.json nested a thousandfold", TRAIN, {INFO: "[" * 1000 + "]" * 1000}),
    ("a split that is not there", f"{TRAIN} data.train_split=test", {}),
    ("another vocabulary beside the shards", TRAIN, {"dataset/tokenizer/vocab.txt": lambda c: c + b"new\n"}),
    ("no vocabulary", TRAIN, {"dataset/tokenizer/vocab.txt": None}),
    ("a stage longer than the documents were cut for",
     f"{TRAIN} stages.share=[0.5,0.5] stages.sequence_length=[32,4096] data.sequence_length=4096",
     {INFO: to("splits", "train", "truncated", 0.5)}),
    ("no index", TRAIN, {INDEX: None}),
    ("an index cut off", TRAIN, {INDEX: begin}),
    ("a column of pickles", TRAIN, {INDEX: to("shards", 0, "column_encodings", ["pkl"])}),
    ("a column of pickles, inspected", "inspect dataset", {INDEX: to("shards", 0, "column_encodings", ["pkl"])}),
    ("another column", TRAIN, {INDEX: to("shards", 0, "column_names", ["text"])}),
    ("a shard outside the folder", TRAIN, {INDEX: to("shards", 0, "raw_data", "basename", "../../vocab.txt")}),
    ("a shard at an absolute path", TRAIN, {INDEX: to("shards", 0, "zip_data", "basename", "/etc/passwd")}),
    ("a shard of a terabyte", TRAIN, {INDEX: to("shards", 0, "raw_data", "bytes", 2**40)}),
    ("a shard without a hash", TRAIN, {INDEX: to("shards", 0, "raw_data", "hashes", {})}),
    ("an impossible number of documents", TRAIN, {INDEX: to("shards", 0, "samples", 10**12)}),
    ("a compression that nothing here writes", TRAIN, {INDEX: to("shards", 0, "compression", "br")}),
    ("a shard that is a link to elsewhere", TRAIN, {SHARD: lambda _: Path("/etc/hostname")}),
    ("a shard cut off", TRAIN, {SHARD: cut(0.5)}),
    ("no shard", TRAIN, {SHARD: None, f"{SHARD}.zstd": None}),
    ("a packed shard with a changed byte", "inspect dataset", {f"{SHARD}.zstd": flip}),
    ("no lengths", TRAIN, {LENGTHS: None}),
    ("lengths that are no array", TRAIN, {LENGTHS: b"no array"}),
    ("lengths that are a pickle", TRAIN, {LENGTHS: pickled_array()}),
]  # fmt: skip
ENCODERS: list[Case] = [
    ("no such folder", "export nowhere/there/at/all out=made", {}),
    ("a folder of something else", "export own out=made", {}),
    ("a run that has not ended", "export run out=made", {}),
    ("a file of something else", "export vocab.txt out=made", {}),
    ("no weights", EXPORT, {"encoder/model.safetensors": None}),
    ("weights cut off", EXPORT, {"encoder/model.safetensors": cut(0.5)}),
    ("a header of exabytes", EXPORT, {"encoder/model.safetensors": lambda c: b"\xff" * 8 + c[8:]}),
    ("weights that are a pickle which calls a function", EXPORT,
     {"encoder/model.safetensors": None, "encoder/pytorch_model.bin": pickle.dumps(Evil(), 2)}),
    ("no tokenizer", EXPORT, {"encoder/tokenizer.json": None, "encoder/vocab.txt": None}),
    ("a tokenizer cut off", EXPORT, {"encoder/tokenizer.json": begin}),
    ("another model's tokenizer", EXPORT, {"encoder/tokenizer.json": lambda _: BIGGER}),
    ("config.json cut off", EXPORT, {"encoder/config.json": begin}),
    ("config.json without a model_type", EXPORT, {"encoder/config.json": to("model_type", ...)}),
    ("a decoder", EXPORT, {"encoder/config.json": to("model_type", "gpt2")}),
    ("a model with code of its own", EXPORT,
     {"encoder/config.json": '{"model_type": "mine", "auto_map": {"AutoConfig": "m.C"}}'}),
    ("a width of zero", EXPORT, {"encoder/config.json": to("hidden_size", 0)}),
    ("a billion layers", "export hf out=made", {"hf/config.json": to("num_hidden_layers", 10**9)}),
    ("a link out of the folder", EXPORT, {"encoder/added_tokens.json": lambda _: Path("/etc/passwd")}),
    ("a folder that is full at `out`", "export encoder out=own", {}),
    ("a form that nobody knows", f"{EXPORT} format=gguf", {}),
    ("weights to start from that are none", f"{TRAIN} init_from=own", {}),
    ("another tokenizer than the weights'", f"{TRAIN} init_from=encoder", {}),
    ("an ELECTRA whose embeddings are narrower than it", f"{TRAIN} init_from=hf",
     {"hf/config.json": to("model_type", "electra")}),
]  # fmt: skip
OWN: list[Case] = [
    ("no such file", f"{FINETUNE} train=[nowhere.csv]", {}),
    ("a suffix that says nothing", f"{FINETUNE} train=[train.data]", {"own/train.data": "x"}),
    ("no such column", f"{FINETUNE} text=[texts]", {}),
    ("no such label", f"{FINETUNE} label=class", {}),
    ("an empty file", FINETUNE, {"own/train.csv": ""}),
    ("a header and nothing else", FINETUNE, {"own/train.csv": "text,label\n"}),
    ("a cell too many", FINETUNE, {"own/train.csv": lambda c: c + b"a,b,c\n"}),
    ("an empty label", FINETUNE, {"own/train.csv": lambda c: c + b"words,\n"}),
    ("an empty text", FINETUNE, {"own/train.csv": lambda c: c + b",colour\n"}),
    ("a quotation mark without an end", FINETUNE, {"own/train.csv": lambda c: c + b'"never closed,colour\n'}),
    ("semicolons", FINETUNE, {"own/train.csv": "text;label\na;b\n"}),
    ("UTF-16", FINETUNE, {"own/train.csv": "text,label\n".encode("utf-16")}),
    ("another encoding than it says", FINETUNE, {"own/train.csv": lambda c: c + b"caf\xe9,colour\n"}),
    ("an encoding that nobody knows", f"{FINETUNE} encoding=utf-99", {}),
    ("two characters between cells", f"{FINETUNE} delimiter=ab", {}),
    ("one label only", FINETUNE, {"own/train.csv": "text,label\n" + "a b,x\n" * 20}),
    ("a kind that nobody knows", f"{FINETUNE} kind=regresion", {}),
    ("a metric of another kind", f"{FINETUNE} metrics=[pearson]", {}),
    ("a seed twice", f"{FINETUNE} seeds=[1,1]", {}),
    ("no seed", f"{FINETUNE} seeds=[]", {}),
    ("a label twice", f"{FINETUNE} labels=[colour,animal,colour]", {}),
    ("a label that is not in the list", f"{FINETUNE} labels=[colour,plant]", {}),
    ("nothing to score on", f"{FINETUNE} dev_share=0", {}),
    ("JSON that is none", MULTILABEL, {"own/train.jsonl": lambda c: b"{\n" + c}),
    ("JSON that is no object", MULTILABEL, {"own/train.jsonl": lambda c: b"[]\n" + c}),
    ("a CoNLL file without names of columns", f"{FINETUNE} train=[train.txt] format=conll kind=entities", {}),
    ("a line of CoNLL with a cell too few", f"{FINETUNE} train=[train.txt] format=conll kind=entities columns=[text,label,rest]",
     {"own/train.txt": lambda c: c + b"\nword O\n\n"}),
    ("a Parquet file cut off", f"{FINETUNE} data=. train=[text.parquet]", {"text.parquet": cut(0.5)}),
    ("a Parquet file of a text, a million times", f"{FINETUNE} data=. train=[text.parquet] label=text",
     {"text.parquet": repeated}),
    ("a word for a number", f"{FINETUNE} train=[train.tsv] text=[one,two] kind=regression",
     {"own/train.tsv": lambda c: c + b"a\tb\thigh\n"}),
    ("no model", "predict own own/test.csv", {}),
    ("nothing to predict", "predict model nowhere.csv", {}),
    ("predictions into what is read", f"{PREDICT} out=own/test.csv", {}),
    ("predictions in a format that nobody knows", f"{PREDICT} out=own/a.xlsx", {}),
    ("predictions into no folder", f"{PREDICT} out=nowhere/a.csv", {}),
    ("task.json cut off", PREDICT, {"model/task.json": begin}),
    ("task.json of a newer version", PREDICT, {"model/task.json": to("format", 9)}),
    ("task.json of an unknown kind", PREDICT, {"model/task.json": to("kind", "poetry")}),
    ("task.json without labels", PREDICT, {"model/task.json": to("labels", ...)}),
]  # fmt: skip
SCORES: list[Case] = [
    ("a task that nobody knows", f"{GLUE} tasks=[CoLa]", {}),
    ("a task that is not there", f"{GLUE} tasks=[RTE]", {}),
    ("no such folder", f"{GLUE} data=nowhere", {}),
    ("a folder without a task", f"{GLUE} data=own", {}),
    ("a row torn apart", GLUE, {"glue/CoLA/train.tsv": lambda c: c + b"torn\n"}),
    ("a label that is none", GLUE, {"glue/CoLA/dev.tsv": lambda c: c + b"s\tyes\t\twords\n"}),
    ("no UTF-8", GLUE, {"glue/CoLA/dev.tsv": lambda c: c + b"s\t1\t\t\xff\n"}),
    ("an empty file", GLUE, {"glue/CoLA/dev.tsv": ""}),
    ("no such pairs", f"{PAIRS} data=nowhere.jsonl", {}),
    ("a pair that is no JSON", PAIRS, {"pairs.jsonl": lambda c: b"{\n" + c}),
    ("a pair without its other half", PAIRS, {"pairs.jsonl": lambda c: b'{"sentence_good": "a"}\n' + c}),
    ("a pair nested a thousandfold", PAIRS, {"pairs.jsonl": lambda c: b"[" * 100_000 + b"\n" + c}),
    ("pairs that are no gzip", f"{PAIRS} data=a.jsonl.gz", {"a.jsonl.gz": b"{}"}),
    ("pairs that unpack without end", f"{PAIRS} data=a.jsonl.gz", {"a.jsonl.gz": gzip.compress(bytes(1 << 21))}),
    ("a document twice", RETRIEVE, {"docs.tsv": lambda c: c + b"1\tagain\n"}),
    ("a query without words", RETRIEVE, {"queries.tsv": lambda c: c + b"b\t\n"}),
    ("a grade of an unknown document", RETRIEVE, {"grades.tsv": lambda c: c + b"a\t9\t1\n"}),
    ("a grade that is no number", RETRIEVE, {"grades.tsv": lambda c: c + b"a\t2\thigh\n"}),
    ("no relevant document", RETRIEVE, {"grades.tsv": "query\tdocument\tgrade\na\t1\t0\n"}),
]
RECORDS: list[Case] = [
    ("no such runs", "pareto plot nowhere --out drawn", {}),
    ("no run in it", "pareto plot own --out drawn", {}),
    ("a record cut off", PLOT, {RUN: begin}),
    ("a record that is empty", PLOT, {RUN: ""}),
    ("a record of another kind of file", PLOT, {RUN: "[1, 2]"}),
    ("a record that is no UTF-8", PLOT, {RUN: b"\xff\xfe"}),
    ("a record of a newer version", PLOT, {RUN: '{"format": 9}'}),
    ("a record without a bill", PLOT, {RUN: to("cost", ...)}),
    ("a bill that is text", PLOT, {RUN: to("cost", "usd", "much")}),
    ("a record nested a thousandfold", PLOT, {RUN: "[" * 100_000}),
    ("a name with half a character", PLOT, {RUN: swap('"one"', '"\\ud800"')}),
    ("a task that was not scored", f"{PLOT} --tasks QNLI", {}),
    ("an axis that nobody knows", f"{PLOT} --axis euros", {}),
    ("a folder that is a file", "pareto plot runs --out vocab.txt", {}),
    ("a GPU without a price", PLAN.replace("h200", "h2000"), {}),
    ("no budget", PLAN.replace("-usd 20", "-usd 0"), {}),
    ("a share above one", PLAN.replace("0.3", "3"), {}),
    ("no machine", f"{PLAN} --nodes 0", {}),
    ("parts of no measurement", f"{PLAN} --nodes 2 --parts train.yaml", {}),
    ("a budget below a batch", PLAN.replace("-usd 20", "-usd 1e-12"), {}),
    ("a speed of no run", f"{PLAN} --record nowhere", {}),
    ("a price table that is no YAML", PLAN, {"prices.yaml": "- ["}),
    ("a price table without rows", PLAN, {"prices.yaml": "a: b\n"}),
    ("a price that is text", PLAN, {"prices.yaml": "- {name: a, match: [a], usd_per_hour: much, source: x}\n"}),
    ("a price below nothing", PLAN, {"prices.yaml": "- {name: a, match: [a], usd_per_hour: -1, source: x}\n"}),
    ("a row without a source", PLAN, {"prices.yaml": "- {name: a, match: [a], usd_per_hour: 1}\n"}),
    ("a tag that calls a function", PLAN, {"prices.yaml": '!!python/object/apply:os.system ["id"]\n'}),
    ("a budget without a unit", "pareto sweep sweep.yaml budgets=[5]", {}),
    ("a sweep of nothing", "pareto sweep sweep.yaml models=[]", {}),
    ("a sweep without scores", "pareto sweep sweep.yaml pairs=null", {}),
]
CASES: dict[str, list[Case]] = {
    "Words and YAML": CONFIG,
    "Text and tokenizers": TEXT,
    "Datasets": DATASETS,
    "Encoders and checkpoints": ENCODERS,
    "Fine-tuning and prediction": OWN,
    "Scores": SCORES,
    "Records, figures and plans": RECORDS,
}
