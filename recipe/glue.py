"""`python -m recipe.glue YAML checkpoint=... [key=value ...]`: an encoder, fine-tuned and scored on tasks.

A job is one task with one seed, with a record of its own; a run that was killed continues with the jobs that are missing.
The scores go into a run.json and scores.md of their own and into the record of the pretraining run that the encoder came from.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from composer.utils import dist

from recipe import records
from recipe.config import GlueConfig, run_main, to_dict
from recipe.cost import prices
from recipe.errors import UserError, say_error
from recipe.finetune import scores
from recipe.finetune.constant import constant_score
from recipe.finetune.jobs import ENCODER, Job, Worker, run_jobs
from recipe.finetune.kinds import KINDS
from recipe.finetune.predictions import read_test_sets, submission_name
from recipe.finetune.progress import JobsProgress
from recipe.finetune.results import choose_folder, find_record, of_final_encoder
from recipe.finetune.tasks import DEV, SEEDS, TASKS, Task, choose_tasks, read_task
from recipe.settings import check_values
from recipe.system.hardware import Hardware, find_hardware
from recipe.system.progress import clock
from recipe.system.quiet import quiet_libraries
from recipe.training.checkpoint import Checkpoint, find_checkpoint


class Size(NamedTuple):
    """Of a task."""

    examples: int  # to train on
    constant: float  # what the constant answer scores


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that the jobs need, checked, with nothing written yet."""

    config: GlueConfig
    checkpoint: Checkpoint
    out: Path
    tasks: list[Task]
    absent: list[str]
    hardware: Hardware
    worker: Worker

    @property
    def scores_run(self) -> bool:
        """Whether these are the scores of the pretraining run, not of a checkpoint on its way or of a tuning split."""
        return self.config.split == DEV and of_final_encoder(self.checkpoint)


def glue(config: GlueConfig) -> dict[str, Any]:
    """Fine-tune and score one checkpoint; returns the record that it also writes, whose `glue` holds the scores.

    Raises:
        UserError: before anything is written, for whatever cannot work; at the end, when everything else is done, for
            tasks whose files are broken or whose loss ran away.
    """
    plan = make_plan(config)
    found = find_record(plan.out, "glue", config)
    if found is not None and found["status"] == "finished":
        print(f"{plan.out} holds these scores already; nothing to do", flush=True)
        return publish(plan, found)
    sizes, failed = check_tasks(plan)
    jobs = list_jobs(plan, [task for task in plan.tasks if task.name in sizes])
    done = kept_jobs(plan, jobs)
    record = start_record(plan, sizes, failed, list(done.values()))
    if done:
        print(f"  {len(done)} of {len(jobs)} jobs were done before; continuing with the others", flush=True)
    work = {job: sizes[job.task.name].examples * (config.epochs or job.task.epochs) for job in jobs if job not in done}
    progress = JobsProgress({job.name: amount for job, amount in work.items()}, len(done))
    for job, result in run_jobs(plan.worker, list(work), progress.report):
        progress.end(job.name)
        if isinstance(result, UserError):
            fail(failed, job.name, result)
        else:
            done[job] = result
            say_job(result, f"[{progress.ended}/{progress.jobs}]", progress.left_s)
        bring_in(record, [done[job] for job in jobs if job in done], failed)
        records.write_record(plan.out, record)
    return finish(plan, record, jobs, done)


def make_plan(config: GlueConfig) -> Plan:
    """Check the config against the checkpoint, the data and the machine."""
    if dist.get_world_size() > 1:
        raise UserError(f"fine-tuning runs on one device, not {dist.get_world_size()} ranks; start it with python -m")
    check_numbers(config)
    hardware = find_hardware(config.device, config.precision, ranks=1)
    check_processes(config, hardware)
    prices.price_of(hardware.name, hardware.kind, config.cost.prices, config.cost.usd_per_hour)
    tasks, absent = choose_tasks(config.data, config.tasks)
    checkpoint = find_checkpoint(config.checkpoint)
    limit = checkpoint.max_length
    if limit is not None and config.max_length > limit:
        raise UserError(
            f"max_length={config.max_length}, but the model has {limit} position embeddings; set max_length={limit}"
        )
    out = choose_folder(config.out, checkpoint, "glue" if config.split == DEV else f"glue-{config.split}")
    return Plan(config, checkpoint, out, tasks, absent, hardware, Worker(config, checkpoint, hardware))


def check_numbers(config: GlueConfig) -> None:
    check_values(config)
    if config.max_tokens < config.max_length:
        raise UserError(
            f"max_tokens={config.max_tokens}: a text of max_length={config.max_length} has more; set at least that"
        )
    if config.seeds > len(SEEDS):
        raise UserError(f"seeds={config.seeds}: give 1 to {len(SEEDS)}, or 0 for each task's own")


