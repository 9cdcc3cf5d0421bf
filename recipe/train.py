"""`python -m recipe.train YAML [key=value ...]`: shards to an encoder, its loss curve and its bill.

Also under `composer -n 2 -m recipe.train YAML ...` and `torchrun --nproc-per-node 2 -m recipe.train YAML ...`.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from composer import Callback, Evaluator, Event, State, Trainer
from composer.core import DataSpec
from composer.utils import dist, reproducibility
from torch import nn

from kernels import backends
from kernels.cpu.memory import keep_freed_memory
from recipe import convert
from recipe.config import TrainConfig, run_main, to_dict
from recipe.cost import prices, records
from recipe.data.batch import Batch, count_sequences, count_tokens, split_batch
from recipe.data.shard_files import check_files
from recipe.data.shards import DatasetInfo, read_info
from recipe.data.stream import check_vocabulary, free_shared_memory, open_loader
from recipe.errors import UserError
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.model.encoder import Backends
from recipe.model.flops import training_flops
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.huggingface import HFBertForMaskedLM
from recipe.training import memory
from recipe.training.callbacks import Meter, Progress, RandomStateOnResume, Sums, clock, say
from recipe.training.checks import batching_of, check_numbers, parse_time, planned_documents
from recipe.training.composer_model import MaskedLM
from recipe.training.hardware import Hardware, find_hardware, measured_cpu_peak
from recipe.training.optimizer import build_optimizer
from recipe.training.quiet import quiet_libraries
from recipe.training.schedule import build_schedule

MODELS = ("mosaic_bert", "hf_bert")
MAY_CHANGE_ON_RESUME = (
    "autoresume",
    "log_every",
    "eval_every",
    "checkpoint_every",
    "checkpoint_at",
    "keep_checkpoints",
    "cost",
    "device",
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked, with nothing written yet."""

    config: TrainConfig
    info: DatasetInfo
    hardware: Hardware
    price: prices.Price
    encoder: EncoderConfig
    backends: Backends
    ranks: int
    resumes: bool  # from a checkpoint in the output folder

    @property
    def out(self) -> Path:
        return Path(self.config.out)


