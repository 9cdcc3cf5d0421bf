"""Ragged batches bring one compilation of each kernel: no form that Triton specialises follows from their sizes."""

from __future__ import annotations

import json

import pytest

from tests.kernels import aot
from tests.processes import call

pytestmark = pytest.mark.skipif(
    not aot.is_the_locks_triton(), reason="plays the driver of the lock's Triton, whose ways are not public"
)


@pytest.fixture(scope="module")
def report() -> dict:
    """What tests/kernels/launches.py saw, in a process that compiles."""
    done = call("tests.kernels.launches", TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("steps", ["post-norm", "pre-norm", "long", "padding", "whole"])
def test_batches_after_the_first_compile_nothing(report, steps):
    first, *others = report[steps]
    assert first and others
    assert others == [[] for _ in others]


def test_every_kernel_was_launched(report):
    kernels = {f"{case.module}.{case.kernel}" for cases in aot.groups().values() for case in cases}
    assert set(report["launched"]) == kernels


def test_attention_has_a_form_for_each_power_of_two_up_to_128_and_one_above(report):
    """And one more for a window, where a sequence may be longer than it reaches."""
    for longest, forms in report["by length"].items():
        length = int(longest)
        block = None if length > 128 else max(16, 1 << (length - 1).bit_length())
        names = ("tiled.forward", "tiled.dq", "tiled.dkdv") if length > 128 else ("short.forward", "short.backward")
        assert forms == [[f"attention_{name}_kernel", block, length > 65] for name in names], longest


def test_a_kernel_that_specialises_would_be_seen(report):
    """For 1, for multiples of 16, and for all other numbers of tokens."""
    assert report["specialised"] == 3
