"""All jobs of a fine-tuning, from a plan to a record with scores and a bill, whether their tasks are GLUE's or the user's own.

A job is one task with one seed, with a record of its own; a run that was killed continues with the jobs that are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from recipe import records
from recipe.config import Jobs, to_dict
from recipe.cost import prices
from recipe.errors import UserError, say_error
from recipe.finetune import scores
from recipe.finetune.constant import constant_score
from recipe.finetune.jobs import Job, Worker, run_jobs
from recipe.finetune.kinds import KINDS
from recipe.finetune.layers import freeze
from recipe.finetune.progress import JobsProgress
from recipe.finetune.tasks import Task, TaskData
from recipe.system.files import held, remove_drafts
from recipe.system.hardware import Hardware, find_hardware
from recipe.system.progress import clock
from recipe.training.checkpoint import Checkpoint, find_checkpoint


class Size(NamedTuple):
    """Of a task."""

    examples: int  # to train on
    constant: float  # what the constant answer scores


@dataclass(frozen=True)
class Plan:
    """Everything that the jobs need, checked, with nothing written yet."""

    config: Jobs
    checkpoint: Checkpoint
    out: Path
    tasks: list[Task]
    absent: list[str]
    hardware: Hardware
    worker: Worker

    @property
    def section(self) -> str:
        """Of the record, where the scores stand."""
        return self.worker.source.section


def find_machine(config: Jobs) -> Hardware:
    """The devices, checked against what the config asks of them."""
    if config.max_tokens < config.max_length:
        raise UserError(
            f"max_tokens={config.max_tokens}: a text of max_length={config.max_length} has more; set at least that"
        )
    hardware = find_hardware(config.device, config.precision, ranks=1)
    unit, most = ("cores", hardware.count) if hardware.kind == "cpu" else ("GPUs", torch.cuda.device_count())
    if not 1 <= config.processes <= most:
        raise UserError(f"processes={config.processes}: give 1 to {most}, as many as there are {unit}")
    prices.price_of(hardware.name, hardware.kind, config.cost.prices, config.cost.usd_per_hour)
    return hardware


def find_encoder(config: Jobs) -> Checkpoint:
    """The checkpoint, which must take texts of the config's length."""
    checkpoint = find_checkpoint(config.checkpoint)
    limit = checkpoint.max_length
    if limit is not None and config.max_length > limit:
        raise UserError(
            f"max_length={config.max_length}, but the model has {limit} position embeddings; set max_length={limit}"
        )
    return checkpoint


def size_of(data: TaskData) -> Size:
    return Size(len(data.train), constant_score(data))


def fail(failed: dict[str, str], name: str, error: UserError) -> None:
    """Note what failed, and say it in one line; the other jobs go on."""
    failed[name] = str(error) if str(error).startswith(name) else f"{name}: {error}"
    say_error(failed[name])


@contextmanager
def owned(out: Path) -> Iterator[None]:
    """This command has the scores' folder to itself: two would remove models that the other is about to copy.

    Raises:
        UserError: another command has it.
    """
    out.mkdir(parents=True, exist_ok=True)
    with held(out) as ours:
        if not ours:
            raise UserError(f"out={out}: another command scores there; wait for its end, or choose another folder")
        remove_drafts(out, *out.glob("jobs/*"))  # of one that was killed
        try:
            yield
        finally:
            with suppress(OSError):
                out.rmdir()  # where nothing was written


def start_record(
    plan: Plan,
    sizes: Mapping[str, Size],
    failed: dict[str, str],
    done: list[dict[str, Any]],
    about: dict[str, Any],
    say_start: Callable[[Plan, dict[str, Any]], None],
) -> dict[str, Any]:
    """The record as it is now. `about` is what its section says beside the scores. The model is built once before, so that what
    does not fit fails first."""
    config, hardware, worker = plan.config, plan.hardware, plan.worker
    first = next(task for task in plan.tasks if task.name in sizes)
    kind = KINDS[first.kind]
    model = plan.checkpoint.fine_tuned(kind, kind.outputs(first.labels), worker.backends)
    freeze(model, first.fitting.freeze_layers)
    record = records.new_record(
        kind=plan.section,
        name=plan.checkpoint.name,
        model=plan.checkpoint.model,
        config=to_dict(config),
        device=records.device(hardware.kind, hardware.name, hardware.count, worker.price),
        backends={key: dataclasses.asdict(getattr(worker.backends, key)) for key in ("attention", "kernels")},
        parameters=sum(p.numel() for p in model.parameters()),
    )
    record["precision"] = str(hardware.activation_dtype).removeprefix("torch.")
    # Absent in records from before it was measured.
    record[plan.section] = {**about, "constant": {name: size.constant for name, size in sizes.items()}}
    bring_in(plan, record, done, failed)
    say_start(plan, record)
    records.write_record(plan.out, record)
    return record


def bring_in(plan: Plan, record: dict[str, Any], done: list[dict[str, Any]], failed: dict[str, str]) -> None:
    """The scores and the bill of the jobs so far into the record of them all."""
    tasks = scores.summarise([job["job"] for job in done])
    record["cost"] = scores.add_bills([job["cost"] for job in done])
    for key in ("tokens", "sequences", "batches"):
        record[key] = sum(job[key] for job in done)
    record[plan.section] |= {
        "tasks": tasks, "score": scores.mean_score(tasks), "cost": record["cost"], "failed": failed
    }  # fmt: skip


def run_missing(
    plan: Plan,
    jobs: list[Job],
    done: dict[Job, dict[str, Any]],
    sizes: Mapping[str, Size],
    record: dict[str, Any],
    say_job: Callable[[dict[str, Any], str, float], None],
) -> None:
    """Run the jobs that are not `done`; they go there, and after each their scores and bill into the record on disk."""
    failed = record[plan.section]["failed"]
    if done:
        print(f"  {len(done)} of {len(jobs)} jobs were done before; continuing with the others", flush=True)
    work = {job: sizes[job.task.name].examples * job.task.epochs for job in jobs if job not in done}
    progress = JobsProgress({job.name: amount for job, amount in work.items()}, len(done))
    for job, result in run_jobs(plan.worker, list(work), progress.report):
        progress.end(job.name)
        if isinstance(result, UserError):
            fail(failed, job.name, result)
        else:
            done[job] = result
            say_job(result, f"[{progress.ended}/{progress.jobs}]", progress.left_s)
        bring_in(plan, record, [done[job] for job in jobs if job in done], failed)
        records.write_record(plan.out, record)


def say_job(record: dict[str, Any], place: str, left_s: float) -> None:
    """What a job came to, in one line."""
    job = record["job"]
    values = ", ".join(f"{name} {value:.2f}" for name, value in job["metrics"].items())
    left = f"; {clock(left_s)} left" if left_s >= 1 else ""
    print(
        f"{place:>7} {job['task']:<10} seed {job['seed']:<6} {values}  ({job['seconds']:.1f} s, {record['batches']:,} batches, "
        f"{job['tokens'] / job['seconds']:,.0f} tokens/s, from {job['init']}{left})",
        flush=True,
    )


def start_lines(plan: Plan, record: dict[str, Any]) -> list[str]:
    """What runs, on what, at which price."""
    hardware, price = plan.hardware, plan.worker.price
    return [
        f"{plan.checkpoint.name}: {plan.checkpoint.model}, {record['parameters'] / 1e6:.1f} M parameters -> {plan.out}",
        f"  on {hardware.devices}, {record['precision']}",
        f"  {plan.worker.backends.in_short}",
        f"  price: ${price.usd_per_hour} per {hardware.unit}-hour ({price.source})",
    ]
