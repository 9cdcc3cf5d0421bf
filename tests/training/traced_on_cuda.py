"""A compiled training step on CUDA tensors that have no storage, with a GPU that is not there.

    python -m tests.training.traced_on_cuda        prints what was traced, as JSON

Torch's own questions to CUDA stay as they are; what answers them, below, is played. Autograd's engine cannot be: it wants a
driver. The backward is therefore traced from the forward's graph with its tensors on a CPU.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters
from torch._guards import TracingContext
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels.backends import Resolved
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.modern import MODERN
from recipe.training.compiled import compiled_step

GPU = torch.device("cuda", 0)
SIZES = EncoderConfig(vocab_size=1088, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
LOCAL_TOO = {"global_every": 2, "num_hidden_layers": 2}
MODELS = {"mosaic_bert": SIZES, "modern": dataclasses.replace(SIZES, **{**MODERN.settings, **LOCAL_TOO})}
# Lengths of sequences and predictions: for kernels that keep sequences on chip and others, below and above windows.
RAGGED = (([30, 20], 7), ([101, 2, 3], 16), ([128] * 16, 300), ([400] * 16, 1300), ([70, 6], 7), ([2, 2], 2))


def play() -> None:
    with FakeTensorMode():
        pass  # lets torch's guards of devices do nothing where it finds no GPU, which must be seen before one is played
    FakeTensorMode.avoid_device_init = property(lambda mode: True)
    fake_tensor.init_gpu_context = lambda device: None
    torch._C._cuda_getDeviceCount = torch.cuda.device_count = lambda: 1
    torch._C._cuda_getDevice = lambda: 0
    torch.cuda._lazy_init = lambda: None
    torch.cuda._get_device_properties = lambda device: SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    state = torch.zeros(16, dtype=torch.uint8)
    torch.cuda.get_rng_state, torch.cuda.set_rng_state = lambda *device: state, lambda *state: None


class Recorder:
    """A backend of torch.compile that keeps the graphs, and runs the forward's as it is."""

    def __init__(self) -> None:
        self.graphs: dict[str, fx.Graph] = {}
        self.guards: list[str] = []

    def __call__(self, traced: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs["traced"] = traced.graph
        examples = [node.meta["example_value"] for node in traced.graph.find_nodes(op="placeholder")]
        mode = next(x.fake_mode for x in examples if isinstance(x, Tensor))
        graph = fx.Graph()
        graph.output(graph.graph_copy(traced.graph, {}))
        copy = fx.GraphModule(traced, graph)
        for node in copy.graph.nodes:
            if node.kwargs.get("device") == GPU:
                node.kwargs = {**node.kwargs, "device": torch.device("cpu")}
        copy.recompile()
        with mode:
            examples = [on_cpu(x) if isinstance(x, Tensor) else x for x in examples]
        context = TracingContext.get()
        before, context.fake_mode = context.fake_mode, mode
        both = {"fw_compiler": self.keeper("forward"), "bw_compiler": self.keeper("backward")}
        with torch.autocast("cpu", torch.bfloat16):
            aot_autograd(**both)(copy, examples)
        context.fake_mode = before
        self.guards = [str(guard.expr) for guard in mode.shape_env.guards]
        return traced.forward

    def keeper(self, name: str) -> Callable[..., Any]:
        def keep(traced: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            self.graphs[name] = traced.graph
            return traced.forward

        return keep


def on_cpu(x: Tensor) -> Tensor:
    if x.device != GPU:  # a number, whose value torch remembers with it
        return x
    made = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu").requires_grad_(x.requires_grad)
    return torch.nn.Parameter(made) if isinstance(x, torch.nn.Parameter) else made


def stream(lengths: Sequence[int], predictions: int) -> dict[str, Any]:
    integers = functools.partial(torch.zeros, dtype=torch.int64, device=GPU)
    return {
        "input_ids": integers(sum(lengths)),
        "cu_seqlens": integers(len(lengths) + 1).to(torch.int32),
        "max_seqlen": max(lengths),
        "masked_indices": integers(predictions),
        "labels": integers(predictions),
    }


def account(graph: fx.Graph) -> dict[str, Any]:
    """Calls of a graph, with those of autograd.Functions' forwards in it, and of its own those whose result nobody uses."""
    inside = [module.graph for name, module in graph.owning_module.named_children() if name.startswith("fwd_body")]
    own, *others = ([node for node in one.nodes if node.op.startswith("call_")] for one in (graph, *inside))
    return {
        "calls": Counter(str(node.target) for node in (*own, *chain(*others))),
        "dead": [str(node.target) for node in own if not node.users],
    }


def report(sizes: EncoderConfig) -> dict[str, Any]:
    recorder = Recorder()
    compiler, torch.compile = torch.compile, functools.partial(torch.compile, backend=recorder)
    counters.clear()
    chosen = Resolved("triton", "tested")
    with FakeTensorMode(allow_non_fake_inputs=True):
        with GPU:
            model = MosaicBertForMaskedLM(sizes, Backends(chosen, chosen)).train()
        step = compiled_step(model, one_shape=False)
        for lengths, predictions in RAGGED:
            with torch.autocast("cuda", torch.bfloat16):
                loss = step(stream(lengths, predictions))["loss"]
            assert loss.device == GPU and loss.requires_grad
    torch.compile = compiler
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": counters["graph_break"],
        "guards": recorder.guards,
        **{name: account(graph) for name, graph in recorder.graphs.items()},
    }


def main() -> None:
    play()
    print(json.dumps({name: report(sizes) for name, sizes in MODELS.items()}))


if __name__ == "__main__":
    main()
