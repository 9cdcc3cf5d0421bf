"""What a run stands on: devices, precision, and the ceiling that MFU is measured against."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from recipe.errors import UserError
from recipe.system import hardware
from recipe.system.hardware import find_hardware

HAS_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def pretend_gpu(monkeypatch, name: str, capability: tuple[int, int] = (9, 0)) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)


def test_this_cpu():
    found = find_hardware("cpu", "fp32", ranks=1)
    assert (found.kind, found.device, found.autocast, found.activation_dtype) == ("cpu", "cpu", None, torch.float32)
    assert found.count == len(os.sched_getaffinity(0))
    assert found.name.strip() and found.peak_flops is None


def test_auto_takes_bf16_where_it_can_run():
    found = find_hardware("cpu", "auto", ranks=1)
    assert found.autocast == (torch.bfloat16 if HAS_BF16 else None)


def test_bf16_where_it_cannot_run():
    if HAS_BF16:
        assert find_hardware("cpu", "amp_bf16", ranks=1).activation_dtype == torch.bfloat16
        return
    with pytest.raises(UserError, match="precision=amp_bf16: this CPU has no bf16.*set precision=fp32 or auto"):
        find_hardware("cpu", "amp_bf16", ranks=1)


def test_bf16_on_an_old_cpu(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert find_hardware("cpu", "auto", ranks=1).autocast is None
    with pytest.raises(UserError, match="precision=amp_bf16"):
        find_hardware("cpu", "amp_bf16", ranks=1)


def test_bf16_on_an_old_gpu(monkeypatch):
    pretend_gpu(monkeypatch, "Tesla V100-SXM2-16GB", (7, 0))
    assert find_hardware("auto", "auto", ranks=1).autocast is None
    with pytest.raises(UserError, match=r"sm_70\) has no bf16.*set precision=fp32 or auto"):
        find_hardware("gpu", "amp_bf16", ranks=1)


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device=gpu: torch sees no CUDA GPU here; set device=cpu or auto"):
        find_hardware("gpu", "auto", ranks=1)
    assert find_hardware("auto", "fp32", ranks=2).kind == "cpu"


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("tpu", "auto", "device=tpu: known are auto, gpu, cpu"),
        ("", "auto", "device=: known are"),
        ("CPU", "auto", "device=CPU"),
        ("cpu", "bf16", "precision=bf16: known are auto, amp_bf16, fp32"),
    ],
)
def test_unknown_words(device, precision, message):
    with pytest.raises(UserError, match=message):
        find_hardware(device, precision, ranks=1)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A40", 150),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("Tesla T4", None),
        ("NVIDIA A10", None),
    ],
)
def test_peak_by_name(monkeypatch, name, tflops):
    pretend_gpu(monkeypatch, name)
    found = find_hardware("auto", "auto", ranks=8)
    assert (found.kind, found.device, found.name, found.count) == ("gpu", "cuda", name, 8)
    assert found.peak_flops == (tflops and 8 * tflops * 1e12)
    assert find_hardware("gpu", "fp32", ranks=8).peak_flops is None  # the table is of bf16


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA RTX A4000", "NVIDIA RTX 4000 SFF Ada Generation"])
def test_a_longer_name_is_another_device(monkeypatch, name):
    """An L40 is no L4 and an A4000 no A40: a peak that is not known gives no MFU, and never a wrong one."""
    pretend_gpu(monkeypatch, name, (8, 9))
    assert find_hardware("auto", "auto", ranks=1).peak_flops is None


def test_cpu_beside_a_gpu(monkeypatch):
    pretend_gpu(monkeypatch, "NVIDIA H200")
    assert find_hardware("cpu", "fp32", ranks=1).kind == "cpu"


def test_no_cpuinfo(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "Path", lambda _: tmp_path / "absent")
    assert find_hardware("cpu", "fp32", ranks=1).name


# Pages that the system gives while a large tensor is made, written and freed again and again: before, and once memory is kept.
PAGES = """
import resource, torch
from recipe.system.hardware import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = pages()
keep_freed_memory()
pages()
print(given_back, pages())
"""


def test_freed_memory_is_kept():
    """In a process of its own: what ran before in this one may have left the C library in another of its arenas."""
    given_back, kept = map(int, subprocess.check_output([sys.executable, "-c", PAGES], text=True).split())
    assert kept < given_back / 4, "the C library is glibc, on which the whole project runs"
