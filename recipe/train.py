"""`python -m recipe.train YAML [key=value ...]`: shards to an encoder, its loss curve and its bill.

Also under `composer -n 2 -m recipe.train YAML ...` and `torchrun --nproc-per-node 2 -m recipe.train YAML ...`.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Callback, Evaluator, Event, State
from composer.core import DataSpec
from composer.loggers import LoggerDestination
from composer.utils import dist, reproducibility
from torch import nn

from recipe import convert, records
from recipe.config import TrainConfig, run_main, to_dict
from recipe.cost import prices
from recipe.data import storage
from recipe.data.batch import Batch, count_sequences, count_tokens, split_batch
from recipe.data.cache import local_folder
from recipe.data.masking import evenly
from recipe.data.shards import index_digest
from recipe.data.stream import open_documents, open_loader
from recipe.errors import UserError, end
from recipe.objectives.objective import Counts
from recipe.system.files import remove_drafts
from recipe.system.hardware import Hardware, find_hardware, keep_freed_memory
from recipe.system.progress import clock
from recipe.system.quiet import quiet_libraries
from recipe.training import ceilings, checkpoint_files, initial_words, memory, nodes, pulse
from recipe.training.averaging import Averaging
from recipe.training.callbacks import Meter, Progress, RandomStateOnResume, Sums, limit_of, loss_words, say
from recipe.training.checkpoint_store import Storing
from recipe.training.checks import parse_time, progress_by_documents
from recipe.training.compiled import compiled_step
from recipe.training.composer_model import Pretraining
from recipe.training.initial_words import RANDOM
from recipe.training.loggers import build_loggers
from recipe.training.optimizers import build_optimizer
from recipe.training.parallel import PARALLEL
from recipe.training.preflight import Plan, make_plan
from recipe.training.rates import Rate
from recipe.training.resume import drop_brought, last_checkpoint
from recipe.training.schedules import fallen
from recipe.training.start_lines import say_start
from recipe.training.stopping import Stopping
from recipe.training.trainer import OnDevice, Trainer, join_ranks


@nodes.all_ranks()
def train(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Pretrain one encoder and return its record, which is also `run.json` in the output folder.

    `callbacks` are Composer's, beside the run's own.

    Raises:
        UserError: before anything is written, for whatever cannot work; later, if memory runs out or another rank is gone.
        Stopped: behind a checkpoint, for a run that was told to end.
    """
    join_ranks(find_hardware(config.device, config.precision, dist.get_world_size()).kind)
    plan = make_plan(config)
    if plan.run and plan.run.held.finished:
        say(f"{plan.out}{plan.run.where} is finished already; nothing to do")
        return plan.run.record
    if plan.hardware.kind == "cpu":
        keep_freed_memory()
    plan = agreed(plan)  # no rank writes before every rank has checked
    reproducibility.seed_all(plan.config.seed)
    model = build_model(plan)
    with nodes.owned(plan.out, plan.resumes):
        return fit(plan, model, callbacks)