def train(config: TrainConfig, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Pretrain one encoder and return its record, which is also `run.json` in the output folder.

    Raises:
        UserError: before anything is written, for whatever cannot work.
    """
    plan = make_plan(config)
    if plan.resumes and (record := records.read_record(plan.out))["status"] == "finished":
        say(f"{plan.out} is finished already; nothing to do")
        return record
    dist.initialize_dist("gpu" if plan.hardware.kind == "gpu" else "cpu")
    dist.barrier()  # no rank writes before every rank has checked
    reproducibility.seed_all(config.seed)
    model = build_model(plan)
    record = start_record(plan, model)
    hardware = with_measured_peak(plan.hardware)
    meter = Meter(hardware, plan.price, lambda sums: step_flops(plan, sums), config.log_every, keep(plan, record))
    trainer = build_trainer(plan, model, [meter, *callbacks])
    say_start(plan, record, hardware)
    try:
        trainer.fit()
        finish(plan, model, record, meter.progress)
    finally:
        trainer.close()
    return record


def make_plan(config: TrainConfig) -> Plan:
    """Check the config against the machine, the shards and the output folder."""
    ranks = dist.get_world_size()
    hardware = find_hardware(config.device, config.precision, ranks)
    info = read_info(config.data.path)
    for split in (config.data.train_split, config.data.eval_split):
        info.split(split)
        check_files(config.data.path, split)
    check_vocabulary(config.data.path, info)
    check_numbers(config, info, ranks)
    encoder = encoder_config(config, info)
    chosen = resolve_backends(config, encoder, hardware)
    price = prices.price_of(hardware.name, hardware.kind, config.cost.prices, config.cost.usd_per_hour)
    check_memory(config, encoder, hardware, ranks)
    return Plan(config, info, hardware, price, encoder, chosen, ranks, resumes(config))


def check_memory(config: TrainConfig, encoder: EncoderConfig, hardware: Hardware, ranks: int) -> None:
    """The largest microbatch fits, or is refused before anything is written."""
    capacity = memory.capacity_here(hardware.kind, ranks)
    if capacity is None:
        return
    data, model = config.data, config.model.name
    need = memory.training_need(model, encoder, data.sequence_length, data.mask_rate, hardware.autocast, ranks)
    memory.check_fits(need, microbatch_of(config, ranks), capacity, hardware.name)


def microbatch_of(config: TrainConfig, ranks: int) -> int:
    a_rank = config.batch_size // ranks
    return min(config.microbatch_size or a_rank, a_rank)


def encoder_config(config: TrainConfig, info: DatasetInfo) -> EncoderConfig:
    model = config.model
    if model.name not in MODELS:
        raise UserError(f"model.name={model.name}: known are {', '.join(MODELS)}")
    if model.vocab_size is not None and model.vocab_size != info.vocabulary.size:
        raise UserError(
            f"model.vocab_size={model.vocab_size}, but the shards in {config.data.path} were made with a vocabulary of "
            f"{info.vocabulary.size}; leave the key out, or prepare the shards again with the other vocabulary"
        )
    shared = {f.name for f in dataclasses.fields(EncoderConfig)} & {f.name for f in dataclasses.fields(model)}
    values = {name: getattr(model, name) for name in shared}
    try:
        return EncoderConfig(**{**values, "vocab_size": padded_vocab_size(info.vocabulary.size)})
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def resolve_backends(config: TrainConfig, encoder: EncoderConfig, hardware: Hardware) -> Backends:
    if config.model.name == "hf_bert":
        for key in ("attention", "kernels"):
            if getattr(config.model, key) != "auto":
                raise UserError(f"model.{key}: hf_bert runs on Hugging Face's own code; leave the key out")
        return Backends(*[backends.Resolved("transformers", "Hugging Face's own BERT, attention by torch SDPA")] * 2)
    needs = backends.Requirements(
        hardware.device, hardware.activation_dtype, encoder.head_dim, encoder.attention_probs_dropout_prob
    )
    try:
        return Backends(
            backends.resolve("attention", config.model.attention, needs),
            backends.resolve("kernels", config.model.kernels, needs),
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def resumes(config: TrainConfig) -> bool:
    """Whether the output folder holds this very run; a folder that holds another is refused."""
    out = Path(config.out)
    if not out.exists() or not any(out.iterdir()):
        return False
    if not (out / records.FILE_NAME).is_file():
        raise UserError(f"out={out} is not empty and holds no run; choose another folder")
    if not config.autoresume:
        raise UserError(f"out={out} holds a run already; choose another folder, or continue it with autoresume=true")
    before, now = records.read_record(out)["config"], to_dict(config)
    for key in now:
        if key not in MAY_CHANGE_ON_RESUME and before.get(key) != now[key]:
            raise UserError(
                f"out={out} holds a run with {key}={before.get(key)}, and now {key}={now[key]}; "
                "resume with the same settings, or choose another folder"
            )
    return True


def build_model(plan: Plan) -> nn.Module:
    if plan.config.model.name == "hf_bert":
        return HFBertForMaskedLM(plan.encoder, plan.config.data.sequence_length)
    return MosaicBertForMaskedLM(plan.encoder, plan.backends)


def with_measured_peak(hardware: Hardware) -> Hardware:
    """A CPU's ceiling is measured: all ranks at once, each on its own threads."""
    if hardware.kind == "gpu":
        return hardware
    peak = torch.tensor(measured_cpu_peak(hardware.autocast))
    dist.all_reduce(peak)
    return dataclasses.replace(hardware, peak_flops=float(peak))


def step_flops(plan: Plan, sums: Sums) -> float:
    baseline = plan.config.model.name == "hf_bert"
    predicted = sums.tokens if baseline else sums.masked
    sizes = dataclasses.asdict(plan.encoder)
    return training_flops(sizes, not baseline, sums.tokens, sums.squared_lengths, predicted)


def build_trainer(plan: Plan, model: nn.Module, callbacks: Sequence[Callback]) -> Trainer:
    config, gpu = plan.config, plan.hardware.kind == "gpu"
    a_rank, microbatch = config.batch_size // plan.ranks, microbatch_of(config, plan.ranks)
    optimizer_model = MaskedLM(model, plan.hardware.device, plan.hardware.autocast)
    random_state = RandomStateOnResume()
    trainer = Trainer(
        model=optimizer_model,
        optimizers=build_optimizer(model, config.optimizer),
        schedulers=build_schedule(config.schedule),
        train_dataloader=data_spec(plan, train=True, batch_size=a_rank),
        eval_dataloader=evaluator(plan, microbatch),
        eval_interval=interval(config, config.eval_every),
        max_duration=config.duration,
        device_train_microbatch_size=microbatch,
        accumulate_train_batch_on_tokens=True,
        device="gpu" if gpu else "cpu",
        precision="fp32",  # Composer's own; the model brings its autocast, on a CPU too
        seed=config.seed,
        run_name=plan.out.name,
        save_folder=str(plan.out / "checkpoints"),
        save_filename="ba{batch}-rank{rank}.pt",
        save_latest_filename="latest-rank{rank}.pt",
        save_interval=save_interval(config),
        save_num_checkpoints_to_keep=config.keep_checkpoints,
        autoresume=plan.resumes,
        callbacks=[*callbacks, random_state],
        progress_bar=False,
    )
    random_state.saved = trainer._rng_state  # Composer offers no public way to it
    return trainer


def interval(config: TrainConfig, every: str) -> str:
    """What Composer calls it; "at the end only" is 1dur, or the duration where Composer is not told how long an epoch is."""
    if parse_time("", every).value:
        return every
    return config.duration if batching_of(config) == "tokens" else "1dur"


def save_interval(config: TrainConfig) -> str | Callable[[State, Event], bool]:
    """When Composer writes a checkpoint; at the end it does so in any case."""
    if not config.checkpoint_at:
        return interval(config, config.checkpoint_every)
    at = set(config.checkpoint_at)

    def is_time(state: State, event: Event) -> bool:
        over = float(state.get_elapsed_duration() or 0) >= 1
        return over or (event == Event.BATCH_CHECKPOINT and state.timestamp.batch.value in at)

    return is_time


def data_spec(plan: Plan, train: bool, batch_size: int) -> DataSpec:
    config, gpu = plan.config, plan.hardware.kind == "gpu"
    workers = config.data.workers if config.data.workers >= 0 else 8 * gpu
    loader = open_loader(
        config.data,
        plan.info,
        train=train,
        batch_size=batch_size,
        seed=config.seed,
        batching=batching_of(config),
        workers=workers,
        run_documents=planned_documents(config, plan.info) if config.data.mask_rate_end is not None else None,
    )
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=count_sequences,
        get_num_tokens_in_batch=batch_weight,
    )


