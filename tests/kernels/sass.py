"""What the assembler made of a kernel, counted in its machine code as cuobjdump prints it: loops, instructions, accesses.

A part is what lies outside the loops, or one of the loops that read or write global memory, in the order of their addresses.
Loops that do not (waiting for a tensor core's result, for one) count as the part around them. All counts are of one warp.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

GLOBAL = ("LDG", "STG", "LDGSTS")
# Out-of-line code for warps whose lanes have parted, which those of these kernels never do, is reached by calls and by BRA.DIV.
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P[0-9T]+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", re.MULTILINE)
_REGISTER = re.compile(r"\bR(\d+)")


class Instruction(NamedTuple):
    address: int
    predicate: str | None
    name: str  # "LDG.E.128"
    operands: str

    @property
    def kind(self) -> str:
        return self.name.split(".")[0]


def disassembled(cubin: bytes) -> str:
    """cuobjdump's text, resource usage included. RuntimeError: Triton came without it, so nothing can be said of the kernel."""
    from triton import knobs

    try:
        tool = knobs.nvidia.cuobjdump.path
    except RuntimeError as error:
        raise RuntimeError(
            f"{error}, which Triton's wheel brings: without it no kernel's instructions are counted"
        ) from error
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, "-res-usage", "-sass", file.name], capture_output=True, text=True, check=True
        ).stdout


def instructions(text: str) -> list[Instruction]:
    """In the order of their addresses. ValueError: there are none, so this is no disassembly."""
    found = [Instruction(int(m[1], 16), m[2], m[3], m[4].strip()) for m in _LINE.finditer(text)]
    if not found:
        raise ValueError("cuobjdump printed no instruction")
    return found


def successors(code: list[Instruction]) -> list[list[int]]:
    """Which instructions may follow each, by index: the next, a branch's target, or both."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    found = []
    for i, (_, predicate, name, operands) in enumerate(code):
        kind = name.split(".")[0]
        jumps = kind == "BRA" and ".DIV" not in name
        after = [index[int(re.search(r"0x([0-9a-f]+)", operands)[1], 16)]] if jumps else []
        always = predicate is None and not (
            jumps and "," in operands
        )  # "BRA.U !UP0, 0x40" has its condition as an operand
        if not ((jumps or kind in ("EXIT", "RET")) and always) and i + 1 < len(code):
            after.append(i + 1)
        found.append(after)
    return found


def loops(after: list[list[int]]) -> tuple[set[int], list[set[int]]]:
    """What can be reached at all, and the loops in it, by the address of their first instruction: each with all it contains.

    A compiler's control flow is reducible: a branch back to what is still being visited depth first closes a loop, and in it is
    all from which that branch can be reached without passing the loop's beginning.
    """
    before: dict[int, list[int]] = {}
    closed: dict[int, list[int]] = {}
    reached, visiting, stack = {0}, {0}, [(0, iter(after[0]))]
    while stack:
        at, rest = stack[-1]
        following = next(rest, None)
        if following is None:
            visiting.discard(at)
            stack.pop()
            continue
        before.setdefault(following, []).append(at)
        if following in visiting:
            closed.setdefault(following, []).append(at)
        elif following not in reached:
            reached.add(following)
            visiting.add(following)
            stack.append((following, iter(after[following])))
    found = []
    for head in sorted(closed):
        body, waiting = {head}, list(closed[head])
        while waiting:
            at = waiting.pop()
            if at not in body:
                body.add(at)
                waiting.extend(before[at])
        found.append(body)
    return reached, found


def parts(code: list[Instruction]) -> list[list[Instruction]]:
    """The code outside the loops, then each loop that touches global memory."""
    reached, found = loops(successors(code))
    moving = [body for body in found if any(code[i].kind in GLOBAL for i in body)]
    outside = reached.difference(*moving)
    return [[code[i] for i in sorted(part) if code[i].kind != "NOP"] for part in (outside, *moving)]


def width(instruction: Instruction) -> int:
    """Bits that a lane's global load or store moves."""
    named = re.search(r"\.(?:[US](8|16)|(64|128|256))\b", instruction.name)
    return int(named[1] or named[2]) if named else 32


def waits(part: Iterable[Instruction]) -> int:
    """How often a warp must wait for global memory: at the first use of a load's result, by when all earlier ones are there."""
    pending: set[int] = set()
    count = 0
    for instruction in part:
        loads = instruction.kind == "LDG"
        target, _, sources = instruction.operands.partition(",")
        if instruction.kind.startswith("ST"):  # a store has no target
            sources = instruction.operands
        if pending.intersection(map(int, _REGISTER.findall(sources))):
            count += 1
            pending = set()
        if loads and (first := _REGISTER.match(target)):
            pending.update(range(int(first[1]), int(first[1]) + max(1, width(instruction) // 32)))
    return count + bool(pending)


def figures(text: str) -> dict[str, Any]:
    """By part: instructions, barriers, shuffles, waits for global memory and for warp groups' products. Of the hottest part, the
    loop with most instructions, or all where there is none: loads and stores by their bits, and instructions per byte of a lane.
    """
    found = parts(instructions(text))
    kinds = [Counter(instruction.kind for instruction in part) for part in found]
    hottest = max(found[1:] or found, key=len)
    moved = [instruction for instruction in hottest if instruction.kind in GLOBAL]
    loads, stores = (Counter(str(width(i)) for i in moved if (i.kind == "STG") is stored) for stored in (False, True))
    lane_bytes = sum(width(instruction) for instruction in moved) / 8
    return {
        "instructions": [len(part) for part in found],
        "barriers": [kind["BAR"] for kind in kinds],
        "shuffles": [kind["SHFL"] for kind in kinds],
        "memory_waits": [waits(part) for part in found],
        "product_waits": [sum(i.name.startswith("WARPGROUP.DEPBAR") for i in part) for part in found],
        "loads": dict(sorted(loads.items(), key=lambda item: -int(item[0]))),
        "stores": dict(sorted(stores.items(), key=lambda item: -int(item[0]))),
        "per_byte": round(len(hottest) / lane_bytes, 2),
    }
