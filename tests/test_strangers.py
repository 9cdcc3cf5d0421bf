"""Files of strangers: what could execute code, fill a machine or leave its folder is refused or defused."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from markdown_it import MarkdownIt
from streaming import MDSWriter
from streaming.base.hashing import get_hash

from recipe import records
from recipe.config import ExportConfig, Source, TrainConfig, load
from recipe.config.finetune import Files
from recipe.corpus import inspection, sources
from recipe.cost import prices
from recipe.data.documents import Documents
from recipe.data.shard_files import check_files
from recipe.data.shards import HASH
from recipe.export import card
from recipe.export.finding import find_subject
from recipe.finetune import minimal_pairs, scores
from recipe.finetune.files import read_rows
from recipe.finetune.results import find_record
from recipe.pareto import draw
from recipe.system import expansion, inert
from recipe.system.files import leaving
from recipe.training.checkpoint import find_checkpoint
from recipe.training.resume import find_run
from tests.mistakes import refused
from tests.tiny.models import write_encoder, write_run
from tests.tiny.records import record_run, rows_of
from tests.tiny.texts import packed_copy

TRAIN = "out: runs/x\ndata: {path: data/y}\n"
HOSTILE = "</script><img src=x onerror=alert(1)> *a* [b](http://c.d) `e` | f & www.g.h $i$ _j_ # ~~k~~"


@pytest.fixture
def copy(tiny_dataset, tmp_path) -> Path:
    return packed_copy(tiny_dataset, tmp_path / "dataset")


@pytest.mark.parametrize(
    "name", ["!!python/object/apply:os.system", "!!python/name:os.system", "!evil", "!!python/tuple"]
)
def test_a_yaml_tag_is_refused(tmp_path, name):
    file = tmp_path / "a.yaml"
    file.write_text(f'{TRAIN}seed: {name} ["touch {tmp_path}/made"]\n')
    assert f"{file}: not valid YAML: the tag `{name}`: nothing is made of tags here" in refused(
        load, TrainConfig, str(file)
    )
    assert f"{file}: not valid YAML: the tag `{name}`" in refused(prices.load, str(file))
    assert not (tmp_path / "made").exists()


def test_a_yaml_file_does_not_grow_when_it_is_read(tmp_path):
    file = tmp_path / "a.yaml"
    laughs = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    for text, says in (
        (f"a0: &a0 lol\n{laughs}", "its aliases stand for more than 100,000 values"),
        ("a: &a [*a]\n", "its aliases stand for more than"),
        ("[" * 5000, "nested too deeply"),
        ("a: b\n" * (1 << 18), "longer than 1,048,576 characters"),
    ):
        file.write_text(text)
        for said in (refused(load, TrainConfig, str(file)), refused(prices.load, str(file))):
            assert f"{file}: not valid YAML: {says}" in said


def test_a_config_reads_nothing_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    file = tmp_path / "a.yaml"
    for call in ("${oc.env:HF_TOKEN}", "x-${oc.decode:1}", "${oc.create:{a:1}}"):
        file.write_text(f"out: '{call}'\ndata: {{path: data/y}}\n")
        said = refused(load, TrainConfig, str(file))
        assert "a config calls no function; write the value itself" in said and "hf_secret" not in said
    assert "calls no function" in refused(load, TrainConfig, str(file), ["out=${oc.env:HOME}"])
    file.write_text("out: ${out}\ndata: {path: data/y}\n")
    assert str(file) in refused(load, TrainConfig, str(file))


def pickled(folder: Path) -> None:
    """Make the train split of a dataset one of pickles."""
    shutil.rmtree(folder / "train")
    with MDSWriter(out=str(folder / "train"), columns={"tokens": "pkl"}, hashes=[HASH]) as writer:
        writer.write({"tokens": np.array([1], np.uint16)})


def test_a_pickled_column_is_refused_wherever_shards_are_read(copy, capsys):
    pickled(copy)
    for read in (
        lambda: check_files(copy, "train"),
        lambda: Documents(copy, "train"),
        lambda: inspection.main([str(copy)]),
    ):
        assert "columns tokens (pkl), only tokens (ndarray:uint16) is read here; a pickled one could" in refused(read)


def changed_index(folder: Path, change) -> None:
    file = folder / "train" / "index.json"
    index = json.loads(file.read_text())
    change(index["shards"][0])
    file.write_text(json.dumps(index))


def read_all(folder: Path) -> None:
    documents = Documents(folder, "train")
    try:
        documents.read(np.arange(len(documents)), 8)
    finally:
        documents.close()


def test_a_shard_unpacks_to_what_the_index_says_and_no_more(copy):
    """A small file of zeros, with its right hash."""
    raw, most = copy / "train/part-00000/shard.00000.mds", 0
    packed = raw.with_name("shard.00000.mds.zstd")
    with pyarrow.OSFile(str(packed), "wb") as file, pyarrow.CompressedOutputStream(file, "zstd") as stream:
        for _ in range(64):
            stream.write(bytes(1 << 20))

    def change(shard):
        nonlocal most
        most = shard["raw_data"]["bytes"]
        shard["zip_data"] |= {"bytes": packed.stat().st_size, "hashes": {HASH: get_hash(HASH, packed.read_bytes())}}

    changed_index(copy, change)
    for read in (read_all, lambda folder: inspection.main([str(folder)])):
        assert f"{packed}: unpacks to more than the {most:,} bytes that the index says" in refused(read, copy)
    assert packed.stat().st_size < 1 << 16 and not raw.exists() and not list(raw.parent.glob("*.tmp"))


@pytest.mark.parametrize("change", [
    lambda shard: shard["raw_data"].update(bytes=1 << 40),
    lambda shard: shard["raw_data"].update(bytes=-1),
    lambda shard: shard["raw_data"].update(hashes={}),
    lambda shard: shard.update(samples=1 << 40),
    lambda shard: shard.update(compression="gz"),
], ids=["huge", "negative", "unhashed", "samples", "compression"])  # fmt: skip
def test_an_index_with_impossible_numbers(copy, change):
    changed_index(copy, change)
    assert f"{copy / 'train/index.json'}: not an index of shards" in refused(check_files, copy, "train")


def test_links_that_leave_a_dataset_a_run_or_an_encoder(copy, tmp_path, capsys):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "added_tokens.json").write_text("{}")
    part = copy / "train" / "part-00000"
    part.rename(tmp_path / "secret" / "part")
    part.symlink_to(tmp_path / "secret" / "part")
    assert refused(check_files, copy, "train").startswith(f"{part}: a link that leaves the dataset's folder; copy")
    run = write_run(tmp_path / "run")
    link = run / "encoder" / "added_tokens.json"
    link.symlink_to(tmp_path / "secret" / "added_tokens.json")
    assert refused(find_checkpoint, str(run)).startswith(f"{link}: a link that leaves the encoder's folder")
    assert refused(find_checkpoint, str(run / "encoder")).startswith(f"{link}: a link that leaves")
    config = load(TrainConfig, str(yaml_of(tmp_path)), [f"out={run}", "autoresume=true"])
    assert refused(find_run, config).startswith(f"{link}: a link that leaves the run's folder")
    assert refused(find_record, run, "pretrain", config).startswith(f"{link}: a link that leaves `out`")
    link.unlink()
    link.symlink_to("tokenizer_config.json")
    assert leaving(run) is None and find_checkpoint(str(run))
    (tmp_path / "alias").symlink_to(run)
    assert find_checkpoint(str(tmp_path / "alias"))
    (run / "gone").symlink_to("nowhere")
    assert leaving(run) is None
    (run / "gone2").symlink_to("/nowhere")
    assert leaving(run) == run / "gone2"


def yaml_of(folder: Path) -> Path:
    file = folder / "train.yaml"
    file.write_text(TRAIN)
    return file


def test_the_code_of_a_folder_is_never_run(tmp_path, capsys):
    """`auto_map` names it, as a folder from the hub does; there is no key that would let it run."""
    write_encoder(tmp_path / "encoder", "hf_bert")
    file = tmp_path / "encoder" / "config.json"
    names = {auto: f"modeling.{name}" for auto, name in (("AutoConfig", "Config"), ("AutoModel", "Model"))}
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": names}))
    (tmp_path / "encoder" / "modeling.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')\n")
    found = find_checkpoint(str(tmp_path / "encoder"))
    found.masked_lm(None) if found.weights is not None else found.pretrained
    assert f"{tmp_path / 'encoder'}: brings code of its own, which is not run\n" in capsys.readouterr().out
    assert not (tmp_path / "made").exists()
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "model_type": "mine"}))
    assert "config.json: not the configuration of an encoder" in refused(find_checkpoint, str(tmp_path / "encoder"))
    assert not (tmp_path / "made").exists()


def bomb(file: Path, piece: bytes, times: int) -> Path:
    kinds = {".gz": "gzip", ".zst": "zstd"}
    with pyarrow.OSFile(str(file), "wb") as out, pyarrow.CompressedOutputStream(out, kinds[file.suffix]) as stream:
        for _ in range(times):
            stream.write(piece)
    return file


def texts(file: Path) -> list[str]:
    source = Source(files=[str(file)])
    return list(sources.documents(sources.parts(source)[0], sources.Rejected()))


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.zst", "a.csv.gz", "a.json.zst"])
def test_a_text_that_expands_without_bound(tmp_path, name, monkeypatch):
    monkeypatch.setattr(expansion, "FREE_EXPANSION", 1 << 20)
    line = b"text\n" + b"b" * 8191 + b"\n\n"
    said = refused(texts, bomb(tmp_path / name, line, 1200))
    assert said.startswith(f"{tmp_path / name}: unpacks to more than 250 times its size"), said
    assert len(texts(bomb(tmp_path / "small.txt.gz", line, 30))) == 30


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_a_line_without_end(tmp_path, name, monkeypatch):
    monkeypatch.setattr(sources, "LONGEST", 1 << 16)
    (tmp_path / name).write_bytes(b"text\n" * (name == "a.csv") + b"b" * (1 << 17))
    assert refused(texts, tmp_path / name) == (
        f"{tmp_path / name}: a line of more than 65,536 characters; divide it, or remove the file"
    )
    (tmp_path / "b.txt").write_bytes(b"words and words\n" * (1 << 13))
    assert f"{tmp_path / 'b.txt'}:1: no blank line for 65,536 characters" in refused(texts, tmp_path / "b.txt")


def test_pairs_that_expand_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(expansion, "FREE_EXPANSION", 1 << 16)
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b"\n" * (1 << 22)))
    assert "more than 250 times its own size, which no pairs have" in refused(
        minimal_pairs.read_pairs, str(file), "tuning"
    )
    monkeypatch.setattr(expansion, "FREE_EXPANSION", 1 << 26)
    file.write_bytes(gzip.compress(b" " * (1 << 21)))
    assert f"{file}:1: a line of 1,048,576 bytes" in refused(minimal_pairs.read_pairs, str(file), "tuning")


CELLS = {"=1+2": "'=1+2", "+cmd": "'+cmd", "-x": "'-x", "@a": "'@a", "'=1": "''=1", "\t=1": "'\t=1", "-1.5": "-1.5",
         "+2e-3": "+2e-3", "a=b": "a=b", "'tis": "'tis", "": ""}  # fmt: skip


def test_a_cell_is_no_formula_and_comes_back(tmp_path):
    for text, written in CELLS.items():
        assert inert.cell(text) == written and inert.from_cell(inert.cell(text)) == text
    assert inert.cell(-1.5) == -1.5 and inert.cell(None) is None
    header = ["row", "prediction", "probability", "problem"]
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open("w", newline="") as stream:
            table = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
            words = [text for text in CELLS if "\t" not in text]
            table.writerows([header, *([i, inert.cell(text), 0.5, ""] for i, text in enumerate(words))])
        rows = read_rows(tmp_path / name, Files(), ["prediction"])
        assert [row.cells["prediction"] for row in rows] == words
    (tmp_path / "b.csv").write_text("text\n'=1\n")  # of a user, whose text is left as it is
    assert [row.cells for row in read_rows(tmp_path / "b.csv", Files(), ["text"])] == [{"text": "'=1"}]


def test_names_of_runs_are_no_formulas(tmp_path):
    record_run(tmp_path / "runs", "one", "mosaic_bert", 2.0, {"=HYPERLINK(1)": 45.0}, **{"name": '=cmd|"/c calc"!A0'})
    draw([tmp_path / "runs"], tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "pareto.csv").values()
    assert row["run"] == '\'=cmd|"/c calc"!A0' and row["'=HYPERLINK(1)"] == "45.0"
    with (tmp_path / "out" / "pareto.csv").open(newline="") as stream:
        assert not [cell for line in csv.reader(stream) for cell in line if cell[:1] in tuple("=+-@")]


def shown(markdown: str) -> tuple[set[str], str]:
    """The kinds of Markdown in a text, with links that GitHub makes of bare addresses, and what a reader sees of it."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown)
    inline = [one for token in tokens for one in token.children or []]
    return {one.type for one in [*tokens, *inline]}, "".join(one.content for one in inline)


