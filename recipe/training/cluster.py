"""A config's step on several machines, for `recipe.plan --nodes`: `recipe.cost.scale` with what the config says."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from recipe import shipped
from recipe.config import TrainConfig, to_dict
from recipe.cost.scale import WORKERS, Job, Links, Parts, Scale, scale
from recipe.errors import UserError
from recipe.model.architectures import architecture
from recipe.model.config import EncoderConfig
from recipe.objectives import objective_of
from recipe.system.files import read_json
from recipe.training.memory import outline
from recipe.training.parallel import PARALLEL

PARTS = "benchmarks/results/scale.json"
_EVERY = re.compile(r"([1-9]\d*)(ba|sp|tok)")


@dataclass(frozen=True)
class Cluster:
    machines: int
    links: Links
    parts: Parts


def cluster_of(machines: int, network_gbit: float, link_gbyte: float, file: str) -> Cluster:
    """Links between machines in Gbit/s, within one in GB/s a device; `file` has measured parts.

    Raises:
        UserError: no machine, no link, or no such file.
    """
    if machines < 1 or network_gbit <= 0 or link_gbyte <= 0:
        raise UserError(
            f"--nodes {machines} --network-gbit {network_gbit:g} --link-gbyte {link_gbyte:g}: give at least 1 node, and more "
            "than 0 of the others"
        )
    try:
        parts = Parts(**read_json(shipped.find(file))["parts"])
    except OSError as error:
        raise UserError(f"--parts {file}: {error.strerror}; python -m benchmarks.scale DATASET writes it") from None
    except (TypeError, KeyError, ValueError):
        raise UserError(f"--parts {file}: not what `python -m benchmarks.scale DATASET` writes; give another") from None
    return Cluster(machines, Links(network_gbit * 1e9 / 8, link_gbyte * 1e9), parts)


def scaled_step(
    config: TrainConfig, sizes: EncoderConfig, tokens: float, seconds: float, count: int, cluster: Cluster
) -> Scale:
    """A step of `tokens` that `count` devices, as many in each machine, compute in `seconds`.

    Raises:
        UserError: a batch that they cannot share, or batches of several sizes.
    """
    if config.stages.share:
        raise UserError("--nodes: a run of stages has steps of several kinds; plan each for itself, without `stages`")
    if config.batch_size % count:
        raise UserError(
            f"batch_size={config.batch_size} is not divisible by the {count} ranks; plan for another number"
        )
    kind, learns, data = architecture(config.model.name), objective_of(to_dict(config)), config.data
    every, units = _EVERY.fullmatch(config.checkpoint_every), {"ba": 1, "sp": config.batch_size, "tok": tokens}
    job = Job(
        documents=config.batch_size,
        tokens=tokens,
        device_seconds=seconds * count,
        parameters=sum(p.numel() for p in outline(learns, kind, sizes, data.sequence_length).parameters()),
        parts=data.canonical_parts if data.order == "canonical" else 1,
        travels=PARALLEL[config.parallel].travels,
        checkpoint_every=float(every[1]) / units[every[2]] if every else 0.0,
    )
    workers = data.workers if data.workers >= 0 else WORKERS
    return scale(job, cluster.machines, count // cluster.machines, cluster.parts, cluster.links, workers)


def tell(found: Scale) -> list[str]:
    ms = {field.name: 1000 * getattr(found, field.name) for field in dataclasses.fields(Scale) if field.type == "float"}
    return [
        f"  nodes   {found.machines} of {found.devices}: {found.links.between * 8 / 1e9:g} Gbit/s between them, "
        f"{found.links.within / 1e9:g} GB/s within, both stated",
        f"  step    {1000 * found.step:.3g} ms: computation {ms['compute']:.3g}, gradients {ms['exchange']:.3g} of which "
        f"{ms['exposed']:.3g} are not hidden, loader {ms['loader']:.3g}, checkpoints {ms['checkpoints']:.3g}",
        f"  paid    {found.efficiency:.0%} of the time computes; the limit is {found.limit}",
        f"  store   {found.shards_per_s / 1e6:.3g} MB/s to each node, while it is read for the first time",
    ]
