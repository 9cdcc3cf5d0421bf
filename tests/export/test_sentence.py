"""A sentence encoder, loaded and asked by sentence-transformers itself."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from sentence_transformers import SentenceTransformer

from recipe.export import sentence, verify
from recipe.export.subject import PretrainedEncoder
from recipe.model.encoder import Backends
from recipe.training.checkpoint import find_checkpoint
from tests.mistakes import refused
from tests.tiny.models import write_run

TEXTS = ["a red horse near the old house", "snake", "white and black and blue"]


@pytest.mark.parametrize(
    ("model", "pooling"), [("mosaic_bert", "mean"), ("mosaic_bert", "cls"), ("modern", "mean"), ("hf_bert", "mean")]
)
def test_its_embeddings_are_the_run_s(export, tmp_path, model, pooling):
    run = write_run(tmp_path / "run", model)
    folder = export(run, tmp_path / "out", format="sentence", pooling=pooling)
    record = json.loads((folder / verify.FILE_NAME).read_text())
    assert set(record["verified"]) == {"embeddings"} and record["packages"].keys() == {"sentence_transformers"}
    loaded = SentenceTransformer(str(folder), device="cpu", trust_remote_code=model == "mosaic_bert")
    assert [type(module).__name__ for module in loaded] == list(sentence.MODULES)
    found = loaded.encode(TEXTS, convert_to_tensor=True)
    checkpoint = find_checkpoint(str(run))
    ours = checkpoint.masked_lm(Backends()).eval()
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([checkpoint.tokenizer.encode(text).ids])
        with torch.no_grad():
            hidden = (
                ours.model.bert(ids).last_hidden_state if model == "hf_bert" else ours.padded(ids).last_hidden_state
            )
        expected = hidden[0].mean(0) if pooling == "mean" else hidden[0, 0]
        torch.testing.assert_close(vector, F.normalize(expected, dim=0), rtol=0, atol=1e-5)


def test_other_pooling_than_the_folder_s_is_found(export, tmp_path, monkeypatch):
    """The comparison is not with itself."""

    def last(subject, hidden, inputs, pooling):
        return F.normalize(hidden[inputs["attention_mask"].sum(dim=1).cumsum(0) - 1], dim=1)

    monkeypatch.setattr(PretrainedEncoder, "vectors", last)
    message = refused(export, write_run(tmp_path / "run"), tmp_path / "out", format="sentence")
    assert "embeddings differs by" in message and not (tmp_path / "out").exists()
