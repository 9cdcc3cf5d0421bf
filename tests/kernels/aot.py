"""Compiles every Triton kernel for six GPUs that need not be there, and reads what the assembler made of it.

    python -m tests.kernels.aot                     renews tests/kernels/compiled.json, with the lock's Triton
    python -m tests.kernels.aot glu layer_norm      renews the rows of these files alone
    python -m tests.kernels.aot --report            prints the table's account of an H200, which stands in docs/kernels.md

A process in which Triton interprets cannot compile, so test_compile.py runs this module without TRITON_INTERPRET.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kernels import budget, sass

TABLE = Path(__file__).with_name("compiled.json")
LOCK = Path(__file__).parents[2] / "requirements.txt"

# Shared memory that one program may ask for, in bytes: CUDA's programming guide, table "Technical Specifications per
# Compute Capability", maximum per thread block.
SHARED_LIMIT = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
# What tl.dot becomes on 16-bit operands: warp-wide, warp-group-wide, or the fifth generation's own unit.
TENSOR_CORES = {80: "HMMA", 86: "HMMA", 89: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}
TENSOR_MEMORY_LIMIT = (
    512  # columns, on sm_100; two programs share them, so more than 256 leaves one program a multiprocessor
)
CAPABILITIES = tuple(SHARED_LIMIT)


@dataclass(frozen=True)
class Case:
    """One kernel with one set of types and constants.

    `signature` gives each argument's Triton type, in any order; arguments in `constants(capability)` are left out. That
    function also gives num_warps and num_stages, and is made of the same functions that the launchers use; `work` gets what it
    gives. Without it, `unbudgeted` says why instructions do not matter.
    """

    name: str
    module: str  # below kernels.triton
    kernel: str
    signature: dict[str, str]
    constants: Callable[[int], dict[str, Any]]
    dot: bool  # the kernel has a tl.dot, so tensor-core instructions must be there
    fast: bool = True  # those must be of the GPU's best kind; float32's small tiles get along with warp-wide ones
    capabilities: tuple[int, ...] = CAPABILITIES
    odd: tuple[str, ...] = field(default=())  # integers that a launch cannot promise to be multiples of 16
    work: Callable[[dict[str, Any]], budget.Work] | None = None
    unbudgeted: str = ""


def groups() -> dict[str, list[Case]]:
    """Cases by the file they compile; a test-side table for each engineer's kernels."""
    found: dict[str, list[Case]] = {}
    for table in ("cases_attention", "cases_pointwise"):
        if not Path(__file__).with_name(f"{table}.py").exists():
            continue
        for case in importlib.import_module(f"tests.kernels.{table}").CASES:
            found.setdefault(case.module, []).append(case)
    return found


def is_the_locks_triton() -> bool:
    """Whether this is the Triton whose figures stand in the table: another's register allocation differs."""
    import triton

    locked = re.search(r"^triton==(\d+)\.(\d+)", LOCK.read_text(), re.MULTILINE)
    return tuple(map(int, triton.__version__.split(".")[:2])) == tuple(map(int, locked.groups()))


def compile_case(case: Case, capability: int) -> dict[str, Any]:
    """Registers a thread, bytes of stack, spill instructions, bytes of shared memory and the tensor-core instruction. With
    the lock's Triton also programs of a multiprocessor, sass.figures and what the model makes of them: of another's loops
    `work` knows nothing."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"kernels.triton.{case.module}"), case.kernel)
    constants = case.constants(capability)
    work = case.work and case.work(constants)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: case.signature[name] if name in names else "constexpr" for name in kernel.arg_names}
    aligned = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name in names
        if name not in case.odd and not case.signature[name].startswith("fp")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text = sass.disassembled(compiled.asm["cubin"])
    figures = {**_resources(text), "shared": compiled.metadata.shared}
    if capability == 100:
        figures["tensor_memory"] = compiled.metadata.tmem_size
    if not is_the_locks_triton():
        return figures
    figures["warps"] = options["num_warps"]
    figures["programs"] = budget.programs(
        budget.GPUS[capability], figures["warps"], figures["registers"], figures["shared"]
    )
    figures |= sass.figures(text)
    return figures if work is None else figures | budget.predicted(figures, work, capability, case.dot)


def _resources(text: str) -> dict[str, Any]:
    kinds = [kind for kind in ("UTCHMMA", "HGMMA", "HMMA") if re.search(rf"\b{kind}\b", text)]
    return {
        "registers": int(re.search(r"REG:(\d+)", text)[1]),
        "stack": int(re.search(r"STACK:(\d+)", text)[1]),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", text)),
        "tensor_cores": kinds[0] if kinds else None,
    }


def measure(names: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Figures by case and capability ("sm_80")."""
    found = groups()
    return {
        case.name: {f"sm_{capability}": compile_case(case, capability) for capability in case.capabilities}
        for name in names
        for case in found[name]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", help="files below kernels/triton to renew; all of them when none is named")
    parser.add_argument("--print", action="store_true", help="print the figures, leave the table as it is")
    parser.add_argument(
        "--report", action="store_true", help="compile nothing, print what the table says, for a reader"
    )
    arguments = parser.parse_args()
    if arguments.report:
        from tests.kernels.budget_report import page

        print(page())
        return
    if not arguments.print and not is_the_locks_triton():
        parser.error("the table holds the figures of the Triton in requirements.txt, and this is another; add --print")
    figures = measure(arguments.groups or list(groups()))
    if arguments.print:
        print(json.dumps(figures))
        return
    kept = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    names = [case.name for cases in groups().values() for case in cases]
    table = {name: figures.get(name, kept.get(name, {})) for name in names}
    rows = (f"  {json.dumps(name)}: {{\n{_lines(by_capability)}\n  }}" for name, by_capability in table.items())
    TABLE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def _lines(by_capability: dict[str, dict[str, Any]]) -> str:
    return ",\n".join(f'    "{name}": {json.dumps(figures)}' for name, figures in by_capability.items())


if __name__ == "__main__":
    main()
