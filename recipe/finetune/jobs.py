"""The jobs of a fine-tuning: one task with one seed each, one after another or in several processes, each with a record.

A job depends on nothing but its checkpoint, its task's files, its seed and MNLI's encoder, so any of them can be left out
or repeated. Its folder holds its predictions and, written last, its run.json: where that is, the job is done.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.utils import reproducibility
from safetensors.torch import load_file, save_file

from recipe import records
from recipe.config import GlueConfig, to_dict
from recipe.cost import prices
from recipe.errors import UserError
from recipe.finetune.batches import EncodedExamples, ExampleCollator
from recipe.finetune.examples import Examples
from recipe.finetune.fit import Fit, Outcome, Report, fine_tune, no_report
from recipe.finetune.predictions import TestSet, read_test_sets, write_dev, write_test
from recipe.finetune.tasks import DEV, HUB, TUNING, Task, TaskData, read_task
from recipe.model.huggingface import is_classifier
from recipe.system import processes
from recipe.system.files import digest, write_whole
from recipe.system.hardware import Hardware, find_hardware
from recipe.system.processes import WorkerPool
from recipe.system.quiet import quiet_libraries
from recipe.training.checkpoint import Checkpoint, find_checkpoint

ENCODER = "encoder.safetensors"  # what a job leaves for the tasks that start from it


@dataclass(frozen=True)
class Job:
    task: Task
    seed: int
    folder: Path
    start: Path | None = None  # the folder of the job whose encoder this one starts from
    keeps_encoder: bool = False  # for others to start from

    @property
    def name(self) -> str:
        return f"{self.task.name}, seed {self.seed}"


@dataclass(frozen=True)
class Encoded:
    data: TaskData
    train: EncodedExamples
    dev: dict[str, EncodedExamples]
    tests: dict[str, TestSet]
    encoded_tests: dict[str, EncodedExamples]


class Worker:
    """What one process needs for every job: checkpoint, device, price, and the examples of the task it had last."""

    def __init__(self, config: GlueConfig, checkpoint: Checkpoint, hardware: Hardware) -> None:
        self.config = config
        self.checkpoint = checkpoint
        self.hardware = hardware
        # A job in a pool is billed for its part of the cores; a GPU it has to itself.
        self.devices = 1 if hardware.kind == "gpu" else hardware.count / config.processes
        self.backends = checkpoint.resolve_backends(hardware)
        self.price = prices.price_of(hardware.name, hardware.kind, config.cost.prices, config.cost.usd_per_hour)
        self.collator = ExampleCollator(config.max_tokens, checkpoint.padding)
        self.weights_digest = digest(checkpoint.files)
        self.report: Report = no_report
        self._last: Encoded | None = None

    def inputs(self, job: Job) -> dict[str, Any]:
        """What the job's numbers follow from, beside the config: if these are others than a record's, it runs again."""
        folder = Path(self.config.data) / job.task.name
        files = [] if self.config.data == HUB else sorted(folder.glob("*.tsv"))
        return {"checkpoint": self.weights_digest, "data": digest(files)}

    def kept(self, job: Job) -> dict[str, Any] | None:
        """The record of a job that was done before, from the same files."""
        if not (job.folder / records.FILE_NAME).is_file():
            return None
        record = records.read_record(job.folder)
        return record if record["job"]["inputs"] == self.inputs(job) else None

    def run(self, job: Job) -> dict[str, Any]:
        """Fine-tune, predict, measure; write predictions and record, and return the record.

        Raises:
            UserError: for what is wrong with the task's files, or a loss that ran away.
        """
        config, task, checkpoint = self.config, job.task, self.checkpoint
        found = self._encode(task)
        reproducibility.seed_all(job.seed)
        data = found.data
        model = checkpoint.fine_tuned(data.kind, data.kind.outputs(data.labels), self.backends)
        if job.start is not None:
            unmatched = model.load_state_dict(load_file(job.start / ENCODER), strict=False)
            assert not unmatched.unexpected_keys and all(is_classifier(key) for key in unmatched.missing_keys)
        fit = Fit(
            name=job.name,
            lr=task.lr * config.lr_scale,
            weight_decay=task.weight_decay * config.lr_scale,
            epochs=task.epochs if config.epochs is None else config.epochs,
            batch_size=task.batch_size,
            seed=job.seed,
        )
        wanted = {**found.dev, **found.encoded_tests}
        outcome = fine_tune(model, data.kind, fit, found.train, wanted, self.collator, self.hardware, self.report)
        predicted = {name: data.kind.decode(wanted[name], outputs) for name, outputs in outcome.outputs.items()}
        metrics = {}
        for name, examples in data.dev.items():
            measured = data.kind.measure(task.metrics, examples.labels, predicted[name], data.labels)
            suffix = "" if name == TUNING else name.removeprefix(DEV)  # "", or "_matched" and "_mismatched"
            metrics |= {metric + suffix: value for metric, value in measured.items()}
            write_dev(job.folder / f"{name}.tsv", data, examples.labels, predicted[name])
        for name, test in found.tests.items():
            write_test(job.folder / f"{name}.tsv", test, data, predicted[name])
        if job.keeps_encoder:
            state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
            kept = {key: value for key, value in state.items() if not is_classifier(key)}
            write_whole(job.folder / ENCODER, lambda draft: save_file(kept, draft))
        record = self._record(job, found, outcome, metrics, sum(p.numel() for p in model.parameters()))
        records.write_record(job.folder, record)
        return record

    def _record(
        self, job: Job, found: Encoded, outcome: Outcome, metrics: dict[str, float], parameters: int
    ) -> dict[str, Any]:
        hardware = self.hardware
        record = records.new_record(
            kind="glue_job",
            name=f"{self.checkpoint.name}: {job.name}",
            model=self.checkpoint.model,
            config=to_dict(self.config),
            device=records.device(hardware.kind, hardware.name, hardware.count, self.price),
            backends={key: dataclasses.asdict(getattr(self.backends, key)) for key in ("attention", "kernels")},
            parameters=parameters,
        )
        counts = {key: getattr(outcome, key) for key in ("tokens", "sequences", "batches")}
        examples = [found.train, *found.dev.values()]
        record["job"] = {
            "task": job.task.name,
            "seed": job.seed,
            "init": "mnli" if job.start else "pretrained",
            "score": statistics.fmean(metrics.values()),
            "metrics": metrics,
            "seconds": outcome.seconds,
            "tokens": outcome.tokens,
            "train_examples": len(found.train),
            "dev_examples": sum(len(dev) for dev in found.dev.values()),
            "truncated_examples": sum(one.truncated for one in examples),
            "torn_rows": found.data.torn_rows,
            "test_sets": list(found.tests),
            "inputs": self.inputs(job),
        }
        cost = prices.bill(outcome.seconds, self.devices, self.price, hardware.kind)
        return record | counts | {"status": "finished", "cost": cost}

    def _encode(self, task: Task) -> Encoded:
        if self._last is None or self._last.data.task.name != task.name:
            data = read_task(self.config.data, task, self.config.max_train_examples, self.config.split)

            def encoded(examples: Examples) -> EncodedExamples:
                return data.kind.encode(self.checkpoint.tokenizer, examples, self.config.max_length)

            tests = read_test_sets(self.config.data, task) if self.config.split == DEV else {}
            self._last = Encoded(
                data,
                encoded(data.train),
                {name: encoded(dev) for name, dev in data.dev.items()},
                tests,
                {name: encoded(test.examples) for name, test in tests.items()},
            )
        return self._last


def run_jobs(worker: Worker, jobs: Sequence[Job], report: Report) -> Iterator[tuple[Job, dict[str, Any] | UserError]]:
    """Each job with its record, or with what a user did wrong, as they end; those that others start from come first."""
    if worker.config.processes == 1:
        worker.report = report
        yield from ((job, _attempt(worker, job)) for job in jobs)
    elif jobs:
        yield from _in_processes(worker.config, jobs, report)


def _attempt(worker: Worker, job: Job) -> dict[str, Any] | UserError:
    if job.start and not (job.start / ENCODER).is_file():
        return UserError(
            f"{job.name}: starts from MNLI's encoder, and MNLI failed; repair MNLI, or set from_mnli=false"
        )
    try:
        return worker.run(job)
    except UserError as error:
        return UserError(f"{job.name}: {error}" if job.name not in str(error) else str(error))


def _in_processes(config: GlueConfig, jobs: Sequence[Job], report: Report) -> Iterator[tuple[Job, Any]]:
    """The jobs over a pool; one that starts from another's encoder is handed out when that one has ended."""
    places = {job.folder: place for place, job in enumerate(jobs)}
    after = {place: places[job.start] for place, job in enumerate(jobs) if job.start in places}

    def watch(reports: list[tuple]) -> None:
        for words in reports:
            report(*words)

    with WorkerPool(config.processes, _begin, (config,)) as pool:
        for place, done in pool.run(_run_here, jobs, after, watch):
            yield jobs[place], done.result()


_here: Worker | None = None  # of a process of the pool


def _begin(config: GlueConfig) -> None:
    """In a new process of the pool: take one GPU or a share of the cores, find the checkpoint."""
    global _here
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    hardware = find_hardware(config.device, config.precision, ranks=1)
    if hardware.kind == "gpu":
        torch.cuda.set_device(processes.number())
    else:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), hardware.count // config.processes)))
    _here = Worker(config, find_checkpoint(config.checkpoint), hardware)
    _here.report = processes.report


def _run_here(job: Job) -> dict[str, Any] | UserError:
    assert _here is not None
    return _attempt(_here, job)