def check_processes(config: GlueConfig, hardware: Hardware) -> None:
    unit, most = ("cores", hardware.count) if hardware.kind == "cpu" else ("GPUs", torch.cuda.device_count())
    if not 1 <= config.processes <= most:
        raise UserError(f"processes={config.processes}: give 1 to {most}, as many as there are {unit}")


def check_tasks(plan: Plan) -> tuple[dict[str, Size], dict[str, str]]:
    """What is known of each task that can be read; and why the others cannot."""
    sizes, failed = {}, {}
    for task in plan.tasks:
        try:
            data = read_task(plan.config.data, task, plan.config.max_train_examples, plan.config.split)
            read_test_sets(plan.config.data, task)
        except UserError as error:
            failed[task.name] = error
        else:
            sizes[task.name] = Size(len(data.train), constant_score(data))
            if data.torn_rows:
                print(f"{task.name}: {data.torn_rows} torn lines of train.tsv left out", flush=True)
    if not sizes:
        raise next(iter(failed.values()))
    reasons: dict[str, str] = {}
    for name, error in failed.items():
        fail(reasons, name, error)
    if "MNLI" in failed and plan.config.from_mnli:
        for task in [task for task in plan.tasks if task.from_mnli and task.name in sizes]:
            del sizes[task.name]
            problem = "starts from MNLI's encoder, and MNLI failed; repair MNLI, or set from_mnli=false"
            fail(reasons, task.name, UserError(problem))
    return sizes, reasons


def fail(failed: dict[str, str], name: str, error: UserError) -> None:
    """Note what failed, and say it in one line; the other jobs go on."""
    failed[name] = str(error) if str(error).startswith(name) else f"{name}: {error}"
    say_error(failed[name])


def list_jobs(plan: Plan, tasks: list[Task]) -> list[Job]:
    """In the table's order, which has MNLI before the tasks that start from it."""
    config, jobs = plan.config, []
    first_mnli = None
    heirs = config.from_mnli and any(task.from_mnli for task in tasks)
    for task in tasks:
        for seed in SEEDS[: config.seeds] if config.seeds else task.seeds:
            folder = plan.out / "jobs" / f"{task.name}-{seed}"
            keeps = heirs and task.name == "MNLI" and first_mnli is None
            first_mnli = folder if keeps else first_mnli
            jobs.append(Job(task, seed, folder, first_mnli if task.from_mnli else None, keeps))
    return jobs


def kept_jobs(plan: Plan, jobs: list[Job]) -> dict[Job, dict[str, Any]]:
    """The records of jobs that were done before; MNLI's is of no use without its encoder, if a job still needs that."""
    kept = {job: record for job in jobs if (record := plan.worker.kept(job)) is not None}
    wanted = {job.start for job in jobs if job not in kept}
    return {job: record for job, record in kept.items() if job.folder not in wanted or (job.folder / ENCODER).is_file()}


def start_record(
    plan: Plan, sizes: dict[str, Size], failed: dict[str, str], done: list[dict[str, Any]]
) -> dict[str, Any]:
    """The record as it is now; the model is built once before, so that weights that do not fit fail first."""
    config, hardware, worker = plan.config, plan.hardware, plan.worker
    first = next(task for task in plan.tasks if task.name in sizes)
    kind = KINDS[first.kind]
    model = plan.checkpoint.fine_tuned(kind, kind.outputs(first.labels), worker.backends)
    record = records.new_record(
        kind="glue",
        name=plan.checkpoint.name,
        model=plan.checkpoint.model,
        config=to_dict(config),
        device=records.device(hardware.kind, hardware.name, hardware.count, worker.price),
        backends={key: dataclasses.asdict(getattr(worker.backends, key)) for key in ("attention", "kernels")},
        parameters=sum(p.numel() for p in model.parameters()),
    )
    record["precision"] = str(hardware.activation_dtype).removeprefix("torch.")
    record["glue"] = {
        "benchmark": "GLUE",
        "protocol": {
            "convention": scores.CONVENTION,
            "max_length": config.max_length,
            "seeds": f"{config.seeds} a task" if config.seeds else "the table's",
            "epochs": "the table's" if config.epochs is None else config.epochs,
            "max_train_examples": config.max_train_examples,
            "lr_scale": config.lr_scale,
            "from_mnli": config.from_mnli,
            # Absent for the development sets, as in every record from before there was a choice.
            **({} if config.split == DEV else {"split": config.split}),
        },
        "absent": plan.absent,
        "of": len(TASKS),
        # Absent in records from before it was measured.
        "constant": {name: size.constant for name, size in sizes.items()},
    }
    bring_in(record, done, failed)
    say_start(plan, record)
    records.write_record(plan.out, record)
    return record


