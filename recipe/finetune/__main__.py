"""`python -m recipe.finetune YAML checkpoint=... [key=value ...]`: an encoder, fine-tuned on a task of your own.

The YAML names files, columns, the kind of label, metrics and seeds. Each seed is a job with a record of its own; a run that was
killed continues with the jobs that are missing. At the end stand scores with their spread, a bill, and the folder `model`, which
`recipe.predict` takes.
"""

from __future__ import annotations

import shutil
from typing import Any

import torch

from recipe import records
from recipe.config import FinetuneConfig, run_main
from recipe.errors import UserError, end
from recipe.finetune import scores
from recipe.finetune.batches import EncodedExamples
from recipe.finetune.folder import FOLDER
from recipe.finetune.jobs import Job, Worker, check_one_process
from recipe.finetune.own import DEV, TRAIN, OwnTask, check
from recipe.finetune.results import choose_folder, find_record
from recipe.finetune.run import (
    Plan,
    find_encoder,
    find_machine,
    owned,
    run_missing,
    say_job,
    size_of,
    start_lines,
    start_record,
)
from recipe.finetune.tasks import TaskData
from recipe.settings import check_values
from recipe.system.files import write_whole_folder
from recipe.system.quiet import quiet_libraries


def finetune(config: FinetuneConfig) -> dict[str, Any]:
    """Fine-tune and score one checkpoint on the config's task; returns the record that it also writes, whose `finetune` holds the
    scores.

    Raises:
        UserError: before anything is written, for whatever cannot work; at the end for a seed whose loss ran away.
    """
    plan = make_plan(config)
    find_record(plan.out, "finetune", config)  # a folder that holds something else is refused before it is touched
    with owned(plan.out):
        return run(plan)


def run(plan: Plan) -> dict[str, Any]:
    """The jobs that are missing, and the record."""
    config, found = plan.config, find_record(plan.out, "finetune", plan.config)
    inputs = plan.worker.inputs(Job(plan.tasks[0], 0, plan.out))
    if found is not None and found["status"] == "finished" and found["finetune"]["inputs"] == inputs:
        print(f"{plan.out} holds these scores already; nothing to do", flush=True)
        return publish(plan, found)
    (task,), data = plan.tasks, plan.worker.source.data
    jobs = [Job(task, seed, plan.out / "jobs" / str(seed), keeps_model=True) for seed in task.seeds]
    done = {
        job: record for job in jobs if (record := plan.worker.kept(job)) is not None and (job.folder / FOLDER).is_dir()
    }
    sizes = {task.name: size_of(data)}
    about = {
        "benchmark": config.name,
        "protocol": {
            "convention": "mean over seeds of the mean of the metrics",
            "kind": config.kind,
            "scored_on": next(iter(data.dev)),
            "max_length": config.max_length,
            "seeds": list(config.seeds),
            "epochs": config.epochs,
        },
        "absent": [],
        "inputs": inputs,
        "labels": list(data.labels),
    }
    record = start_record(plan, sizes, {}, list(done.values()), about, say_start)
    run_missing(plan, jobs, done, sizes, record, say_job)
    return finish(plan, record, jobs, done)


def make_plan(config: FinetuneConfig) -> Plan:
    """Check the config against the files, the checkpoint and the machine."""
    check_one_process()
    check_values(config)
    check(config)
    hardware = find_machine(config)
    source = OwnTask(config)
    task = source.data.task
    checkpoint = find_encoder(config)
    out = choose_folder(config.out, checkpoint, f"finetune-{config.name}")
    return Plan(config, checkpoint, out, [task], [], hardware, Worker(config, source, checkpoint, hardware))


