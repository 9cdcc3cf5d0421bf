"""What a run says of itself before its first batch."""

from __future__ import annotations

from typing import Any

from composer.core import TimeUnit
from composer.utils import dist

from recipe.data.sampler import parts_of
from recipe.system.hardware import Hardware
from recipe.training import memory
from recipe.training.callbacks import say
from recipe.training.checks import parse_time
from recipe.training.preflight import Plan


def say_start(plan: Plan, record: dict[str, Any], hardware: Hardware) -> None:
    config, split = plan.config, plan.info.split(plan.config.data.train_split)
    source = "best matrix product here" if hardware.kind == "cpu" else "data sheet"
    peak = (
        f"peak {hardware.peak_flops / 1e12:.3g} TFLOP/s ({source})" if hardware.peak_flops else "peak unknown, no MFU"
    )
    say(f"{plan.architecture.name}, {record['parameters'] / 1e6:.1f} M parameters -> {plan.out}")
    for line in plan.start.said if plan.start else ():
        say(f"  {line}")
    say(f"  on {hardware.devices}, {record['precision']}, {peak}")
    say(f"  {plan.backends.in_short}")
    if config.model.compile:
        say("  compiled by torch.compile; the first step takes longer")
    for line in batch_lines(plan):
        say(f"  {line}")
    if parse_time("", config.duration).unit == TimeUnit.TOKEN:
        say(f"  duration: {config.duration}, ends with the batch that reaches it")
    say(f"  data: {split.documents:,} documents, {split.tokens:,} tokens in {config.data.path}")
    if config.data.order == "canonical":
        say(f"  {order_line(config.data.canonical_parts, dist.get_world_size() // dist.get_local_world_size())}")
    say(f"  price: ${plan.price.usd_per_hour} per {hardware.unit}-hour ({plan.price.source})")


def order_line(parts: int, machines: int) -> str:
    most = max(len(parts_of(machine, machines, parts)) for machine in range(machines))
    said = f"each of {machines} machines reads {most} of them" if machines > 1 else "this machine reads them all"
    return f"order: canonical, {parts} parts; {said}"


def batch_lines(plan: Plan) -> list[str]:
    """What is taken at a time, by stage where there are several."""
    lines = []
    for number, (stage, chosen) in enumerate(zip(plan.stages, plan.microbatches, strict=True), 1):
        line = microbatch_line(chosen, stage.batch_size // plan.ranks)
        if len(plan.stages) > 1:
            begins = f"from {stage.first:,} documents on" if stage.first else "first"
            line = f"stage {number}, {begins}: {stage.batch_size} sequences of up to {stage.sequence_length} tokens; {line}"
        lines.append(line)
    return lines


def microbatch_line(chosen: memory.Microbatch, share: int) -> str:
    line = f"microbatch: {chosen.size} of {share} sequences"
    if chosen.size < share:
        line += f" ({chosen.why})"
    if chosen.need is None:
        return line
    return f"{line}, needs {chosen.need / memory.GIB:.2g} of {chosen.capacity / memory.GIB:.3g} GiB free"
