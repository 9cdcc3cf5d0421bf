"""Tokenizers of other kinds than BERT's, all the way: prepared, trained on, resumed, scored, and in the encoder's folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from recipe import pairs
from recipe.config import Data, PairsConfig, PrepareConfig, Source, Tokenizer
from recipe.corpus import inspection
from recipe.data import tokenizer
from recipe.data.shards import DatasetInfo, read_info
from recipe.glue import glue
from recipe.prepare import prepare
from recipe.training.checkpoint import find_checkpoint
from tests.mistakes import refused
from tests.tiny.configs import glue_config, train_yaml
from tests.tiny.runs import losses, run, stop_at
from tests.tiny.tasks import COLOURS, write_pairs, write_sst2
from tests.tiny.texts import make_text, open_batches, write_text
from tests.tiny.tokenizers import RARE, TOKENIZERS, write_other_tokenizer


def dataset_of(folder: Path, kind: str) -> DatasetInfo:
    """`folder`/dataset, prepared with a tokenizer of that kind in `folder`/tokenizer."""
    write_text(folder / "text.jsonl", make_text(300, 7))
    found = Tokenizer(name=str(write_other_tokenizer(folder / "tokenizer", kind)))
    source = Source(files=[str(folder / "text.jsonl")])
    return prepare(
        PrepareConfig(out=str(folder / "dataset"), train=source, validation_fraction=0.1, tokenizer=found, processes=1)
    )


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_ids_are_the_tokenizer_s_own_and_special_tokens_go_by_their_role(tmp_path, kind, capsys):
    info = dataset_of(tmp_path, kind)
    vocabulary, data = (
        info.vocabulary,
        Data(path=str(tmp_path / "dataset"), sequence_length=48, masking="word", mask_rate=0.3),
    )
    saved = tokenizer.encoder(tmp_path / "dataset" / "tokenizer")
    roles = {"unigram": ("<s>", "</s>", "<pad>", "<mask>"), "word-piece": ("{go}", "{end}", "{blank}", "{gap}")}
    names = roles.get(kind, ("<s>", "</s>", "<pad>", "<mask>"))
    ids = (vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id, vocabulary.mask_id)
    assert ids == tuple(saved.token_to_id(name) for name in names)
    assert (vocabulary.unk_id is None) == (kind in ("byte-level", "large"))
    assert info.dtype == read_info(tmp_path / "dataset").dtype == ("uint32" if kind == "large" else "uint16")
    texts = {tuple(saved.encode(text, add_special_tokens=False).ids[:46]) for text in make_text(300, 7)}
    batch = next(iter(open_batches(data)))
    stream = batch["input_ids"].clone()
    stream[batch["masked_indices"]] = batch["labels"]
    bounds = batch["cu_seqlens"].tolist()
    assert stream[bounds[:-1]].unique().tolist() == [vocabulary.cls_id]
    assert stream[torch.tensor(bounds[1:]) - 1].unique().tolist() == [vocabulary.sep_id]
    for start, end in zip(bounds[:-1], bounds[1:], strict=True):
        assert tuple(stream[start + 1 : end - 1].tolist()) in texts
    assert kind != "large" or batch["labels"].min() >= RARE
    assert not np.isin(batch["labels"].numpy(), vocabulary.special_ids).any()
    padded = next(iter(open_batches(data, batching="padded")))
    assert padded["input_ids"][padded["attention_mask"] == 0].unique().tolist() == [vocabulary.pad_id]
    capsys.readouterr()
    inspection.main([str(tmp_path / "dataset")])
    shown = capsys.readouterr().out
    assert "entry 7" in shown.lower() and f"vocabulary {vocabulary.size:,}" in shown


@pytest.mark.parametrize(
    ("kind", "model"),
    [*((kind, "mosaic_bert") for kind in TOKENIZERS), ("unigram", "hf_bert"), ("word-piece", "hf_bert")],
)
def test_an_encoder_with_such_a_tokenizer_is_trained_resumed_and_scored(tmp_path, kind, model):
    info = dataset_of(tmp_path, kind)
    yaml = train_yaml(
        tmp_path, tmp_path / "dataset", f"model.name={model}", "duration=6ba", "log_every=2", "checkpoint_every=2ba",
        "data.masking=word", "model.hidden_size=16", "model.intermediate_size=32", "model.num_hidden_layers=1",
    )  # fmt: skip
    unbroken = run(yaml, f"out={tmp_path / 'unbroken'}")
    with pytest.raises(KeyboardInterrupt):
        run(yaml, callbacks=[stop_at(5)])
    assert losses(run(yaml, "autoresume=true")) == losses(unbroken)
    found = find_checkpoint(str(tmp_path / "run"))
    assert (found.pad_id, found.mask_id) == (info.vocabulary.pad_id, info.vocabulary.mask_id)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run" / "encoder")) == len(found.tokenizer.get_vocab())
    write_sst2(tmp_path / "data", train=32, dev=8)
    record = glue(glue_config(tmp_path, epochs=1.0, tasks=["SST-2"]))
    assert record["status"] == "finished" and record["glue"]["tasks"]["SST-2"]["score"] >= 0
    write_pairs(tmp_path / "pairs.jsonl", {"colours": 44})
    scored = pairs.main(PairsConfig(checkpoint=str(tmp_path / "run"), data=str(tmp_path / "pairs.jsonl"), device="cpu"))
    del scored
    encoded = found.tokenizer.encode(f"the {COLOURS[0]} house").ids
    assert (encoded[0], encoded[-1]) == (info.vocabulary.cls_id, info.vocabulary.sep_id)


def test_a_tokenizer_that_cannot_be_masked_with_is_refused(tmp_path):
    folder = write_other_tokenizer(tmp_path, "byte-level")
    parts = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    parts["added_tokens"] = [token for token in parts["added_tokens"] if token["content"] not in ("<mask>", "<pad>")]
    for token in ("<mask>", "<pad>"):
        del parts["model"]["vocab"][token]
    (folder / "tokenizer.json").write_text(json.dumps(parts), "utf-8")
    said = refused(tokenizer.load, Tokenizer(name=str(folder)))
    assert "has no pad_token and no mask_token; add it" in said
    (folder / "tokenizer.json").write_text("{}")
    assert "is not a tokenizer" in refused(tokenizer.load, Tokenizer(name=str(folder)))


def test_a_sentence_stays_between_the_tokenizer_s_own_ends(tmp_path, capsys):
    """One that is saved with nothing around a text is given what training puts there, and that is said."""
    loaded = tokenizer.load(Tokenizer(name=str(write_other_tokenizer(tmp_path / "a", "byte-level"))))
    assert "does not put a text between <s> and </s>" in capsys.readouterr().out
    assert loaded("red", "tree")["input_ids"][0] == loaded.cls_token_id
    assert loaded("red", "tree").token_type_ids[-1] == 1
    other = tokenizer.load(Tokenizer(name=str(write_other_tokenizer(tmp_path / "b", "word-piece"))))
    assert other("red", "tree")["input_ids"].count(other.sep_token_id) == 3  # its own form of a pair
    assert "does not put" not in capsys.readouterr().out
