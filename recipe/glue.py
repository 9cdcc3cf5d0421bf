"""`python -m recipe.glue YAML checkpoint=... [key=value ...]`: an encoder, fine-tuned and scored on tasks.

The scores go into a run.json of their own and into that of the pretraining run that the encoder came from.
"""

from __future__ import annotations

import dataclasses
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist, reproducibility
from torch import Tensor

from recipe.config import GlueConfig, run_main, to_dict
from recipe.cost import prices, records
from recipe.data.glue_tasks import SEEDS, TASKS, Task, TaskData, choose_tasks, read_task
from recipe.data.sequence_batch import EncodedExamples, encode
from recipe.errors import UserError
from recipe.model.encoder import Backends
from recipe.training.checkpoint import Checkpoint, find_checkpoint
from recipe.training.classification import Job, Outcome, fine_tune
from recipe.training.hardware import Hardware, find_hardware
from recipe.training.metrics import measure
from recipe.training.quiet import quiet_libraries

CONVENTION = "mean over tasks of the mean of each task's metrics"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that the jobs need, read and checked, with nothing written yet."""

    config: GlueConfig
    checkpoint: Checkpoint
    out: Path
    tasks: list[Task]
    absent: list[str]
    hardware: Hardware
    backends: Backends
    price: prices.Price

    def seeds(self, task: Task) -> tuple[int, ...]:
        return SEEDS[: self.config.seeds] if self.config.seeds else task.seeds

    @property
    def scores_run(self) -> bool:
        """Whether these are the scores of the pretraining run, not of a checkpoint on its way."""
        if self.checkpoint.run is None:
            return False
        run = records.read_record(self.checkpoint.run)
        return run["status"] == "finished" and self.checkpoint.batch in (None, run.get("batches"))


def glue(config: GlueConfig) -> dict[str, Any]:
    """Fine-tune and score one checkpoint; returns the record that it also writes, whose `glue` holds the scores.

    Raises:
        UserError: before anything is written, for whatever cannot work; later, where a loss runs away.
    """
    plan = make_plan(config)
    found = find_record(plan)
    if found is not None and found["status"] == "finished":
        print(f"{plan.out} holds these scores already; nothing to do", flush=True)
        return publish(plan, found)
    read = {task.name: read_task(config.data, task, config.max_train_examples) for task in plan.tasks}
    record = start_record(plan, read)
    mnli: dict[str, Tensor] | None = None
    for name, data in read.items():
        train, dev = encode_task(plan, data)
        describe(record, data, train, dev, "mnli" if data.task.from_mnli and mnli else "pretrained")
        for seed in plan.seeds(data.task):
            start = mnli if data.task.from_mnli else None
            outcome, weights = run_job(plan, data, seed, train, dev, start)
            if name == "MNLI" and mnli is None and config.from_mnli:
                mnli = weights
            add_run(plan, record, data, seed, dev, outcome)
            records.write_record(plan.out, record)
    record["status"] = "finished"
    records.write_record(plan.out, record)
    return publish(plan, record)


def make_plan(config: GlueConfig) -> Plan:
    """Check the config against the checkpoint, the data and the machine."""
    if dist.get_world_size() > 1:
        raise UserError(f"fine-tuning runs on one device, not {dist.get_world_size()} ranks; start it with python -m")
    check_numbers(config)
    hardware = find_hardware(config.device, config.precision, ranks=1)
    price = prices.price_of(hardware.name, hardware.kind, config.cost.prices, config.cost.usd_per_hour)
    tasks, absent = choose_tasks(config.data, config.tasks)
    checkpoint = find_checkpoint(config.checkpoint)
    limit = checkpoint.max_length
    if limit is not None and config.max_length > limit:
        raise UserError(
            f"max_length={config.max_length}, but the model has {limit} position embeddings; set max_length={limit}"
        )
    out = choose_folder(config, checkpoint)
    return Plan(config, checkpoint, out, tasks, absent, hardware, checkpoint.resolve_backends(hardware), price)


def check_numbers(config: GlueConfig) -> None:
    if config.max_length < 8:
        raise UserError(f"max_length={config.max_length}: two sentences, [CLS] and two [SEP] need more; set at least 8")
    if not 0 <= config.seeds <= len(SEEDS):
        raise UserError(f"seeds={config.seeds}: give 1 to {len(SEEDS)}, or 0 for each task's own")
    if config.epochs is not None and config.epochs <= 0:
        raise UserError(f"epochs={config.epochs}: give a number above 0, or leave it out for each task's own")
    if config.max_train_examples < 0:
        raise UserError(f"max_train_examples={config.max_train_examples}: give a number of examples, or 0 for all")
    if config.lr_scale <= 0:
        raise UserError(f"lr_scale={config.lr_scale}: give a factor above 0")


def choose_folder(config: GlueConfig, checkpoint: Checkpoint) -> Path:
    """`out`, or a folder inside the pretraining run's."""
    if config.out is not None:
        return Path(config.out)
    if checkpoint.run is None:
        raise UserError(f"checkpoint={config.checkpoint} belongs to no run of this project; say where with out=FOLDER")
    return checkpoint.run / ("glue" if checkpoint.batch is None else f"glue-ba{checkpoint.batch}")


