"""Launches without a GPU: Triton's own just-in-time path, whose driver and launcher are played, so that a process without
TRITON_INTERPRET compiles for an sm_80 what batches ask for, and launches nothing.

    python -m tests.kernels.launches        prints what was compiled and launched, as JSON

Tensors are on the CPU, with the strides and alignments that a GPU's have, and hold nothing: products of torch's are not computed
either.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from kernels import checks
from kernels import cross_entropy as loss
from kernels.backends import Resolved
from kernels.triton import attention, cross_entropy, glu, padding
from recipe.model.config import EncoderConfig
from recipe.model.encoder import Backends
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.modern import MODERN
from tests.kernels.aot import SHARED_LIMIT

CAPABILITY = 80  # which is also what launchers take a CPU for
BASE = EncoderConfig(
    vocab_size=2048, hidden_size=768, num_hidden_layers=2, num_attention_heads=12, intermediate_size=3072
)
MODELS = {"post-norm": BASE, "pre-norm": dataclasses.replace(BASE, **{**MODERN.settings, "global_every": 2})}
# Lengths of sequences, all with one between 66 and 128, and predictions: by turns odd, multiples of 16, and 1.
RAGGED = (
    ([97, 20, 33], 45), ([128], 1), ([127, 1], 16), ([112] * 16, 48), ([101], 0), ([128, 17, 66], 272), ([67] * 17, 255),
)  # fmt: skip
MOST_ROWS = 128  # of a chunk of the loss, so that some batches have several
LONG = ([300, 20], [129], [512, 16, 16], [144] * 16)  # for the attention that takes a sequence by tiles
PADDED = ((3, 7, 5), (1, 1, 1), (16, 128, 640), (1, 129, 16), (17, 64, 1))  # sequences, their length, tokens
LONGEST = (1, 16, 17, 32, 33, 64, 65, 66, 128, 129, 4096)  # tokens of a batch's longest sequence


class Driver:
    """Of Triton, of a GPU that is not there. It is its own `launcher_cls` and its own `utils`."""

    def __init__(self) -> None:
        self.launched: Counter[str] = Counter()
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMIT[CAPABILITY]}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, and threads that a program may have."""
        return 1, 1, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        name = name_of(source.fn)

        def launch(x: int, y: int, z: int, stream: int, function: int, packed: Any, *rest: Any) -> None:
            assert 0 < x < 2**31 and y == z == 1, f"{name}: a grid of {x} x {y} x {z}"
            assert len(rest) == 3 + len(source.fn.arg_names)  # behind what is launched with it, and two hooks
            self.launched[name] += 1

        return launch


class Uncomputed(TorchDispatchMode):
    """Products have a shape and a type, and whatever memory held; in bfloat16 some CPUs take seconds for one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            a, b = args[-2:]
            return a.new_empty(a.shape[0], b.shape[1])
        return func(*args, **(kwargs or {}))


def name_of(kernel: triton.JITFunction) -> str:
    return f"{kernel.__module__.rsplit('.', 1)[1]}.{kernel.__name__}"


@contextmanager
def hooked(name: str, hook: Callable[..., bool | None]) -> Iterator[None]:
    before = getattr(knobs.runtime, name)
    setattr(knobs.runtime, name, hook)
    try:
        yield
    finally:
        setattr(knobs.runtime, name, before)


def compiled_by(calls: Sequence[Callable[[], None]]) -> list[list[str]]:
    """What each call compiles that none before it did: a kernel's name for each of its forms."""
    found: list[list[str]] = []

    def compiled(fn: Any, **_: Any) -> None:
        found[-1].append(name_of(fn.jit_function))

    with hooked("jit_post_compile_hook", compiled):
        for call in calls:
            found.append([])
            call()
    return found


def step(model: MosaicBertForMaskedLM, lengths: Sequence[int], predictions: int) -> None:
    tokens = sum(lengths)
    batch = {
        "input_ids": torch.zeros(tokens, dtype=torch.int64),
        "cu_seqlens": torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        "max_seqlen": max(lengths),
        "masked_indices": torch.arange(predictions) % tokens,
        "labels": torch.zeros(predictions, dtype=torch.int64),
    }
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch)["loss"]
    loss.backward()


