"""Whole runs on a GPU beside the same ones on its machine's CPU, in float32 and without dropout."""

from __future__ import annotations

import pytest
import torch

from tests.tiny.configs import train_yaml
from tests.tiny.runs import losses, run

FORMS = {
    "sequences": (),
    "packed, compiled": ("data.batching=tokens", "batch_size=16", "microbatch_size=8", "model.compile=true"),
    "baseline": ("model.name=hf_bert",),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("form", FORMS)
def test_a_gpu_trains_what_a_cpu_trains(tmp_path, tiny_dataset, form):
    words = ("duration=12ba", "log_every=4", "precision=fp32", "model.hidden_dropout_prob=0", "optimizer.lr=3.0e-3")
    yaml = train_yaml(tmp_path, tiny_dataset, *words)
    curves = []
    for device in ("gpu", "cpu"):
        words = [*FORMS[form], f"device={device}", f"out={tmp_path / device}"]
        words += ["model.compile=false"] if device == "cpu" else []
        record = run(yaml, *words)
        assert record["device"]["kind"] == device
        curves.append(losses(record))
        torch.distributed.destroy_process_group()  # the next device's is of another kind
    assert curves[0] == pytest.approx(curves[1], abs=5e-3)
