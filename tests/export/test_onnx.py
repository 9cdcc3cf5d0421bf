"""ONNX, run by ONNX Runtime on batches of shapes that were not traced."""

from __future__ import annotations

import json

import numpy as np
import onnx as onnx_package
import onnxruntime
import pytest
import torch
import transformers

from recipe.export import onnx, verify
from tests.mistakes import refused
from tests.tiny.models import write_run
from tests.tiny.tasks import write_pairs


@pytest.mark.parametrize("model", ["mosaic_bert", "modern", "hf_bert"])
def test_any_batch_and_int8_with_its_score(export, tmp_path, model):
    write_pairs(tmp_path / "pairs.jsonl", {"colours": 60, "others": 45})
    run = write_run(tmp_path / "run", model)
    folder = export(run, tmp_path / "out", format="onnx", int8=str(tmp_path / "pairs.jsonl"))
    record = json.loads((folder / verify.FILE_NAME).read_text())
    assert len(record["verified"]) == 10 and record["packages"].keys() == {"onnx", "onnxruntime"}
    facts = record["facts"]
    assert facts["int8 in score"] == facts["minimal pairs, int8"] - facts["minimal pairs, float32"]
    assert 0 <= facts["minimal pairs, float32"] <= 100
    found = onnx_package.load(folder / "model.onnx")
    assert [opset.version for opset in found.opset_import if not opset.domain] == [onnx.OPSET]
    assert not list(folder.glob("*.safetensors")) and not list(folder.glob("*.py")), (
        "neither weights nor code beside them"
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    alone = session.run(None, dict(tokenizer(["red snake"], return_tensors="np")))[0]
    several = tokenizer(["red snake", "a very old house and the tree", "x"], padding=True, return_tensors="np")
    together = session.run(None, dict(several))[0]
    np.testing.assert_allclose(together[0, : alone.shape[1]], alone[0], atol=1e-4)
    small, large = ((folder / name).stat().st_size for name in (onnx.INT8, "model.onnx"))
    products = {node.op_type for node in onnx_package.load(folder / onnx.INT8).graph.node}
    assert (
        small < large and "MatMulInteger" in products and "MatMulInteger" not in {n.op_type for n in found.graph.node}
    )
    assert f"opset {onnx.OPSET}" in (folder / "README.md").read_text().lower()


def test_what_onnx_runtime_computes_otherwise_is_not_written(export, tmp_path, monkeypatch):
    whole = onnx.run
    monkeypatch.setattr(onnx, "run", lambda graph, inputs: whole(graph, inputs) + np.float32(1e-2))
    message = refused(export, write_run(tmp_path / "run"), tmp_path / "out", format="onnx")
    assert "ONNX Runtime differs by" in message and not (tmp_path / "out").exists()


def test_pairs_that_are_not_there_are_one_line_before_any_work(export, tmp_path):
    message = refused(export, tmp_path / "run", tmp_path / "out", format="onnx", int8=str(tmp_path / "none"))
    assert message.startswith(f"int8={tmp_path / 'none'}: no *.jsonl") and list(tmp_path.iterdir()) == []


def test_an_absent_mask_is_all_ones():
    class Recorder:
        def get_inputs(self):
            return [type("Input", (), {"name": name}) for name in ("input_ids", "attention_mask", "token_type_ids")]

        def run(self, outputs, given):
            return [given]

    given = onnx.run(Recorder(), {"input_ids": torch.tensor([[3, 4]])})
    assert given["attention_mask"].tolist() == [[1, 1]] and given["token_type_ids"].tolist() == [[0, 0]]
