"""Everything that a training run needs, checked against the machine, the shards and the output folder before it writes."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch
from composer.utils import dist
from torch import Tensor

from kernels import backends
from recipe import convert, records
from recipe.config import TrainConfig, to_dict
from recipe.cost import prices
from recipe.data import storage
from recipe.data.batch import BIN_SEQUENCES
from recipe.data.cache import local_folder, open_dataset
from recipe.data.shard_files import check_files
from recipe.data.shards import DatasetInfo
from recipe.data.stream import check_vocabulary
from recipe.errors import UserError
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.model.encoder import Backends
from recipe.settings import as_word, what_changed
from recipe.system.hardware import Hardware, find_hardware
from recipe.training import checkpoint_files, memory
from recipe.training.checks import batching_of, check_numbers
from recipe.training.compiled import check_compiles
from recipe.training.loggers import check_loggers

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked, with nothing written yet."""

    config: TrainConfig
    info: DatasetInfo
    hardware: Hardware
    price: prices.Price
    encoder: EncoderConfig
    backends: Backends
    microbatch: memory.Microbatch
    weights: dict[str, Tensor] | None  # to start from
    ranks: int
    resumes: bool  # from a checkpoint in the output folder

    @property
    def out(self) -> Path:
        return Path(self.config.out)


def make_plan(config: TrainConfig) -> Plan:
    """Check the config against the machine, the shards and the output folder."""
    ranks = dist.get_world_size()
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_local_rank())  # whose memory is looked at, and not the first GPU's by every rank
    hardware = find_hardware(config.device, config.precision, ranks)
    splits = (config.data.train_split, config.data.eval_split)
    info, folder = open_dataset(config.data, splits), local_folder(config.data)
    for split in splits:
        check_files(folder, split, storage.is_remote(config.data.path))
    check_vocabulary(folder, info)
    check_numbers(config, info, ranks)
    check_loggers(config.loggers)
    encoder = encoder_config(config, info)
    chosen = resolve_backends(config, encoder, hardware)
    price = prices.price_of(hardware.name, hardware.kind, config.cost.prices, config.cost.usd_per_hour)
    microbatch = choose_microbatch(config, encoder, hardware, chosen, ranks)
    weights = initial_weights(config, encoder, info)
    if config.model.compile:
        check_compiles(chosen.attention.name, hardware.device)
    return Plan(config, info, hardware, price, encoder, chosen, microbatch, weights, ranks, resumes(config))


def choose_microbatch(
    config: TrainConfig, encoder: EncoderConfig, hardware: Hardware, chosen: Backends, ranks: int
) -> memory.Microbatch:
    """What each rank takes at a time: as set, or the largest that fits; refused where nothing does."""
    share, wanted = config.batch_size // ranks, config.microbatch_size
    capacity = memory.capacity_here(hardware.kind, ranks)
    if capacity is None:
        return memory.Microbatch(min(wanted or share, share), "the system does not say how much memory there is")
    data = config.data

    def choose(need: memory.Need) -> memory.Microbatch:
        return memory.choose_microbatch(
            need,
            share,
            wanted,
            capacity,
            hardware.kind,
            hardware.name,
            multiple=BIN_SEQUENCES if batching_of(config) == "tokens" else 1,
            most=memory.CPU_TOKENS // data.sequence_length if hardware.kind == "cpu" else 0,
        )

    traced = memory.traced(chosen.attention.name, chosen.kernels.name)
    of_step = (config.model.name, encoder, data.sequence_length, data.mask_rate, hardware.autocast, ranks, traced)
    return choose(memory.need_of_batch(*of_step, in_pieces=lambda need: choose(need).size < share))


def encoder_config(config: TrainConfig, info: DatasetInfo) -> EncoderConfig:
    model = config.model
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


def initial_weights(config: TrainConfig, encoder: EncoderConfig, info: DatasetInfo) -> dict[str, Tensor] | None:
    """The weights of `init_from`, of this model's sizes and these shards' vocabulary."""
    if config.init_from is None:
        return None
    if config.model.name == "hf_bert":
        raise UserError(
            "init_from: for mosaic_bert alone; hf_bert's positions are made for one length. Leave the key out"
        )
    folder = Path(config.init_from)
    folder = folder / "encoder" if (folder / "encoder").is_dir() else folder
    sizes, weights = convert.read_encoder(folder)
    for name in SIZES:
        there, here = getattr(sizes, name), getattr(encoder, name)
        if there != here:
            raise UserError(f"init_from={config.init_from} has {name}={there}, and this run {here}; they must be equal")
    vocabulary = folder / "vocab.txt"
    if not vocabulary.is_file() or hashlib.sha256(vocabulary.read_bytes()).hexdigest() != info.vocabulary.sha256:
        raise UserError(
            f"init_from={config.init_from} was trained with another vocabulary than that of {config.data.path}"
        )
    return weights


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
    for key, (before, now) in what_changed(TrainConfig, records.read_record(out)["config"], to_dict(config)).items():
        raise UserError(
            f"out={out} holds a run with {key}={as_word(before)}, and now {key}={as_word(now)}; "
            "resume with the same settings, or choose another folder"
        )
    for file in (out / "checkpoints").glob("latest-rank*.pt"):
        if file.exists():
            checkpoint_files.check(file)
    return True