def test_markdown_shows_a_name_as_it_is():
    kinds, text = shown(f"A {inert.markdown(HOSTILE)} b")
    assert kinds <= {"paragraph_open", "inline", "paragraph_close", "text", "text_special"}
    assert text == f"A {HOSTILE} b"
    assert "http://" not in inert.markdown(HOSTILE) and "www." not in inert.markdown(HOSTILE)
    assert inert.markdown("mosaic_bert\n# head") == "mosaic_bert \\# head"


def test_a_card_and_a_table_of_scores_hold_no_markup_of_a_run(tmp_path):
    run = write_run(tmp_path / "run")
    record = records.read_record(run)
    record["device"] |= {"name": HOSTILE, "price_source": HOSTILE}
    record["config"]["data"] = {"path": HOSTILE}
    task = {"score": 1.0, "std": None, "init": HOSTILE, "metrics": {HOSTILE: 1.0}, "runs": [1]}
    cost = {"seconds": 1.0, "gpu_hours": 0.0, "device_hours": 1.0, "usd": 1.0}
    record["glue"] = {"benchmark": HOSTILE, "protocol": {HOSTILE: HOSTILE}, "tasks": {HOSTILE: task}, "absent": [HOSTILE],
                      "of": 8, "score": 1.0, "cost": cost}  # fmt: skip
    record["status"] = "finished"
    records.write_record(run, record)
    export = {"facts": {HOSTILE: HOSTILE}, "packages": {}, "verified": {HOSTILE: {"difference": 0.0, "allowed": 0.0}},
              "provenance": records.provenance()}  # fmt: skip
    out = tmp_path / 'x"); import os; ("'
    text = card.render(find_subject(str(run)), ExportConfig(checkpoint=str(run), out=str(out)), export)
    assert 'from_pretrained("x\\"); import os; (\\""' in text
    for page in (text.partition("---\n\n")[2], scores.markdown(HOSTILE, record["glue"])):
        kinds, seen = shown(page)
        assert kinds.isdisjoint({"html_inline", "html_block", "link_open", "image", "em_open", "s_open", "strong_open"})
        assert seen.count("<img src=x onerror=alert(1)>") >= 5
