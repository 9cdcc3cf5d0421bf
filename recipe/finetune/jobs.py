"""The jobs of a fine-tuning: one task with one seed each, one after another or in several processes, each with a record.

A job depends on nothing but its checkpoint, its task's files, its seed and, on GLUE, MNLI's encoder, so any of them can be left
out or repeated. Its folder holds its predictions and, written last, its run.json: where that is, the job is done.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from composer.utils import dist, reproducibility
from safetensors.torch import load_file, save_file

from recipe import records
from recipe.config import Jobs, to_dict
from recipe.cost import prices
from recipe.errors import UserError
from recipe.finetune.batches import EncodedExamples, ExampleCollator
from recipe.finetune.examples import Examples
from recipe.finetune.fit import Fit, Judge, Outcome, Report, fine_tune, no_report
from recipe.finetune.folder import FOLDER, save_fine_tuned
from recipe.finetune.predictions import TestSet, write_dev, write_test
from recipe.finetune.tasks import CHOOSING, DEV, Task, TaskData
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
    keeps_model: bool = False  # for its user

    @property
    def name(self) -> str:
        return f"{self.task.name}, seed {self.seed}"


class Source(Protocol):
    """Where the examples of jobs come from, `recipe.finetune.own` or GLUE's files; it is handed to the processes of a pool."""

    section: str  # of a record: where the scores stand in it
    lr_key: str  # the key that lowers the learning rate

    def read(self, task: Task) -> TaskData:
        """The task's examples."""

    def tests(self, task: Task) -> dict[str, TestSet]:
        """Examples without labels that are predicted too, by the name of their file."""

    def files(self, task: Task) -> list[Path]:
        """What they are read from."""


@dataclass(frozen=True)
class Encoded:
    data: TaskData
    train: EncodedExamples
    dev: dict[str, EncodedExamples]
    tests: dict[str, TestSet]
    encoded_tests: dict[str, EncodedExamples]
    choosing: dict[str, EncodedExamples]  # one set, or none

    @property
    def predicted(self) -> dict[str, EncodedExamples]:
        return {**self.dev, **self.encoded_tests, **self.choosing}


class Worker:
    """What one process needs for every job: checkpoint, device, price, and the examples of the task it had last."""

    def __init__(self, config: Jobs, source: Source, checkpoint: Checkpoint, hardware: Hardware) -> None:
        self.config = config
        self.source = source
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
        return {"checkpoint": self.weights_digest, "data": digest(self.source.files(job.task))}

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
        task, checkpoint = job.task, self.checkpoint
        found = self.encode(task)
        reproducibility.seed_all(job.seed)
        data = found.data
        model = checkpoint.fine_tuned(data.kind, data.kind.outputs(data.labels), self.backends)
        if job.start is not None:
            unmatched = model.load_state_dict(load_file(job.start / ENCODER), strict=False)
            assert not unmatched.unexpected_keys and all(is_classifier(key) for key in unmatched.missing_keys)
        outputs = data.kind.outputs(data.labels)
        weights = data.kind.balance(found.train.labels, outputs) if task.fitting.balanced else None
        fit = Fit(
            job.name, task.lr, task.weight_decay, task.epochs, task.batch_size, job.seed, task.fitting, weights,
            self.source.lr_key,
        )  # fmt: skip
        wanted = found.predicted
        judge = self._judge(found) if task.fitting.patience else None
        outcome = fine_tune(
            model, data.kind, fit, found.train, wanted, self.collator, self.hardware, self.report, judge
        )
        predicted = {name: data.kind.decode(wanted[name], outputs) for name, outputs in outcome.outputs.items()}
        metrics, details = {}, {}
        for name, examples in data.dev.items():
            measured = data.kind.measure(task.metrics, examples.labels, predicted[name], data.labels)
            details |= data.kind.details(examples.labels, predicted[name], data.labels)
            suffix = "" if len(data.dev) == 1 else name.removeprefix(DEV)  # "", or "_matched" and "_mismatched"
            metrics |= {metric + suffix: value for metric, value in measured.items()}
            write_dev(job.folder / f"{name}.tsv", data, examples.labels, predicted[name])
        for name, test in found.tests.items():
            write_test(job.folder / f"{name}.tsv", test, data, predicted[name])
        if job.keeps_encoder:
            state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
            kept = {key: value for key, value in state.items() if not is_classifier(key)}
            write_whole(job.folder / ENCODER, lambda draft: save_file(kept, draft))
        record = self._record(job, found, outcome, metrics, sum(p.numel() for p in model.parameters()))
        record["job"] |= details
        if data.choosing:
            record["job"]["choosing"] = self._score(data, predicted[CHOOSING])
        if job.keeps_model:
            save_fine_tuned(job.folder / FOLDER, model, checkpoint, data, self.config, record["job"])
        records.write_record(job.folder, record)
        return record

    def _record(
        self, job: Job, found: Encoded, outcome: Outcome, metrics: dict[str, float], parameters: int
    ) -> dict[str, Any]:
        hardware = self.hardware
        record = records.new_record(
            kind=f"{self.source.section}_job",
            name=f"{self.checkpoint.name}: {job.name}",
            model=self.checkpoint.model,
            config=to_dict(self.config),
            device=records.device(hardware.kind, hardware.name, hardware.count, self.price),
            backends={key: dataclasses.asdict(getattr(self.backends, key)) for key in ("attention", "kernels")},
            parameters=parameters,
        )
        counts = {key: getattr(outcome, key) for key in ("tokens", "sequences", "batches")}
        data, examples = found.data, [found.train, *found.dev.values()]
        record["job"] = {
            "task": job.task.name,
            "seed": job.seed,
            "init": "mnli" if job.start else "pretrained",
            "score": statistics.fmean(metrics.values()),
            "metrics": metrics,
            "seconds": outcome.seconds,
            "tokens": outcome.tokens,
            "train_examples": len(data.train),
            "dev_examples": sum(len(dev) for dev in data.dev.values()),
            "truncated_examples": sum(one.truncated for one in examples),
            "torn_rows": data.torn_rows,
            "test_sets": list(found.tests),
            "inputs": self.inputs(job),
        }
        cost = prices.bill(outcome.seconds, self.devices, self.price, hardware.kind)
        return record | counts | {"status": "finished", "cost": cost}

    def encode(self, task: Task) -> Encoded:
        if self._last is None or self._last.data.task.name != task.name:
            data = self.source.read(task)

            def encoded(examples: Examples) -> EncodedExamples:
                return data.kind.encode(self.checkpoint.tokenizer, examples, self.config.max_length)

            tests = self.source.tests(task)
            self._last = Encoded(
                data,
                encoded(data.train),
                {name: encoded(dev) for name, dev in data.dev.items()},
                tests,
                {name: encoded(test.examples) for name, test in tests.items()},
                {CHOOSING: encoded(data.choosing)} if data.choosing else {},
            )
        return self._last

    def _judge(self, found: Encoded) -> Judge:
        """By what an epoch is judged: a set, and the score of its outputs."""
        data, ((name, examples),) = found.data, (found.choosing or found.dev).items()
        return examples, lambda outputs: self._score(data, data.kind.decode(examples, outputs), name)

    def _score(self, data: TaskData, predicted: Sequence, name: str = CHOOSING) -> float:
        gold = data.choosing if name == CHOOSING else data.dev[name]
        return statistics.fmean(data.kind.measure(data.task.metrics, gold.labels, predicted, data.labels).values())


