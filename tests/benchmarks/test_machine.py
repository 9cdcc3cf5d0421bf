"""What a result says of its machine, whatever tools that machine has."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import machine
from recipe import records


@pytest.fixture
def gpu(monkeypatch):
    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=79 << 30
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def tool(folder: Path, script: str) -> None:
    (folder / "nvidia-smi").write_text(f"#!/bin/bash\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_no_tool_costs_a_result(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # neither git nor nvidia-smi nor a compiler
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
    found = machine.provenance()
    assert (found["device"], found["capability"], found["memory_gib"]) == ("NVIDIA H100 80GB HBM3", "sm_90", 79.0)
    assert [found[key] for key in ("driver", "power_limit_w", "compiler", "dirty")] == [None] * 4
    assert found["torch"] == torch.__version__ and set(found) > set(records.provenance())
    text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: gcc 12\n"
    (tmp_path / "version").write_text(text)
    assert machine.provenance()["driver"] == "580.95.05"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo '580.95.05, 700.00, 1980, 2619, [N/A]'", ("580.95.05", 700.0, 1980.0, 2619.0, None)),
        ("echo 'No devices were found'; exit 6", (None,) * 5),
        ("echo 'something else'", (None,) * 5),
        ("exec /bin/sleep 60", (None,) * 5),
    ],
)
def test_what_nvidia_smi_says(gpu, script, expected, monkeypatch, tmp_path):
    tool(tmp_path, script)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(machine, "SMI_LIMIT_S", 1 if "sleep" in script else 60)
    found = machine.gpu()
    keys = ("driver", "power_limit_w", "sm_mhz_at_most", "memory_mhz_at_most", "temperature_c")
    assert tuple(found[key] for key in keys) == expected


def test_a_processor_and_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.main(["--gpu"]) == 2
    assert capsys.readouterr().out == "error: torch sees no CUDA GPU here\n"
    file = tmp_path / "new" / "machine.json"
    assert machine.main(["--out", str(file)]) == 0
    assert json.loads(file.read_text())["threads"] == torch.get_num_threads()
    assert "attention  sdpa" in capsys.readouterr().out