def fit(plan: Plan, model: nn.Module, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Train as planned, into the run's folder, which is this command's alone."""
    config = plan.config
    record, checkpoint = start_record(plan, model), last_checkpoint(config, plan.run)
    hardware = with_measured_peak(plan.hardware)
    meter = Meter(
        hardware,
        plan.price,
        lambda sums: step_flops(plan, sums),
        config.log_every,
        keep(plan, record),
        plan.objective.metrics,
    )
    say_start(plan, record, hardware)
    if plan.config.model.initial_words != RANDOM and checkpoint is None:
        record["initial_words"] = begin_words(plan, model, meter.progress.total)
    averaging = Averaging(model, config.average, plan.batches) if config.average.steps else None
    store = store_of(plan, record, meter)
    logs = build_loggers(config.loggers, plan.out, record)
    trainer = build_trainer(plan, model, checkpoint, [meter, *filter(None, [averaging, store]), *callbacks], logs)
    if checkpoint:
        drop_brought(plan.out)
    for log in logs:
        say(f"  log: {log.where}")
    try:
        with trainer:
            trainer.wait_at_most(config.rank_timeout)
            with pulse.watched():
                trainer.fit()
            if averaging:
                record["averaged_batches"] = averaging.count
            finish(plan, model, record, meter.progress)
    except RuntimeError as error:
        if not memory.out_of_memory(error):
            raise
        raise UserError(memory.explain(error, plan.microbatch, hardware.name)) from None
    return record


def agreed(plan: Plan) -> Plan:
    """With the smallest microbatch of each stage that any rank chose: their devices may have more or less memory free."""
    sizes = torch.tensor([one.size for one in plan.microbatches], device=plan.hardware.device)
    dist.all_reduce(sizes, reduce_operation="MIN")
    chosen = zip(plan.microbatches, sizes.tolist(), strict=True)
    return dataclasses.replace(plan, microbatches=tuple(dataclasses.replace(one, size=size) for one, size in chosen))


def store_of(plan: Plan, record: dict[str, Any], meter: Meter) -> Storing | None:
    """What uploads the run's checkpoints, where a store is to have them."""
    if not plan.config.save_folder:
        return None
    return Storing(plan.config.save_folder, plan.run.saved if plan.run else [], plan.out, record, meter.leave_out)


def build_model(plan: Plan) -> nn.Module:
    model = plan.objective.model(plan.architecture, plan.encoder, plan.positions, plan.backends)
    if plan.start:
        kept = plan.objective.kept(model)
        own = {name: tensor for name, tensor in kept.state_dict().items() if name in plan.start.new}
        convert.load_weights(kept, plan.start.weights | own, f"init_from={plan.config.init_from}")
    return model


def begin_words(plan: Plan, model: nn.Module, total: Sums) -> dict[str, Any]:
    """Word embeddings and bias from counts of the text, which rank 0 makes; their seconds are the run's first. For the record."""
    config, started = plan.config, time.perf_counter()
    kept = plan.objective.kept(model)
    documents = open_documents(config.data, plan.info, config.data.train_split)
    words = nodes.decided(lambda: initial_words.learn(config, documents, plan.encoder, plan.info.vocabulary.size))
    initial_words.put(kept, plan.architecture.vocabulary_rows, words)
    took = time.perf_counter() - started
    total.add(Sums(seconds=took, device_seconds=took * plan.hardware.count))
    say(f"  words begin at {config.model.initial_words} of {words.tokens:,} tokens, made in {clock(total.seconds)}")
    return {"tokens": words.tokens, "seconds": total.seconds}


def with_measured_peak(hardware: Hardware) -> Hardware:
    """A CPU's ceiling is measured: all ranks at once, each on its own threads."""
    if hardware.kind == "gpu":
        return hardware
    peak = torch.tensor(ceilings.matmul_flops("cpu", hardware.activation_dtype))
    dist.all_reduce(peak)
    return dataclasses.replace(hardware, peak_flops=float(peak))


def step_flops(plan: Plan, sums: Sums) -> float:
    counts = Counts(sums.tokens, sums.squared_lengths, sums.masked)
    return plan.objective.flops(plan.architecture, dataclasses.asdict(plan.encoder), counts)


def wrapped(plan: Plan, model: nn.Module) -> Pretraining:
    """The model as the trainer wants it, its training loss compiled where that is asked for."""
    compiled = compiled_step(model, plan.packed) if plan.config.model.compile else None
    return Pretraining(model, plan.hardware.device, plan.hardware.autocast, plan.objective.metrics, compiled)


def build_trainer(
    plan: Plan,
    model: nn.Module,
    checkpoint: Path | None,
    callbacks: Sequence[Callback],
    loggers: Sequence[LoggerDestination] = (),
) -> Trainer:
    config, gpu = plan.config, plan.hardware.kind == "gpu"
    random_state, stopping = RandomStateOnResume(), Stopping()
    trainer = PARALLEL[config.parallel].trainer(
        count_tokens=batch_weight,
        stopping=stopping,
        model=wrapped(plan, model),
        optimizers=build_optimizer(model, config.optimizer, plan.hardware.activation_dtype),
        schedulers=Rate(config.schedule),
        train_dataloader=data_spec(plan, train=True, batch_size=config.batch_size // plan.ranks),
        eval_dataloader=evaluator(plan),
        eval_interval=interval(plan, config.eval_every),
        max_duration=config.duration,
        device_train_microbatch_size=plan.microbatch.size,
        accumulate_train_batch_on_tokens=True,
        device="gpu" if gpu else "cpu",
        precision="fp32",  # Composer's own; the model brings its autocast, on a CPU too
        seed=config.seed,
        run_name=plan.out.name,
        save_folder=str(plan.out / checkpoint_files.FOLDER),
        save_filename=checkpoint_files.SAVED,
        save_latest_filename=checkpoint_files.LATEST,
        save_interval=stopping.saves(save_interval(plan)),
        save_num_checkpoints_to_keep=config.keep_checkpoints,
        load_path=str(checkpoint) if checkpoint else None,
        callbacks=[*callbacks, random_state, stopping],
        loggers=loggers,
        progress_bar=False,
    )
    random_state.saved = trainer._rng_state  # Composer offers no public way to it
    if dist.get_global_rank() == 0:  # which alone writes; those of earlier starts count among what is kept
        trainer.saved_checkpoints.extend(map(str, reversed(checkpoint_files.later(plan.out, -1))))
    return trainer


def interval(plan: Plan, every: str) -> str:
    """What Composer calls it; "at the end only" is 1dur, or the duration where Composer is not told how long an epoch is."""
    if parse_time("", every).value:
        return every
    return plan.config.duration if plan.packed or len(plan.stages) > 1 else "1dur"


def save_interval(plan: Plan) -> str | Callable[[State, Event], bool]:
    """When Composer writes a checkpoint; at the end it does so in any case."""
    if not plan.config.checkpoint_at:
        return interval(plan, plan.config.checkpoint_every)
    at = set(plan.config.checkpoint_at)

    def is_time(state: State, event: Event) -> bool:
        over = float(state.get_elapsed_duration() or 0) >= 1
        return over or (event == Event.BATCH_CHECKPOINT and state.timestamp.batch.value in at)

    return is_time


def data_spec(plan: Plan, train: bool, batch_size: int) -> DataSpec:
    config, several = plan.config, train and len(plan.stages) > 1
    falls = {"evenly": evenly, "with_lr": partial(fallen, settings=config.schedule)}
    by_documents = partial(by_stages, *progress_by_documents(config), falls[config.data.mask_rate_falls])
    loader = open_loader(
        config.data,
        plan.info,
        train=train,
        batch_size=batch_size,
        seed=config.seed,
        batching=plan.batching,
        workers=plan.workers,
        run_documents=plan.run_documents,
        fallen=by_documents if several else falls[config.data.mask_rate_falls],
        collator=plan.objective.collator,
        stages=plan.stages if train else (),
    )
    return DataSpec(
        loader,
        split_batch=partial(split_of_stage, plan) if several else split_batch,
        get_num_samples_in_batch=count_sequences,
        get_num_tokens_in_batch=batch_weight,
    )


def by_stages(documents: list[float], duration: list[float], fall: Callable[[float], float], share: float) -> float:
    """`fall` where the run has seen this share of its documents; see `progress_by_documents`."""
    return fall(float(np.interp(share, documents, duration)))


def split_of_stage(plan: Plan, batch: Batch, _: int) -> list[Batch]:
    """A batch's microbatches, as large as its stage's."""
    rest = {name: value for name, value in batch.items() if name != "stage"}
    return split_batch(rest, plan.microbatches[batch["stage"]].size)


def batch_weight(batch: Batch) -> dict[str, float]:
    """What Composer weighs a microbatch's loss by. One of short documents may have no masked token, and a whole batch of
    such ones would divide by zero."""
    counts = batch.tokens if isinstance(batch, OnDevice) else count_tokens(batch)
    return {**counts, "loss_generating": max(counts["loss_generating"], 1e-9)}


def evaluator(plan: Plan) -> Evaluator:
    """What is evaluated does not depend on the memory: the microbatch only says how much of it at a time."""
    wanted, batch_size = plan.config.data.eval_documents, plan.config.batch_size // plan.ranks
    if wanted:
        batch_size = min(batch_size, -(-wanted // plan.ranks))
    return Evaluator(
        label="eval",
        dataloader=data_spec(plan, train=False, batch_size=batch_size),
        metric_names=list(plan.objective.metrics),
        subset_num_batches=-(-wanted // (batch_size * plan.ranks)) if wanted else -1,
        device_eval_microbatch_size=plan.microbatch.size,
    )


def start_record(plan: Plan, model: nn.Module) -> dict[str, Any]:
    """The record of this run, or of the one that it continues; on rank 0 also on disk."""
    if plan.run:
        record = plan.run.record
        record["resumed"] = [*record.get("resumed", []), records.provenance()]
    else:
        hardware = plan.hardware
        record = records.new_record(
            kind="pretrain",
            name=plan.out.name,
            model=plan.architecture.name,
            config=to_dict(plan.config),
            device=records.device(hardware.kind, hardware.name, hardware.count, plan.price),
            backends={key: dataclasses.asdict(getattr(plan.backends, key)) for key in ("attention", "kernels")},
            parameters=sum(p.numel() for p in model.parameters()),
        )
        record["encoder"] = dataclasses.asdict(plan.encoder)
        record["precision"] = str(hardware.activation_dtype).removeprefix("torch.")
    held_out = plan.info.split(plan.config.data.eval_split)
    record["dataset"] = records.dataset(plan.info.vocabulary.sha256, held_out.documents, held_out.tokens)
    splits = (plan.config.data.train_split, plan.config.data.eval_split)
    record["provenance"]["dataset_sha256"] = index_digest(local_folder(plan.config.data), splits)
    record["microbatch"] = dataclasses.asdict(plan.microbatch)
    if dist.get_global_rank() == 0:
        remove_drafts(plan.out, plan.out / "encoder", plan.out / checkpoint_files.FOLDER)  # of a run that was killed
        records.write_record(plan.out, record)
        describe_encoder(plan, model)
    return record


def describe_encoder(plan: Plan, model: nn.Module) -> None:
    """Sizes and tokenizer into `encoder/` at the start, so that a checkpoint can be scored before the run is over."""
    folder = plan.out / "encoder"
    shutil.copytree(plan.folder / "tokenizer", folder, dirs_exist_ok=True)
    plan.architecture.save_sizes(plan.objective.kept(model), folder)


def keep(plan: Plan, record: dict[str, Any]):
    """A function that brings a run's progress into its record and, on rank 0, onto disk."""

    def on_line(progress: Progress) -> None:
        total = progress.total
        record["cost"] = prices.bill(total.seconds, total.devices, plan.price, plan.hardware.kind)
        record.update({name: getattr(total, name) for name in ("tokens", "sequences", "batches")})
        record["waiting_for_data"] = limit_of(total)
        if storage.is_remote(plan.config.data.path):
            record["network"] = {name: getattr(total, f"network_{name}") for name in ("seconds", "retries", "bytes")}
        record["loss_curve"], record["eval_curve"] = progress.loss_curve, progress.eval_curve
        record["eval"] = progress.eval_curve[-1] if progress.eval_curve else None
        if dist.get_global_rank() == 0:
            records.write_record(plan.out, record)

    return on_line


def finish(plan: Plan, model: nn.Module, record: dict[str, Any], progress: Progress) -> None:
    """Write the encoder, then the record, and say both."""
    whole = PARALLEL[plan.config.parallel].whole(model, lambda: build_model(plan))
    if dist.get_global_rank() == 0:
        plan.architecture.save(plan.objective.kept(whole), plan.out / "encoder")
    record["status"] = "finished"
    keep(plan, record)(progress)
    said, cost = loss_words(record["eval"], plan.objective.metrics), record["cost"]
    say(
        f"{plan.out}: evaluation {said} at {plan.config.data.eval_mask_rate:.0%} masking; "
        f"{record['tokens']:,} tokens in {clock(cost['seconds'])}, ${cost['usd']:.4f}"
    )
    if "averaged_batches" in record:
        say(f"  evaluated and saved: the mean of the weights after {record['averaged_batches']:,} batches")
    if spent := record.get("network"):
        say(
            f"  network: {spent['bytes'] / 1e6:,.1f} MB in {clock(spent['seconds'])} of fetching beside training, "
            f"{spent['retries']:,} requests sent again"
        )
    limit = record["waiting_for_data"]
    if limit["limit"] == "loader":
        waited = f"{limit['waiting']:.1%} of the time went into waiting for the next batch"
        say(f"  the loader was the limit: {waited}; more data.workers may help")


def main(config: TrainConfig) -> None:
    """The entry point's own part: a clean terminal, no leftovers of a killed run, then `train`."""
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    train(config)


if __name__ == "__main__":
    end(lambda: run_main(TrainConfig, main))
