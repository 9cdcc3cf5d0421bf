"""`python -m recipe.glue YAML checkpoint=... [key=value ...]`: an encoder, fine-tuned and scored on tasks.

A job is one task with one seed, with a record of its own; a run that was killed continues with the jobs that are missing.
The scores go into a run.json and scores.md of their own and into the record of the pretraining run that the encoder came from.
"""

from __future__ import annotations

import dataclasses
import shutil
from typing import Any

import torch

from recipe import records
from recipe.config import GlueConfig, run_main
from recipe.errors import UserError, end
from recipe.finetune import scores
from recipe.finetune.jobs import ENCODER, Job, Worker, check_one_process
from recipe.finetune.kinds.siamese import APART
from recipe.finetune.predictions import GlueFiles, submission_name
from recipe.finetune.results import choose_folder, find_record, of_final_encoder
from recipe.finetune.run import (
    Plan,
    Size,
    fail,
    find_encoder,
    find_machine,
    owned,
    run_missing,
    say_job,
    size_of,
    start_lines,
    start_record,
)
from recipe.finetune.tasks import DEV, SEEDS, TASKS, Task, choose_tasks
from recipe.settings import check_values
from recipe.system.quiet import quiet_libraries

JOINT = "joint"


def glue(config: GlueConfig) -> dict[str, Any]:
    """Fine-tune and score one checkpoint; returns the record that it also writes, whose `glue` holds the scores.

    Raises:
        UserError: before anything is written, for whatever cannot work; at the end, when everything else is done, for
            tasks whose files are broken or whose loss ran away.
    """
    plan = make_plan(config)
    find_record(plan.out, "glue", config)  # a folder that holds something else is refused before it is touched
    with owned(plan.out):
        return run(plan)


def run(plan: Plan) -> dict[str, Any]:
    """The jobs that are missing, and the record."""
    found = find_record(plan.out, "glue", plan.config)
    if found is not None and found["status"] == "finished":
        print(f"{plan.out} holds these scores already; nothing to do", flush=True)
        return publish(plan, found)
    sizes, failed = check_tasks(plan)
    jobs = list_jobs(plan, [task for task in plan.tasks if task.name in sizes])
    done = kept_jobs(plan, jobs)
    record = start_record(plan, sizes, failed, list(done.values()), about(plan), say_start)
    run_missing(plan, jobs, done, sizes, record, say_job)
    return finish(plan, record, jobs, done)


def make_plan(config: GlueConfig) -> Plan:
    """Check the config against the checkpoint, the data and the machine."""
    check_one_process()
    check_values(config)
    if config.seeds > len(SEEDS):
        raise UserError(f"seeds={config.seeds}: give 1 to {len(SEEDS)}, or 0 for each task's own")
    hardware = find_machine(config)
    rows, absent = choose_tasks(config.data, config.tasks)
    tasks = [as_configured(task, config) for task in rows]
    checkpoint = find_encoder(config)
    out = choose_folder(config.out, checkpoint, "glue" if config.split == DEV else f"glue-{config.split}")
    files = GlueFiles(config.data, config.split, config.max_train_examples)
    return Plan(config, checkpoint, out, tasks, absent, hardware, Worker(config, files, checkpoint, hardware))


def as_configured(task: Task, config: GlueConfig) -> Task:
    """The table's row with the config's epochs, scale of the learning rate and encoding of pairs."""
    return dataclasses.replace(
        task,
        lr=task.lr * config.lr_scale,
        weight_decay=task.weight_decay * config.lr_scale,
        epochs=task.epochs if config.epochs is None else config.epochs,
        kind=APART[task.kind] if config.pair_encoding != JOINT and len(task.sentences) > 1 else task.kind,
    )


def check_tasks(plan: Plan) -> tuple[dict[str, Size], dict[str, str]]:
    """What is known of each task that can be read; and why the others cannot."""
    sizes, failed = {}, {}
    for task in plan.tasks:
        try:
            data = plan.worker.source.read(task)
            plan.worker.source.tests(task)
        except UserError as error:
            failed[task.name] = error
        else:
            sizes[task.name] = size_of(data)
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


def about(plan: Plan) -> dict[str, Any]:
    """What stands beside the scores."""
    config = plan.config
    return {
        "benchmark": "GLUE",
        "protocol": {
            "convention": scores.CONVENTION,
            "max_length": config.max_length,
            "seeds": f"{config.seeds} a task" if config.seeds else "the table's",
            "epochs": "the table's" if config.epochs is None else config.epochs,
            "max_train_examples": config.max_train_examples,
            "lr_scale": config.lr_scale,
            "from_mnli": config.from_mnli,
            # Absent where they are what every record from before there was a choice has.
            **({} if config.split == DEV else {"split": config.split}),
            **({} if config.pair_encoding == JOINT else {"pair_encoding": config.pair_encoding}),
        },
        "absent": plan.absent,
        "of": len(TASKS),
    }


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


def scores_run(plan: Plan) -> bool:
    """Whether these are the scores of the pretraining run, not of a checkpoint on its way or of a tuning split."""
    return plan.config.split == DEV and of_final_encoder(plan.checkpoint)


def publish(plan: Plan, record: dict[str, Any]) -> dict[str, Any]:
    """Print the table, and bring the scores into the record of the pretraining run."""
    print("\n".join(scores.table(record["glue"])), flush=True)
    run = plan.checkpoint.run
    if run is None:
        return record
    if not scores_run(plan):
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
    lines = start_lines(plan, record)
    lines.append("  tasks: " + ", ".join(task.name for task in plan.tasks) + scores.absence(plan.absent))
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
    end(lambda: run_main(GlueConfig, main))