def say_start(plan: Plan, record: dict[str, Any]) -> None:
    """What runs; of the texts how many there are, and which are too long; what is odd about the labels."""
    (task,), source = plan.tasks, plan.worker.source
    data, lines = source.data, start_lines(plan, record)
    labels = f", {len(data.labels)} labels" if data.labels else ""
    lines.append(f"  {task.name}: {plan.config.kind}{labels}; {sets_in_words(data, source.draws_dev)}")
    lines += [f"  note: {note}" for note in data.notes]
    encoded = plan.worker.encode(task)
    for name, examples in {TRAIN: encoded.train, **encoded.dev}.items():
        lines += too_long(plan.config.max_length, data, name, examples)
    print("\n".join(lines), flush=True)


def sets_in_words(data: TaskData, drawn: bool) -> str:
    sets = {TRAIN: data.train, **({DEV: data.choosing} if data.choosing else {}), **data.dev}
    words = ", ".join(f"{name} {len(one):,}" for name, one in sets.items())
    return f"{words} examples{f', {DEV} drawn from {TRAIN}' if drawn else ''}"


def too_long(max_length: int, data: TaskData, name: str, examples: EncodedExamples) -> list[str]:
    """A line about the texts of a set that are longer than the model is given, or none."""
    if examples.word_offsets is not None:
        more = len(examples) - (len(examples.word_offsets) - 1)
        return [f"  note: {name}: sentences beyond {max_length} tokens are read in {more} more windows"] if more else []
    if not examples.truncated:
        return []
    where = data.places[name][examples.first_truncated]
    return [
        f"  note: {name}: {examples.truncated:,} of {len(examples):,} rows are longer than max_length={max_length} tokens and "
        f"are cut, the first at {where}"
    ]


def finish(plan: Plan, record: dict[str, Any], jobs: list[Job], done: dict[Job, dict[str, Any]]) -> dict[str, Any]:
    """Write what is there, with the model of the best seed; raise when a seed is missing."""
    failed = record["finetune"]["failed"]
    if failed:
        record["status"] = "incomplete"
        records.write_record(plan.out, record)
        print("\n".join(table(record)), flush=True)
        raise UserError(f"{'; '.join(failed)} failed; repair and run the same command again: it continues with them")
    data = plan.worker.source.data
    scored_on_dev = DEV in data.dev
    # A test set chooses nothing: its score would flatter.
    quality = {
        job: record["job"].get("choosing", record["job"]["score"] if scored_on_dev else 0.0)
        for job, record in done.items()
    }
    best = max(jobs, key=lambda job: quality[job])  # the first of equals
    why = f"best {DEV} score" if data.choosing or scored_on_dev else "first seed"
    record["finetune"]["model"] = {"seed": best.seed, "chosen_by": why}
    kept = best.folder / FOLDER
    write_whole_folder(plan.out / FOLDER, lambda draft: shutil.copytree(kept, draft, dirs_exist_ok=True))
    (plan.out / "scores.md").write_text(scores.markdown(plan.checkpoint.name, record["finetune"]), encoding="utf-8")
    record["status"] = "finished"
    records.write_record(plan.out, record)  # last, so that a run that is killed here writes the others again
    return publish(plan, record)


def publish(plan: Plan, record: dict[str, Any]) -> dict[str, Any]:
    """Print the table; the jobs' own models are not needed any more."""
    for folder in (plan.out / "jobs").glob(f"*/{FOLDER}"):
        shutil.rmtree(folder)
    print("\n".join(table(record)), flush=True)
    model = record["finetune"]["model"]
    print(f"model in {plan.out / FOLDER}: seed {model['seed']}, the {model['chosen_by']}", flush=True)
    return record


def table(record: dict[str, Any]) -> list[str]:
    """The scores as lines of text, those of entity types under them."""
    lines = scores.table(record["finetune"])
    for task in record["finetune"]["tasks"].values():
        types = task.get("entity_f1", {})
        lines += [f"  {name:<12} F1 {value:6.2f}" for name, value in types.items()]
    return lines


def main(config: FinetuneConfig) -> None:
    """The entry point's own part: a clean terminal, then `finetune`."""
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    finetune(config)


if __name__ == "__main__":
    end(lambda: run_main(FinetuneConfig, main))
