"""What a step costs on many machines: arithmetic on parts that were measured on one, and on links that are stated.

Nothing here is fitted. A step is the computation, divided by the devices, with what of the gradients' exchange does not hide
behind the backward pass; or the loader's time for a batch, where that is longer. Checkpoints stop it; the store is read beside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BACKWARD_SHARE = 2 / 3  # of a step: each product of the forward pass needs two
WEIGHT_BYTES, CHECKPOINT_BYTES = 4, 12  # a parameter's gradient or weight in float32; with AdamW's moments
WORKERS = 8  # of a GPU's loader, as recipe.train starts


@dataclass(frozen=True)
class Parts:
    """Measured on one machine (`benchmarks/scale.py`)."""

    planned_documents_per_s: float  # of global batches, by a worker; every worker plans them all
    read_tokens_per_s: float  # by a worker: fetched from the shard, masked, joined
    checkpoint_bytes_per_s: float  # written by rank 0, all others waiting
    shard_bytes_per_token: float


@dataclass(frozen=True)
class Links:
    """Stated, not measured."""

    between: float  # bytes a second that a machine sends to others, and receives at the same time
    within: float  # the same of a device, to the others of its machine


@dataclass(frozen=True)
class Job:
    """What is trained. A batch is that of all devices."""

    documents: int  # of a batch
    tokens: float  # of a batch
    device_seconds: float  # of a batch on one device
    parameters: int
    checkpoint_every: float  # batches; 0: at the end alone, which is not counted
    parts: int = 1  # of a canonical order; 1: each machine reads all shards
    travels: float = 2.0  # how often a parameter's float32 passes each ring: DDP's gradients twice


@dataclass(frozen=True)
class Scale:
    """The same job on so many machines; seconds are of a step, bytes of one machine."""

    machines: int
    devices: int  # of a machine
    links: Links
    compute: float
    exchange: float
    exposed: float  # of the exchange, what the backward pass does not hide
    loader: float  # for a batch, on each rank
    checkpoints: float  # spread over all steps
    shards_per_s: float  # bytes that are fetched while the store is read for the first time

    @property
    def step(self) -> float:
        return max(self.compute + self.exposed, self.loader) + self.checkpoints

    @property
    def efficiency(self) -> float:
        """The share of the paid time in which devices compute."""
        return self.compute / self.step

    @property
    def limit(self) -> str:
        """What the largest share of the rest goes into."""
        beside = self.loader - self.compute - self.exposed
        rest = {"the loader": max(beside, 0.0), "exchange": self.exposed, "checkpoints": self.checkpoints}
        largest = max(rest, key=rest.__getitem__)
        return largest if rest[largest] > 0.01 * self.step else "computation"


def exchange_seconds(job: Job, machines: int, devices: int, links: Links) -> float:
    """Of the gradients' sum over all ranks. In a ring of n each sends (n - 1) / n of what travels; within a machine first, which
    leaves a machine one sum to exchange with the others."""
    size = WEIGHT_BYTES * job.parameters * job.travels
    within = (devices - 1) / devices * size / links.within
    between = (machines - 1) / machines * size / links.between
    return within + between


def scale(job: Job, machines: int, devices: int, parts: Parts, links: Links, workers: int = WORKERS) -> Scale:
    ranks = machines * devices
    compute = job.device_seconds / ranks
    exchange = exchange_seconds(job, machines, devices, links)
    exposed = max(exchange - BACKWARD_SHARE * compute, 0.0)
    batch = job.documents / parts.planned_documents_per_s + job.tokens / ranks / parts.read_tokens_per_s
    written = CHECKPOINT_BYTES * job.parameters / parts.checkpoint_bytes_per_s
    checkpoints = written / job.checkpoint_every if job.checkpoint_every else 0.0
    found = Scale(machines, devices, links, compute, exchange, exposed, batch / max(workers, 1), checkpoints, 0.0)
    mine = -(-job.parts // machines) / job.parts  # of the shards; a part may be two machines'
    return replace(found, shards_per_s=mine * parts.shard_bytes_per_token * job.tokens / found.step)