def check_one_process() -> None:
    """Raise a `UserError` under a launcher of several ranks."""
    if dist.get_world_size() > 1:
        raise UserError(f"fine-tuning runs on one device, not {dist.get_world_size()} ranks; start it with python -m")


def run_jobs(worker: Worker, jobs: Sequence[Job], report: Report) -> Iterator[tuple[Job, dict[str, Any] | UserError]]:
    """Each job with its record, or with what a user did wrong, as they end; those that others start from come first."""
    if worker.config.processes == 1:
        worker.report = report
        yield from ((job, _attempt(worker, job)) for job in jobs)
    elif jobs:
        yield from _in_processes(worker.config, worker.source, jobs, report)


def _attempt(worker: Worker, job: Job) -> dict[str, Any] | UserError:
    if job.start and not (job.start / ENCODER).is_file():
        return UserError(
            f"{job.name}: starts from MNLI's encoder, and MNLI failed; repair MNLI, or set from_mnli=false"
        )
    try:
        return worker.run(job)
    except UserError as error:
        return UserError(f"{job.name}: {error}" if job.name not in str(error) else str(error))


def _in_processes(
    config: Jobs, source: Source, jobs: Sequence[Job], report: Report
) -> Iterator[tuple[Job, dict[str, Any] | UserError]]:
    """The jobs over a pool; one that starts from another's encoder is handed out when that one has ended."""
    places = {job.folder: place for place, job in enumerate(jobs)}
    after = {place: places[job.start] for place, job in enumerate(jobs) if job.start in places}

    def watch(reports: list[tuple]) -> None:
        for words in reports:
            report(*words)

    with WorkerPool(config.processes, _begin, (config, source)) as pool:
        for place, done in pool.run(_run_here, jobs, after, watch):
            yield jobs[place], done.result()


_here: Worker | None = None  # of a process of the pool


def _begin(config: Jobs, source: Source) -> None:
    """In a new process of the pool: take one GPU or a share of the cores, find the checkpoint."""
    global _here
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    hardware = find_hardware(config.device, config.precision, ranks=1)
    if hardware.kind == "gpu":
        torch.cuda.set_device(processes.number())
    else:
        torch.set_num_threads(max(1, min(torch.get_num_threads(), hardware.count // config.processes)))
    _here = Worker(config, source, find_checkpoint(config.checkpoint), hardware)
    _here.report = processes.report


def _run_here(job: Job) -> dict[str, Any] | UserError:
    assert _here is not None
    return _attempt(_here, job)
