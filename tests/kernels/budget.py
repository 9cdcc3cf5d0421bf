"""How fast a compiled kernel can be at most, and how fast it is predicted to be, from its machine code and a small model.

A program takes as long as its multiprocessor needs to issue its instructions or to move its bytes, whichever is longer, and a
share of its waits: as many programs as fit on a multiprocessor cover each other's.

    cycles = max(issue, memory) + (waits for memory, at barriers and for products) / programs

Nothing here is measured. The peaks are data sheets'; the other constants make the model agree, within 5 points, with estimates
made by hand of each kernel's phases (tests/kernels/test_budget.py has both). They move only by a measurement on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WARPS_PER_CYCLE = 4  # one of each of a multiprocessor's four schedulers: the limit
ISSUED_PER_CYCLE = 3.0  # what dependent instructions and shared units leave of it
REACHED = 0.9  # of the reachable bandwidth, by a kernel that never waits for anything else
MEMORY_WAIT = 250  # cycles of a wait for global memory that the program's other warps do not cover
BARRIER = 10  # cycles for the slowest warp
PRODUCT_WAIT = 300  # cycles until a warp group's product is there
# A kernel that moves memory leaves the schedulers a quarter of the time that memory takes, so that neither waits for the other.
CEILING = 0.75
REGISTERS = 65536  # of a multiprocessor; a warp gets them by 256
RESERVED_SHARED = 1024  # bytes of each program, for the system


@dataclass(frozen=True)
class Gpu:
    """One GPU of a compute capability: its data sheet, and CUDA's programming guide, table "Technical Specifications per Compute
    Capability"."""

    name: str
    processors: int
    ghz: float
    tb_per_s: float  # reachable: 0.9 of the data sheet's
    warps: int  # at most, on a multiprocessor
    programs: int  # at most, on a multiprocessor
    shared: int  # bytes of a multiprocessor, for programs

    @property
    def bytes_per_cycle(self) -> float:
        """Of one multiprocessor's share."""
        return self.tb_per_s * 1e3 / self.processors / self.ghz


GPUS = {
    80: Gpu("A100", 108, 1.41, 1.83, 64, 32, 164 << 10),
    86: Gpu("A40", 84, 1.74, 0.63, 48, 16, 100 << 10),
    89: Gpu("L40S", 142, 2.52, 0.78, 48, 24, 100 << 10),
    90: Gpu("H200", 132, 1.9, 4.3, 64, 32, 228 << 10),
    100: Gpu("B200", 148, 1.9, 7.2, 64, 32, 228 << 10),
    120: Gpu("RTX 5090", 170, 2.41, 1.61, 48, 24, 100 << 10),
}


@dataclass(frozen=True)
class Work:
    """What one program does at the sizes that its case stands for.

    `moved` are bytes of global memory; what several programs read counts once. `passes` says how often each of the loops that
    touch global memory runs, in the order of the machine code. A fraction is the mean of programs that differ.
    """

    moved: float
    passes: tuple[float, ...] = ()
    products: bool = False  # bound it rather than memory, and the model has none


def programs(gpu: Gpu, warps: int, registers: int, shared: int) -> int:
    """How many fit on a multiprocessor at once."""
    of_a_warp = -(-registers // 8) * 8 * 32
    return min(
        REGISTERS // of_a_warp // warps, gpu.shared // (shared + RESERVED_SHARED), gpu.warps // warps, gpu.programs
    )


def total(counts: list[int], work: Work) -> float:
    """Of one program's warp: the code outside the loops once, each loop as often as it runs."""
    return sum(count * times for count, times in zip(counts, (1, *work.passes), strict=True))


def issue_to_memory(figures: dict[str, Any], work: Work, gpu: Gpu) -> float:
    """Time to issue the instructions at the limit, in units of the time to move the bytes."""
    issue = total(figures["instructions"], work) * figures["warps"] / WARPS_PER_CYCLE
    return issue * gpu.bytes_per_cycle / work.moved


def share(figures: dict[str, Any], work: Work, gpu: Gpu) -> float:
    """Predicted, of the reachable bandwidth."""
    memory = work.moved / gpu.bytes_per_cycle
    issue = total(figures["instructions"], work) * figures["warps"] / ISSUED_PER_CYCLE
    costs = {"memory_waits": MEMORY_WAIT, "barriers": BARRIER, "product_waits": PRODUCT_WAIT}
    waits = sum(total(figures[name], work) * cost for name, cost in costs.items())
    return memory / (max(issue, memory / REACHED) + waits / figures["programs"])


def predicted(figures: dict[str, Any], work: Work, capability: int, dot: bool) -> dict[str, float]:
    """`issue_to_memory`, and `predicted_share` where memory bounds the kernel; with a `dot` for sm_90 only, as the wait for a
    product is that of its warp groups."""
    gpu = GPUS[capability]
    found = {"issue_to_memory": round(issue_to_memory(figures, work, gpu), 3)}
    if work.products or (dot and capability != 90):
        return found
    return {**found, "predicted_share": round(share(figures, work, gpu), 2)}