def batch_weight(batch: Batch) -> dict[str, float]:
    """What Composer weighs a microbatch's loss by. One of short documents may have no masked token, and a whole batch of
    such ones would divide by zero."""
    counts = count_tokens(batch)
    return {**counts, "loss_generating": max(counts["loss_generating"], 1e-9)}


def evaluator(plan: Plan, batch_size: int) -> Evaluator:
    wanted = plan.config.data.eval_documents
    return Evaluator(
        label="eval",
        dataloader=data_spec(plan, train=False, batch_size=batch_size),
        metric_names=["loss", "masked_accuracy"],
        subset_num_batches=-(-wanted // (batch_size * plan.ranks)) if wanted else -1,
        device_eval_microbatch_size=batch_size,
    )


def start_record(plan: Plan, model: nn.Module) -> dict[str, Any]:
    """The record of this run, or of the one that it continues; on rank 0 also on disk."""
    if plan.resumes:
        record = records.read_record(plan.out)
        record["resumed"] = [*record.get("resumed", []), records.provenance()]
    else:
        hardware = plan.hardware
        record = records.new_record(
            kind="pretrain",
            name=plan.out.name,
            model=plan.config.model.name,
            config=to_dict(plan.config),
            device=records.device(hardware.kind, hardware.name, hardware.count, plan.price),
            backends={key: dataclasses.asdict(getattr(plan.backends, key)) for key in ("attention", "kernels")},
            parameters=sum(p.numel() for p in model.parameters()),
        )
        record["encoder"] = dataclasses.asdict(plan.encoder)
        record["precision"] = str(hardware.activation_dtype).removeprefix("torch.")
    if dist.get_global_rank() == 0:
        records.write_record(plan.out, record)
        describe_encoder(plan, model)
    return record


def describe_encoder(plan: Plan, model: nn.Module) -> None:
    """Sizes and tokenizer into `encoder/` at the start, so that a checkpoint can be scored before the run is over."""
    folder = plan.out / "encoder"
    shutil.copytree(Path(plan.config.data.path) / "tokenizer", folder, dirs_exist_ok=True)
    if isinstance(model, HFBertForMaskedLM):
        model.save_config(folder)
    else:
        plan.encoder.save(folder)


def keep(plan: Plan, record: dict[str, Any]):
    """A function that brings a run's progress into its record and, on rank 0, onto disk."""

    def on_line(progress: Progress) -> None:
        total = progress.total
        record["cost"] = prices.bill(total.seconds, plan.hardware.count, plan.price, plan.hardware.kind)
        record.update({name: getattr(total, name) for name in ("tokens", "sequences", "batches")})
        record["loss_curve"], record["eval_curve"] = progress.loss_curve, progress.eval_curve
        record["eval"] = progress.eval_curve[-1] if progress.eval_curve else None
        if dist.get_global_rank() == 0:
            records.write_record(plan.out, record)

    return on_line


def finish(plan: Plan, model: nn.Module, record: dict[str, Any], progress: Progress) -> None:
    """Write the encoder, then the record, and say both."""
    if dist.get_global_rank() == 0:
        folder = plan.out / "encoder"
        if isinstance(model, HFBertForMaskedLM):
            model.save(folder)
        else:
            convert.save_encoder(model, plan.encoder, folder)
    record["status"] = "finished"
    keep(plan, record)(progress)
    result, cost = record["eval"], record["cost"]
    say(
        f"{plan.out}: evaluation loss {result['loss']:.3f}, accuracy {result['masked_accuracy']:.3f} at "
        f"{plan.config.data.eval_mask_rate:.0%} masking; {record['tokens']:,} tokens in {clock(cost['seconds'])}, "
        f"${cost['usd']:.4f}"
    )


def say_start(plan: Plan, record: dict[str, Any], hardware: Hardware) -> None:
    peak = f"{hardware.peak_flops / 1e12:.3g} TFLOP/s" if hardware.peak_flops else "unknown peak, so no MFU"
    of_peak = "measured matmul" if hardware.kind == "cpu" else "data sheet"
    unit = "GPUs" if hardware.kind == "gpu" else "cores"
    say(f"{plan.config.model.name}, {record['parameters'] / 1e6:.1f} M parameters -> {plan.out}")
    say(f"  on {hardware.count} {unit}, {hardware.name}, {record['precision']}, {peak} ({of_peak})")
    for kind in ("attention", "kernels"):
        choice = getattr(plan.backends, kind)
        say(f"  {kind}: {choice.name} ({choice.why})")
    split = plan.info.split(plan.config.data.train_split)
    say(
        f"  {split.documents:,} documents, {split.tokens:,} tokens in {plan.config.data.path}; ${plan.price.usd_per_hour}"
        f" an hour a {unit[:-1]} ({plan.price.source})"
    )


def main(config: TrainConfig) -> None:
    """The entry point's own part: a clean terminal, no leftovers of a killed run, then `train`."""
    quiet_libraries()
    free_shared_memory()
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()
    train(config)


if __name__ == "__main__":
    raise SystemExit(run_main(TrainConfig, main))
