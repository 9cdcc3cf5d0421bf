"""The compiled step as a GPU would get it: one graph for all sizes, with nothing in it but what is computed."""

from __future__ import annotations

import json

import pytest

from tests.processes import call

# Of a kernel's calls: in the graph that Dynamo traces, and those that go back.
KERNELS = {
    "mosaic_bert": {"attention_packed": 1, "glu": 1, "layer_norm": 4, "masked_cross_entropy": 1, "take_rows": 2},
    "modern": {
        "add_layer_norm": 3, "attention_packed": 2, "glu": 2, "layer_norm": 3, "masked_cross_entropy": 1, "rotary": 2,
        "take_rows": 2,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def reports() -> dict:
    """What tests/training/traced_on_cuda.py saw."""
    done = call("tests.training.traced_on_cuda")
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def kernels_of(calls: dict[str, int]) -> dict[str, int]:
    named = {name.removesuffix(".default"): count for name, count in calls.items()}
    return {name.split(".")[1]: count for name, count in named.items() if name.startswith("bert_kernels.")}


@pytest.mark.parametrize("model", KERNELS)
def test_one_graph_without_breaks(reports, model):
    report = reports[model]
    assert report["graphs"] == 1 and report["breaks"] == {}


@pytest.mark.parametrize("model", KERNELS)
def test_each_kernel_is_one_node_and_no_node_is_for_nothing(reports, model):
    report = reports[model]
    for graph in ("traced", "forward", "backward"):
        assert report[graph]["dead"] == [], graph
        assert not any("capability" in name or "available" in name for name in report[graph]["calls"])
    assert kernels_of(report["traced"]["calls"]) == kernels_of(report["forward"]["calls"]) == KERNELS[model]
    own = {"rotary": "rotary"}  # which is its own backward; the loss makes its gradients in the forward
    back = {
        own.get(name, f"{name}_backward"): n for name, n in KERNELS[model].items() if name != "masked_cross_entropy"
    }
    assert kernels_of(report["backward"]["calls"]) == back


def test_gradients_of_two_readers_are_added_by_the_norm(reports):
    """What is left to autograd: what the embeddings' dropout gives to a post-norm layer's two, and the tied matrix."""
    assert reports["mosaic_bert"]["backward"]["calls"]["aten.add.Tensor"] == 2


@pytest.mark.parametrize("model", KERNELS)
def test_sizes_are_bounded_and_never_fixed(reports, model):
    """Numbers of the model's, which torch calls zf, are fixed; of the batch's, none is, nor what it is a multiple of."""
    of_sizes = [guard for guard in reports[model]["guards"] if "zf" not in guard]
    assert of_sizes
    assert [guard for guard in of_sizes if "Eq" in guard or "Mod" in guard or "%" in guard] == []