def find_record(plan: Plan) -> dict[str, Any] | None:
    """The record that the output folder holds of this very run; a folder that holds another is refused."""
    if not plan.out.exists():
        return None
    if plan.out.is_file():
        raise UserError(f"out={plan.out} is a file; choose a folder")
    if not (plan.out / records.FILE_NAME).is_file():
        if any(plan.out.iterdir()):
            raise UserError(f"out={plan.out} is not empty and holds no scores; choose another folder")
        return None
    record = records.read_record(plan.out)
    if record["kind"] != "glue":
        raise UserError(f"out={plan.out} holds a run of kind `{record['kind']}`; choose another folder")
    now = to_dict(plan.config)
    for key in now:
        if key != "out" and record["config"].get(key) != now[key]:
            raise UserError(
                f"out={plan.out} holds scores with {key}={record['config'].get(key)}, and now {key}={now[key]}; "
                "choose another folder with out=..., or remove that one"
            )
    if record["status"] != "finished":
        print(f"{plan.out} holds the beginning of this run; it starts anew", flush=True)
    return record


def start_record(plan: Plan, read: dict[str, TaskData]) -> dict[str, Any]:
    """The record with no score yet; the model is built once before, so that weights that do not fit fail first."""
    config, hardware = plan.config, plan.hardware
    model = plan.checkpoint.classifier(next(iter(read.values())).outputs, plan.backends)
    record = records.new_record(
        kind="glue",
        name=plan.checkpoint.name,
        model=plan.checkpoint.model,
        config=to_dict(config),
        device=records.device(hardware.kind, hardware.name, hardware.count, plan.price),
        backends={key: dataclasses.asdict(getattr(plan.backends, key)) for key in ("attention", "kernels")},
        parameters=sum(p.numel() for p in model.parameters()),
    )
    record["precision"] = str(hardware.activation_dtype).removeprefix("torch.")
    benchmark = plan.tasks[0].benchmark
    record["glue"] = {
        "benchmark": benchmark,
        "protocol": {
            "convention": CONVENTION,
            "max_length": config.max_length,
            "seeds": f"{config.seeds} a task" if config.seeds else "the table's",
            "epochs": "the table's" if config.epochs is None else config.epochs,
            "max_train_examples": config.max_train_examples,
            "lr_scale": config.lr_scale,
            "from_mnli": config.from_mnli,
        },
        "tasks": {},
        "absent": plan.absent,
        "score": None,
        "of": sum(task.benchmark == benchmark for task in TASKS),
        "cost": prices.bill(0.0, hardware.count, plan.price, hardware.kind),
    }
    say_start(plan, record)
    records.write_record(plan.out, record)
    return record


def encode_task(plan: Plan, data: TaskData) -> tuple[EncodedExamples, dict[str, EncodedExamples]]:
    tokenizer, length = plan.checkpoint.tokenizer, plan.config.max_length
    return encode(tokenizer, data.train, length), {
        name: encode(tokenizer, dev, length) for name, dev in data.dev.items()
    }


def describe(
    record: dict[str, Any], data: TaskData, train: EncodedExamples, dev: dict[str, EncodedExamples], init: str
) -> None:
    """Begin a task's entry: what it is trained and scored on, and what was cut or left out."""
    record["glue"]["tasks"][data.task.name] = {
        "score": None,
        "metrics": {},
        "std": None,
        "init": init,
        "runs": [],
        "train_examples": len(train),
        "dev_examples": sum(len(examples) for examples in dev.values()),
        "truncated_examples": train.truncated + sum(examples.truncated for examples in dev.values()),
        "torn_rows": data.torn_rows,
    }
    if data.torn_rows:
        print(f"{data.task.name}: {data.torn_rows} torn lines of train.tsv left out", flush=True)


def run_job(
    plan: Plan,
    data: TaskData,
    seed: int,
    train: EncodedExamples,
    dev: dict[str, EncodedExamples],
    mnli: dict[str, Tensor] | None,
) -> tuple[Outcome, dict[str, Tensor]]:
    """One task with one seed; also the fine-tuned weights, all but the classifier's."""
    config, task, checkpoint = plan.config, data.task, plan.checkpoint
    reproducibility.seed_all(seed)
    model = checkpoint.classifier(data.outputs, plan.backends)
    if mnli is not None:
        unmatched = model.load_state_dict(mnli, strict=False)
        assert not unmatched.unexpected_keys and all(is_classifier(key) for key in unmatched.missing_keys)
    job = Job(
        name=f"{task.name}, seed {seed}",
        lr=task.lr * config.lr_scale,
        weight_decay=task.weight_decay * config.lr_scale,
        epochs=task.epochs if config.epochs is None else config.epochs,
        batch_size=task.batch_size,
        seed=seed,
    )

    def collate(examples: EncodedExamples):
        if checkpoint.model == "mosaic_bert":
            return examples.stream
        return partial(examples.padded, pad_id=checkpoint.pad_id)

    outcome = fine_tune(model, job, train, dev, collate, plan.hardware)
    weights = {key: value.detach().cpu() for key, value in model.state_dict().items() if not is_classifier(key)}
    return outcome, weights


