"""Every reader of a file that may be a stranger's, with a valid file for it to be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st
from streaming.base.hashing import get_hash

from recipe import convert, plan, records
from recipe.config import PrepareConfig, Source, TrainConfig, load
from recipe.config.finetune import Files
from recipe.config.prepare import Tokenizer
from recipe.corpus import sources
from recipe.cost import prices
from recipe.data import tokenizer
from recipe.data.documents import Documents, some_records
from recipe.data.shard_files import check_files
from recipe.data.shards import HASH, read_info
from recipe.data.stream import check_vocabulary
from recipe.errors import UserError
from recipe.finetune import minimal_pairs
from recipe.finetune.files import read_rows
from recipe.finetune.folder import open_fine_tuned
from recipe.finetune.tasks import TASKS, rows_of
from recipe.report import study
from recipe.training.checkpoint import find_checkpoint
from tests.fuzz.mutations import Damage, Made, damaged, damaged_json
from tests.tiny.configs import PRICES
from tests.tiny.models import write_encoder
from tests.tiny.own import write_own
from tests.tiny.records import pair_scores, record_run
from tests.tiny.tasks import write_pairs
from tests.tiny.texts import make_text, write_dataset, write_text, write_vocabulary


@dataclass(frozen=True)
class Reader:
    file: str  # that is damaged, below the folder that `write_valid` fills
    read: Callable[[Path, Path], Any]  # the folder, and the file in it
    damage: Damage = damaged


def write_valid(folder: Path) -> None:
    """A valid file for every reader."""
    write_text(folder / "text.jsonl", make_text(40, 5))
    unpacked = Documents(write_dataset(folder, write_vocabulary(folder)), "train")
    unpacked.read(np.arange(1), 8)
    unpacked.close()
    texts = make_text(12, 6)
    write_text(folder / "text.jsonl.gz", texts)
    (folder / "text.txt").write_text("\n\n".join(texts))
    (folder / "text.json").write_text(json.dumps([{"text": text} for text in texts]))
    (folder / "text.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))
    with (
        pyarrow.OSFile(str(folder / "text.txt.zst"), "wb") as out,
        pyarrow.CompressedOutputStream(out, "zstd") as stream,
    ):
        stream.write("\n\n".join(texts).encode())
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / "text.parquet")
    write_own(folder / "own", 12)
    write_pairs(folder / "pairs.jsonl", {"a": 50})
    (folder / "CoLA.tsv").write_text("".join(f"s\t{i % 2}\t\t{text}\n" for i, text in enumerate(texts)))
    write_encoder(folder / "encoder")
    write_encoder(folder / "hf", "hf_bert")
    shutil.copytree(folder / "encoder", folder / "model")
    task = {"format": 1, "name": "mine", "kind": "classification", "labels": ["a", "b"], "text": ["text"], "label": "label",
            "max_length": 16, "files": {"format": "csv"}, "separator": ""}  # fmt: skip
    (folder / "model" / "task.json").write_text(json.dumps(task))
    record_run(folder / "runs", "one", "mosaic_bert", 2.0, {"CoLA": 40.0, "RTE": 60.5}, sequences=9, batches=3,
               pairs=pair_scores({"a": 60.0}))  # fmt: skip
    (folder / "train.yaml").write_text(
        "out: runs/x\ndata:\n  path: data/y\n  mask_rate: 0.3\nmodel: {hidden_size: 64, num_attention_heads: 2}\n"
        "optimizer:\n  betas: [0.9, 0.98]\nduration: 20ba  # short\nloggers: []\ncost: &c {usd_per_hour: 1e-2}\n"
    )
    (folder / "prices.yaml").write_text(PRICES.read_text("utf-8").partition("\n- name: h100\n")[0] + "\n")


def shards(folder: Path, _: Path) -> None:
    """As training reads them."""
    check_files(folder / "dataset", "train")
    documents = Documents(folder / "dataset", "train")
    try:
        documents.read(np.arange(len(documents)), 64)
    finally:
        documents.close()
    some_records(folder / "dataset", "train", 3)


def trusted_shard(folder: Path, file: Path) -> None:
    """A shard whose index says of whatever it is that it is right."""
    index = folder / "dataset/train/index.json"
    before = index.read_text()
    found = json.loads(before)
    content = file.read_bytes()
    found["shards"][0]["zip_data"] = None
    found["shards"][0]["raw_data"] |= {"bytes": len(content), "hashes": {HASH: get_hash(HASH, content)}}
    try:
        index.write_text(json.dumps(found))
        shards(folder, file)
    finally:
        index.write_text(before)


def packed(folder: Path, file: Path) -> None:
    file.with_suffix("").unlink(missing_ok=True)
    shards(folder, file)


def dataset(folder: Path, _: Path) -> None:
    info = read_info(folder / "dataset")
    info.split("train")
    check_vocabulary(folder / "dataset", info)


def record(folder: Path, file: Path) -> None:
    """As figures and plans read it."""
    found = records.read_record(file)
    study.table(study.gather([folder / "runs"]))
    study.table(study.gather([folder / "runs"], measure="loss"))
    study.table(study.gather([folder / "runs"], measure="pairs"))
    plan.shape_of(found)


def configs(_: Path, file: Path) -> None:
    """By two schemas; the first that takes it ends."""
    for schema in (TrainConfig, PrepareConfig):
        try:
            load(schema, str(file))
        except UserError as error:
            last = error
        else:
            return
    raise last


def rows(how: Files, *wanted: str) -> Callable[[Path, Path], Any]:
    return lambda _, file: list(read_rows(file, how, wanted))


def texts(_: Path, file: Path) -> None:
    source = Source(files=[str(file)])
    sources.check(source, "train")
    rejected = sources.Rejected()
    for part in sources.parts(source):
        list(sources.documents(part, rejected))


def vocabulary(_: Path, file: Path) -> None:
    tokenizer.load(Tokenizer(vocab_file=str(file))).backend_tokenizer.encode("the cat sat")


def named_tokenizer(folder: Path, file: Path) -> None:
    tokenizer.load(Tokenizer(name=str(file.parent)))


def encoder(_: Path, file: Path) -> None:
    find_checkpoint(str(file.parent)).tokenizer.encode("the cat sat")


def weights(folder: Path, file: Path) -> None:
    convert.read_shapes([file])
    convert.read_weights([file])
    find_checkpoint(str(file.parent))


def headers(content: bytes) -> st.SearchStrategy[Made]:
    """A safetensors file with a damaged header, whose length says so or not."""
    size = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + size], content[8 + size :]

    def sized(made: Made) -> bytes:
        text = made()
        return len(text).to_bytes(8, "little") + text + rest

    right = damaged_json(header).map(lambda made: lambda: sized(made))
    return st.one_of(right, right, damaged(content[: 8 + size]).map(lambda made: lambda: made() + rest))


TEXTS = ("txt", "jsonl", "json", "csv", "jsonl.gz", "txt.zst", "parquet")
TABLE = {
    "index.json": Reader("dataset/train/index.json", shards, damaged_json),
    "shard": Reader("dataset/train/part-00000/shard.00000.mds", trusted_shard),
    "packed shard": Reader("dataset/train/part-00000/shard.00000.mds.zstd", packed),
    "lengths.npy": Reader("dataset/train/lengths.npy", shards),
    "dataset.json": Reader("dataset/dataset.json", dataset, damaged_json),
    "run.json": Reader("runs/one/run.json", record, damaged_json),
    "config YAML": Reader("train.yaml", configs),
    "price table": Reader("prices.yaml", lambda _, file: prices.load(str(file))),
    "own CSV": Reader("own/train.csv", rows(Files(), "text", "label")),
    "own TSV": Reader("own/train.tsv", rows(Files(), "one", "two")),
    "own JSON lines": Reader("own/train.jsonl", rows(Files(), "text", "labels")),
    "own CoNLL": Reader("own/train.txt", rows(Files(format="conll", columns=["word", "tag", "rest"]), "word", "tag")),
    "own Parquet": Reader("text.parquet", rows(Files(), "text")),
    "GLUE TSV": Reader("CoLA.tsv", lambda _, file: list(rows_of(file, TASKS["CoLA"]))),
    "minimal pairs": Reader("pairs.jsonl", lambda _, file: minimal_pairs.read_pairs(str(file), "reported")),
    **{f"text {name}": Reader(f"text.{name}", texts) for name in TEXTS},
    "vocab.txt": Reader("vocab.txt", vocabulary),
    "tokenizer.json": Reader("encoder/tokenizer.json", encoder, damaged_json),
    "tokenizer.json by name": Reader("dataset/tokenizer/tokenizer.json", named_tokenizer, damaged_json),
    "special_tokens_map.json": Reader("encoder/special_tokens_map.json", encoder, damaged_json),
    "model.safetensors": Reader("encoder/model.safetensors", weights, headers),
    "config.json": Reader("encoder/config.json", encoder, damaged_json),
    "config.json of Hugging Face": Reader("hf/config.json", encoder, damaged_json),
    "task.json": Reader("model/task.json", lambda folder, _: open_fine_tuned(str(folder / "model")), damaged_json),
}  # fmt: skip
