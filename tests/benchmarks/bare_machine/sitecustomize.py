"""A machine with a GPU, as far as a processor can play it: Python runs this at its start where this folder is on PYTHONPATH.

torch says that there is an H100; tensors for it are made on the processor, Triton interprets, and what few machines have
installed is not there. So every line that only a GPU would run is run, save the GPU's own.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import time
from types import SimpleNamespace

os.environ["TRITON_INTERPRET"] = "1"
os.environ["TORCH_COMPILE_DISABLE"] = "1"  # minutes of a processor
ABSENT = ("composer", "streaming", "omegaconf", "flash_attn", "xformers", "liger_kernel", "matplotlib", "transformers")
GIB = 2**30
FREE, TOTAL = 78 * GIB, 79 * GIB


class WithoutSome(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name in ABSENT else super().find_spec(name, path, target)


class AfterTorch(importlib.abc.MetaPathFinder):
    """Lets torch be imported, then changes it."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        run = spec.loader.exec_module

        def run_and_change(module):
            run(module)
            change(module)

        spec.loader.exec_module = run_and_change
        return spec


def change(torch) -> None:
    from torch.overrides import TorchFunctionMode

    def here(x):
        return torch.device("cpu") if isinstance(x, (str, torch.device)) and str(x).startswith("cuda") else x

    class OnTheProcessor(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*map(here, args), **{name: here(x) for name, x in (kwargs or {}).items()})

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = time.perf_counter()

        def elapsed_time(self, end: Event) -> float:
            return 1e3 * (end.at - self.at)

    def share(fraction: float) -> None:
        assert 0 < fraction <= 1, fraction

    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=TOTAL
    )
    for name, value in {
        "Event": Event,
        "_sleep": lambda cycles: None,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "empty_cache": lambda: None,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_name": lambda device=None: properties.name,
        "get_device_properties": lambda device=None: properties,
        "is_available": lambda: True,
        "is_current_stream_capturing": lambda: False,
        "is_bf16_supported": lambda including_emulation=True: True,
        "max_memory_allocated": lambda device=None: GIB,
        "mem_get_info": lambda device=None: (FREE, TOTAL),
        "set_per_process_memory_fraction": share,
        "synchronize": lambda device=None: None,
    }.items():
        assert hasattr(torch.cuda, name), name
        setattr(torch.cuda, name, value)
    torch.version.cuda = "13.0"
    OnTheProcessor().__enter__()
    with contextlib.suppress(ImportError):  # another's process
        import tests.kernels.conftest  # noqa: F401  which mends the interpreter's bfloat16


sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = WithoutSome
sys.meta_path.insert(0, AfterTorch())