def is_classifier(parameter: str) -> bool:
    return "classifier" in parameter.split(".")


def add_run(
    plan: Plan, record: dict[str, Any], data: TaskData, seed: int, dev: dict[str, EncodedExamples], outcome: Outcome
) -> None:
    """Bring one job into the record: its metrics, the means over the seeds so far, the score so far, the bill."""
    metrics = {}
    for split, examples in dev.items():
        suffix = split.removeprefix("dev")  # "", or "_matched" and "_mismatched"
        found = measure(data.task.metrics, examples.labels, outcome.logits[split])
        metrics |= {name + suffix: value for name, value in found.items()}
    run = {"seed": seed, "score": statistics.fmean(metrics.values()), "metrics": metrics}
    run |= {"seconds": outcome.seconds, "tokens": outcome.tokens}
    entry = record["glue"]["tasks"][data.task.name]
    entry["runs"].append(run)
    scores = [run["score"] for run in entry["runs"]]
    entry["score"] = statistics.fmean(scores)
    entry["std"] = statistics.stdev(scores) if len(scores) > 1 else None
    entry["metrics"] = {name: statistics.fmean(run["metrics"][name] for run in entry["runs"]) for name in metrics}
    record["glue"]["score"] = statistics.fmean(task["score"] for task in record["glue"]["tasks"].values())
    for key in ("tokens", "sequences", "batches"):
        record[key] += getattr(outcome, key)
    seconds = record["cost"]["seconds"] + outcome.seconds
    record["cost"] = prices.bill(seconds, plan.hardware.count, plan.price, plan.hardware.kind)
    record["glue"]["cost"] = record["cost"]
    values = ", ".join(f"{name} {value:.2f}" for name, value in metrics.items())
    rate = outcome.tokens / outcome.seconds
    print(
        f"{data.task.name:<10} seed {seed:<6} {values}  ({outcome.seconds:.1f} s, {outcome.batches:,} batches, "
        f"{rate:,.0f} tokens/s, from {entry['init']})",
        flush=True,
    )


def publish(plan: Plan, record: dict[str, Any]) -> dict[str, Any]:
    """Print the table, and bring the scores into the record of the pretraining run."""
    print("\n".join(table(record["glue"])), flush=True)
    run = plan.checkpoint.run
    if run is None:
        return record
    if not plan.scores_run:
        print(f"not the final encoder of {run}, so its {records.FILE_NAME} stays as it is; see {plan.out}", flush=True)
        return record
    pretraining = records.read_record(run)
    if pretraining["glue"] not in (None, record["glue"]):
        print(f"{run / records.FILE_NAME}: these scores replace earlier ones", flush=True)
    pretraining["glue"] = record["glue"]
    print(f"scores in {records.write_record(run, pretraining)}", flush=True)
    return record


def table(glue: dict[str, Any]) -> list[str]:
    """The scores as lines of text."""
    rows = [("task", "score", "std", "n", "start", "metrics")]
    for name, task in glue["tasks"].items():
        std = "-" if task["std"] is None else f"{task['std']:.2f}"
        metrics = ", ".join(f"{metric} {value:.2f}" for metric, value in task["metrics"].items())
        rows.append((name, f"{task['score']:.2f}", std, str(len(task["runs"])), task["init"], metrics))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    present, bill = f"{len(glue['tasks'])} of {glue['of']} {glue['benchmark']} tasks", glue["cost"]
    return [
        "",
        *lines,
        f"score {glue['score']:.2f} ({CONVENTION}; {present}{absence(glue['absent'])})",
        f"{bill['seconds']:,.0f} s, {bill['device_hours']:.3f} device-hours, ${bill['usd']:.4f}",
    ]


def absence(names: list[str]) -> str:
    return f"; absent: {', '.join(names)}" if names else ""


def say_start(plan: Plan, record: dict[str, Any]) -> None:
    hardware = plan.hardware
    unit = "GPU" if hardware.kind == "gpu" else "cores"
    millions = record["parameters"] / 1e6
    lines = [
        f"{plan.checkpoint.name}: {plan.checkpoint.model}, {millions:.1f} M parameters -> {plan.out}",
        f"  on {hardware.count} {unit}, {hardware.name}, {record['precision']}; "
        f"${plan.price.usd_per_hour} an hour of one ({plan.price.source})",
        *(f"  {key}: {choice['name']} ({choice['why']})" for key, choice in record["backends"].items()),
        "  tasks: " + ", ".join(task.name for task in plan.tasks) + absence(plan.absent),
    ]
    print("\n".join(lines), flush=True)


def main(config: GlueConfig) -> None:
    """The entry point's own part: a clean terminal, then `glue`."""
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    glue(config)


if __name__ == "__main__":
    raise SystemExit(run_main(GlueConfig, main))
