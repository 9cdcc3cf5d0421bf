"""How much of a GPU's memory each process of `benchmarks.throughput` may take, and how many token slots a step fits for all.

The processes are there at once. What is free is asked before they start; the step is halved until all fit by the estimate below,
and each process gets a share in proportion, beyond which its own allocations fail: a rival that takes more ends its own row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.peers import Sizes

# Bytes a token slot: of the vocabulary, and of hidden size times layers, with a feed-forward of four times the hidden size.
# Traced; tests/benchmarks/test_throughput_memory.py traces them again. Checkouts of others are taken for Hugging Face's model.
SLOT_BYTES = {"this": (0.0, 40.0), "trainer": (0.0, 40.0), "hf": (12.5, 45.0), "peer": (12.5, 45.0)}
LOGITS_BYTES = 512 << 20  # of our loss's one chunk
PARAMETER_BYTES = 20  # weights, gradients and two moments in float32, and room for 16-bit copies and the sums of a loss
# Assumed, until a GPU says better (records hold each row's peak): CUDA's context with libraries and their workspaces; what a
# compiled step's graphs keep beside an eager one's tensors; what is left free.
PROCESS_BYTES, COMPILED_TIMES, MARGIN = 2 << 30, 1.3, 0.1
LEAST_SLOTS = 1024


def free_bytes() -> tuple[int, int]:
    """(free, total) of the current GPU."""
    torch.cuda.empty_cache()  # what the measuring process itself has left over
    return torch.cuda.mem_get_info()


def need(row: dict[str, Any], sizes: dict[str, Any], slots: int) -> float:
    """Bytes of a row's process at so many token slots a step."""
    s = Sizes(**sizes)
    of_vocabulary, of_layers = SLOT_BYTES[row["model"]]
    a_slot = of_vocabulary * s.vocab_size + of_layers * s.hidden_size * s.num_hidden_layers
    parameters = s.hidden_size * (s.vocab_size + s.num_hidden_layers * (4 * s.hidden_size + 3 * s.intermediate_size))
    step = slots * a_slot * (COMPILED_TIMES if row["compile"] else 1.0)
    return PROCESS_BYTES + LOGITS_BYTES + PARAMETER_BYTES * parameters + step


def fitting_slots(rows: Sequence[dict[str, Any]], sizes: dict[str, Any], wanted: int, free: int) -> int:
    """`wanted`, or as many halves of it as let all rows have what they need of `free` bytes, but no fewer than LEAST_SLOTS."""
    slots = wanted
    while slots > LEAST_SLOTS and sum(need(row, sizes, slots) for row in rows) > (1 - MARGIN) * free:
        slots //= 2
    return slots


def shares(rows: Sequence[dict[str, Any]], sizes: dict[str, Any], slots: int, free: int, total: int) -> list[float]:
    """What part of all memory each row's tensors may take: its need of what is free, without what its process takes besides."""
    needs = [need(row, sizes, slots) for row in rows]
    grant = [max(free * mine / sum(needs) - PROCESS_BYTES, 0.0) / total for mine in needs]
    return [round(max(share, 0.01), 4) for share in grant]