def steps(sizes: EncoderConfig) -> list[Callable[[], None]]:
    """A training step for each of the ragged batches."""
    model = MosaicBertForMaskedLM(sizes, Backends(Resolved("triton", "tested"), Resolved("triton", "tested"))).train()
    return [partial(step, model, *given) for given in RAGGED]


def attend(lengths: Sequence[int], window: int | None = None) -> None:
    """Forward and backward of attention alone, 12 heads of 64, ALiBi."""
    qkv, dout = (torch.empty((sum(lengths), n, 12, 64), dtype=torch.bfloat16) for n in (3, 1))
    q, k, v = qkv.unbind(1)
    bounds = (torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), max(lengths), torch.empty(12), window)
    out, lse = attention.forward(q, k, v, *bounds)
    gradients = torch.empty_like(qkv).unbind(1)
    attention.backward(dout[:, 0], q, k, v, out, lse, *gradients, *bounds)


def attention_forms(longest: int) -> list[list[Any]]:
    """The kernels that a batch with such a longest sequence and a window of 64 launches, and the constants that depend on it.
    Nothing is compiled."""
    found = []

    def asked(fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        names = fn.jit_function.arg_names
        constants = {names[index]: value for (index,), value in compile["constants"].items()}
        found.append([name_of(fn.jit_function), constants.get("BLOCK_L"), constants["HAS_WINDOW"]])
        return True  # leave it uncompiled

    for kernel in jitted(attention.attention_short, attention.attention_tiled):
        kernel.device_caches.clear()
    with hooked("jit_cache_hook", asked):
        attend([longest], window=64)
    return found


def specialised_forms() -> int:
    """Of a kernel of this project's, if Triton were let to specialise on its numbers. Nothing is compiled."""
    keys = set()
    kernel = glu.forward_kernel
    for parameter in kernel.params:
        parameter.do_not_specialize = False
    kernel.device_caches.clear()
    with hooked("jit_cache_hook", lambda key, **_: keys.add(key) or True):
        for tokens in (3, 5, 16, 1, 48):
            glu.forward(torch.empty((tokens, 64)), "gelu", 0.0, None)
    return len(keys)


def jitted(*modules: ModuleType) -> list[triton.JITFunction]:
    return [one for module in modules for one in vars(module).values() if isinstance(one, triton.JITFunction)]


def repad(sequences: int, length: int, tokens: int) -> None:
    """From a padded batch to a stream and back."""
    padding.plan(torch.ones((sequences, length), dtype=torch.bool))
    x = torch.empty((sequences * length, 768), dtype=torch.bfloat16)
    indices = torch.empty(x.shape[0], dtype=torch.int64)[:tokens]
    padding.scatter(padding.gather(x, indices), indices, x.shape[0])


def play() -> Driver:
    """Makes this process one in which Triton finds a GPU, and the kernels take a CPU's tensors."""
    played = Driver()
    driver.set_active(played)
    checks.interpreting = lambda: True
    loss.CHUNK_BYTES["triton"] = MOST_ROWS * BASE.vocab_size * 2
    cross_entropy.torch.mm = lambda a, b, out: out  # the loss's products go where it says, which no mode sees
    cross_entropy._accumulate = lambda total, a, b: None
    return played


def main() -> None:
    played = play()
    with Uncomputed():
        report: dict[str, Any] = {name: compiled_by(steps(sizes)) for name, sizes in MODELS.items()}
    report["long"] = compiled_by([partial(attend, lengths) for lengths in LONG])
    report["padding"] = compiled_by([partial(repad, *sizes) for sizes in PADDED])
    report["by length"] = {longest: attention_forms(longest) for longest in LONGEST}
    attention.attention_short.takes_whole = lambda *_: True  # as on sm_90
    report["whole"] = compiled_by([partial(attend, lengths) for lengths, _ in RAGGED])
    report["launched"] = played.launched
    report["specialised"] = specialised_forms()
    print(json.dumps(report))


if __name__ == "__main__":
    main()