def bring_in(record: dict[str, Any], done: list[dict[str, Any]], failed: dict[str, str]) -> None:
    """The scores and the bill of the jobs so far into the record of them all."""
    tasks = scores.summarise([job["job"] for job in done])
    record["cost"] = scores.add_bills([job["cost"] for job in done])
    for key in ("tokens", "sequences", "batches"):
        record[key] = sum(job[key] for job in done)
    record["glue"] |= {"tasks": tasks, "score": scores.mean_score(tasks), "cost": record["cost"], "failed": failed}


def finish(plan: Plan, record: dict[str, Any], jobs: list[Job], done: dict[Job, dict[str, Any]]) -> dict[str, Any]:
    """Write what is there; raise when something is missing from it."""
    failed = record["glue"]["failed"]
    (plan.out / "scores.md").write_text(scores.markdown(plan.checkpoint.name, record["glue"]), encoding="utf-8")
    submit(plan, jobs, done)
    record["status"] = "incomplete" if failed else "finished"
    records.write_record(plan.out, record)  # last, so that a run that is killed here writes the others again
    if failed:
        print("\n".join(scores.table(record["glue"])), flush=True)
        raise UserError(f"{'; '.join(failed)} failed; repair and run the same command again: it continues with them")
    for job in jobs:
        (job.folder / ENCODER).unlink(missing_ok=True)
    return publish(plan, record)


def submit(plan: Plan, jobs: list[Job], done: dict[Job, dict[str, Any]]) -> None:
    """Of each task that has test sets, the predictions of the seed with the best development score, for gluebenchmark.com."""
    for task in plan.tasks:
        of_task = [job for job in jobs if job in done and job.task == task]
        if not of_task or not (names := done[of_task[0]]["job"]["test_sets"]):
            continue
        best = max(of_task, key=lambda job: done[job]["job"]["score"])
        for name in names:
            target = plan.out / "submission" / submission_name(task.name, name)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(best.folder / f"{name}.tsv", target)


def say_job(record: dict[str, Any], place: str, left_s: float) -> None:
    job = record["job"]
    values = ", ".join(f"{name} {value:.2f}" for name, value in job["metrics"].items())
    left = f"; {clock(left_s)} left" if left_s >= 1 else ""
    print(
        f"{place:>7} {job['task']:<10} seed {job['seed']:<6} {values}  ({job['seconds']:.1f} s, {record['batches']:,} batches, "
        f"{job['tokens'] / job['seconds']:,.0f} tokens/s, from {job['init']}{left})",
        flush=True,
    )


def publish(plan: Plan, record: dict[str, Any]) -> dict[str, Any]:
    """Print the table, and bring the scores into the record of the pretraining run."""
    print("\n".join(scores.table(record["glue"])), flush=True)
    run = plan.checkpoint.run
    if run is None:
        return record
    if not plan.scores_run:
        why = "not the final encoder" if plan.config.split == DEV else f"scores of split={plan.config.split}, not those"
        print(f"{why} of {run}, so its {records.FILE_NAME} stays as it is; see {plan.out}", flush=True)
        return record
    pretraining = records.read_record(run)
    if pretraining["glue"] not in (None, record["glue"]):
        print(f"{run / records.FILE_NAME}: these scores replace earlier ones", flush=True)
    pretraining["glue"] = record["glue"]
    print(f"scores in {records.write_record(run, pretraining)}", flush=True)
    return record


def say_start(plan: Plan, record: dict[str, Any]) -> None:
    hardware, price = plan.hardware, plan.worker.price
    lines = [
        f"{plan.checkpoint.name}: {plan.checkpoint.model}, {record['parameters'] / 1e6:.1f} M parameters -> {plan.out}",
        f"  on {hardware.devices}, {record['precision']}",
        f"  {plan.worker.backends.in_short}",
        f"  price: ${price.usd_per_hour} per {hardware.unit}-hour ({price.source})",
        "  tasks: " + ", ".join(task.name for task in plan.tasks) + scores.absence(plan.absent),
    ]
    orphans = [task.name for task in plan.tasks if task.from_mnli]
    if orphans and (not plan.config.from_mnli or "MNLI" not in [task.name for task in plan.tasks]):
        why = "MNLI is not among the tasks" if plan.config.from_mnli else "from_mnli=false"
        lines.append(f"  init: {', '.join(orphans)} from the pretrained encoder, as {why}")
    print("\n".join(lines), flush=True)


def main(config: GlueConfig) -> None:
    """The entry point's own part: a clean terminal, then `glue`."""
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    glue(config)


if __name__ == "__main__":
    raise SystemExit(run_main(GlueConfig, main))
