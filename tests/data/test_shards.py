"""Shards and dataset.json: written, merged, read back."""

import dataclasses
import json
import random
import subprocess
import sys

import numpy as np
import pytest
from streaming import StreamingDataset
from streaming.base.util import clean_stale_shared_memory

from recipe.data import shards
from recipe.data.shards import DatasetInfo, Lengths, ShardWriter, SourceInfo, Vocabulary
from recipe.errors import UserError

MAX_TOKENS, UNK = 50, 1


@pytest.fixture
def written(tmp_path):
    """Three parts, the second without a document, and the ids that went in."""
    draw = random.Random(2)
    parts = [
        [[draw.randrange(65_536) for _ in range(n)] for n in lengths] for lengths in ([1, 3, 50, 51], [], [127, 7])
    ]
    parts[0][1] = [UNK, 5, UNK]
    total = Lengths(MAX_TOKENS)
    for i, documents in enumerate(parts):
        writer = ShardWriter(shards.part_folder(tmp_path, "train", i), MAX_TOKENS, UNK, shard_mib=1)
        for ids in documents:
            writer.write(ids)
        writer.finish()
        total.merge(writer.lengths)
    shards.merge_parts(tmp_path, "train", len(parts))
    return tmp_path, [ids for documents in parts for ids in documents], total


def test_read_back(written):
    folder, documents, _ = written
    clean_stale_shared_memory()
    stream = StreamingDataset(local=str(folder / "train"), shuffle=False, batch_size=1)
    stored = [stream[i]["tokens"] for i in range(stream.num_samples)]
    assert all(tokens.dtype == np.uint16 and tokens.ndim == 1 for tokens in stored)
    assert [tokens.tolist() for tokens in stored] == [ids[:MAX_TOKENS] for ids in documents]


def test_index_names_hashes_and_compression(written):
    index = json.loads((written[0] / "train" / "index.json").read_text())
    assert [shard["samples"] for shard in index["shards"]] == [4, 2]
    for shard in index["shards"]:
        assert shard["compression"] == "zstd"
        assert shard["column_encodings"] == ["ndarray:uint16"]
        assert set(shard["raw_data"]["hashes"]) == set(shard["zip_data"]["hashes"]) == {"xxh64"}
        assert (written[0] / "train" / shard["zip_data"]["basename"]).is_file()


def test_shards_are_cut_at_their_size(tmp_path):
    writer = ShardWriter(tmp_path / "p", 1022, UNK, shard_mib=1)
    for _ in range(1100):
        writer.write(list(range(1022)))
    writer.finish()
    index = json.loads((tmp_path / "p" / "index.json").read_text())
    assert len(index["shards"]) == 3
    assert all(shard["raw_data"]["bytes"] <= 2**20 for shard in index["shards"])


def test_lengths_are_exact(written):
    _, documents, total = written
    info, stored = total.info(), [min(len(ids), MAX_TOKENS) for ids in documents]
    assert info.documents == 6
    assert info.tokens == sum(stored)
    assert info.truncated == pytest.approx((1 + 77) / sum(map(len, documents)))
    unknown = sum(ids[:MAX_TOKENS].count(UNK) for ids in documents)
    assert unknown >= 2
    assert info.unknown == pytest.approx(unknown / sum(stored))


@pytest.mark.parametrize("count", [1, 2, 3, 99, 1000])
def test_quantiles_against_numpy(count):
    draw = np.random.default_rng(count)
    lengths = draw.integers(1, MAX_TOKENS + 1, count)
    total = Lengths(MAX_TOKENS)
    np.add.at(total.histogram, lengths, 1)
    total.read_tokens = int(lengths.sum())
    found = total.info().lengths
    for q in (5, 25, 50, 75, 95, 99):
        assert found[f"p{q}"] == np.quantile(lengths, q / 100, method="inverted_cdf"), q
    assert (found["min"], found["max"]) == (lengths.min(), lengths.max())
    assert found["mean"] == pytest.approx(lengths.mean(), abs=0.01)


def example():
    lengths = Lengths(MAX_TOKENS)
    lengths.histogram[[3, 9]] = 5
    lengths.read_tokens = 60
    return DatasetInfo(
        vocabulary=Vocabulary(300, True, "0" * 64, 0, 1, 2, 3, 4),
        max_tokens=MAX_TOKENS,
        splits={"train": lengths.info()},
        sources={"train": SourceInfo({"files": []}, {"empty": 2}, {"empty": ["größe.txt:1"]})},
        config={"out": "x"},
        packages={},
    )


def test_info_round_trip(tmp_path):
    shards.write_info(example(), tmp_path)
    info = shards.read_info(tmp_path)
    assert info == example()
    assert info.split("train").documents == 10
    with pytest.raises(UserError, match="no split `validation`; this dataset has train"):
        info.split("validation")


def test_info_needs_neither_streaming_nor_transformers(tmp_path):
    shards.write_info(example(), tmp_path)
    code = (
        "import sys; from recipe.data.shards import read_info; read_info(sys.argv[1]); "
        "print({'streaming', 'transformers', 'torch'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


def test_unreadable_info(tmp_path):
    with pytest.raises(UserError, match="does not exist; python -m recipe.prepare"):
        shards.read_info(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no dataset.json"):
        shards.read_info(tmp_path)
    good = dataclasses.asdict(example())
    for content, message in (
        ("", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        (json.dumps(good | {"format": 99}), "format 99"),
        (json.dumps(good | {"more": 1}), "damaged"),
        (json.dumps(good | {"splits": []}), "damaged"),
        (json.dumps(good | {"vocabulary": good["vocabulary"] | {"file": []}}), r"`file` is \[\]"),
        (json.dumps(good | {"vocabulary": good["vocabulary"] | {"unk_id": "x"}}), "`unk_id` is 'x'"),
        (json.dumps(good | {"vocabulary": good["vocabulary"] | {"other_special_ids": [None]}}), r"is \[None\]"),
        (json.dumps(good | {"vocabulary": good["vocabulary"] | {"file": "../../x"}}), "vocabulary file ../../x"),
        (json.dumps(good | {"max_tokens": True}), "`max_tokens` is True"),
    ):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(UserError, match=message) as error:
            shards.read_info(tmp_path)
        assert "\n" not in str(error.value)
