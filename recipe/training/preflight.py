"""Everything that a training run needs, checked against the machine, the shards and the output folder before it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from composer.utils import dist

from recipe.config import TrainConfig, to_dict
from recipe.cost import prices
from recipe.data import storage
from recipe.data.batch import BIN_SEQUENCES
from recipe.data.cache import local_folder, open_dataset
from recipe.data.sampler import Stage
from recipe.data.shard_files import check_files
from recipe.data.shards import DatasetInfo
from recipe.data.stream import check_vocabulary
from recipe.errors import UserError
from recipe.model.architecture import PADDED, Architecture
from recipe.model.architectures import architecture
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.model.encoder import Backends
from recipe.objectives import objective_of
from recipe.objectives.objective import Objective
from recipe.system.hardware import Hardware, find_hardware
from recipe.training import memory, stages
from recipe.training.checks import check_numbers, planned_batches, planned_documents, planned_stages
from recipe.training.compiled import check_compiles
from recipe.training.initial_words import INITIAL_WORDS
from recipe.training.loggers import check_loggers
from recipe.training.resume import Found, find_run
from recipe.training.start import Start, adopt, find_start


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked, with nothing written yet."""

    config: TrainConfig
    info: DatasetInfo
    hardware: Hardware
    price: prices.Price
    architecture: Architecture
    objective: Objective
    encoder: EncoderConfig
    backends: Backends
    stages: tuple[Stage, ...]  # one where the config has none
    microbatches: tuple[memory.Microbatch, ...]  # of each stage
    start: Start | None  # what `init_from` gives
    ranks: int
    run: Found | None  # that is continued
    folder: Path  # of the dataset on this machine
    batching: str  # sequences, tokens or padded
    workers: int  # processes of the loader
    batches: int  # of the whole run; 0 where only its end will tell
    run_documents: int | None  # that the whole run sees; known where the masking rate falls over the run

    @property
    def out(self) -> Path:
        return Path(self.config.out)

    @property
    def resumes(self) -> bool:
        return self.run is not None

    @property
    def positions(self) -> int:
        """The longest input that the model is made for: with `init_from`, the source's."""
        return (self.start and self.start.longest) or self.config.data.sequence_length

    @property
    def microbatch(self) -> memory.Microbatch:
        """Of the last stage, whose sequences are the longest, and of evaluations."""
        return self.microbatches[-1]

    @property
    def packed(self) -> bool:
        """Whether its batches have one shape."""
        return self.batching == "tokens"


def make_plan(config: TrainConfig) -> Plan:
    """Check the config against the machine, the shards and the output folder."""
    ranks = dist.get_world_size()
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_local_rank())  # whose memory is looked at, and not the first GPU's by every rank
    hardware = find_hardware(config.device, config.precision, ranks, ranks // dist.get_local_world_size())
    splits = (config.data.train_split, config.data.eval_split)
    info, folder = open_dataset(config.data, splits), local_folder(config.data)
    for split in splits:
        check_files(folder, split, storage.is_remote(config.data.path), info.dtype)
    check_vocabulary(folder, info)
    start = find_start(config, info, folder)
    if start:
        config = adopt(config, start.model, start.sizes)
    kind, learns = architecture(config.model.name), objective_of(to_dict(config))
    batching = resolve_batching(config.data.batching, kind)
    check_numbers(config, info, ranks, batching)
    check_loggers(config.loggers)
    encoder = encoder_config(config, info, start and start.sizes)
    check_words(config, learns, kind, encoder)
    if start:
        kept = learns.kept(memory.outline(learns, kind, encoder, start.longest or config.data.sequence_length))
        start = start.for_model(kept.state_dict().keys(), kind.prefix)
    chosen = resolve_backends(config, kind, encoder, hardware)
    price = prices.price_of(hardware.name, hardware.kind, config.cost.prices, config.cost.usd_per_hour)
    microbatches = [
        choose_microbatch(stage.config, learns, kind, encoder, hardware, chosen, ranks, batching)
        for stage in stages.each(config)
    ]
    if config.model.compile:
        check_compiles(chosen.attention, hardware.device)
    return Plan(
        config=config,
        info=info,
        hardware=hardware,
        price=price,
        architecture=kind,
        objective=learns,
        encoder=encoder,
        backends=chosen,
        stages=planned_stages(config, info, batching),
        microbatches=tuple(microbatches),
        start=start,
        ranks=ranks,
        run=find_run(config),
        folder=folder,
        batching=batching,
        workers=config.data.workers if config.data.workers >= 0 else 8 * (hardware.kind == "gpu"),
        batches=planned_batches(config, info, batching),
        run_documents=planned_documents(config, info, batching) if config.data.mask_rate_end is not None else None,
    )


def check_words(config: TrainConfig, learns: Objective, kind: Architecture, encoder: EncoderConfig) -> None:
    """Raise a `UserError` where nothing would begin as `model.initial_words` says."""
    words = INITIAL_WORDS[config.model.initial_words]
    if not words.bias or words.embeddings:
        return
    kept = learns.kept(memory.outline(learns, kind, encoder, config.data.sequence_length))
    if not set(kind.vocabulary_rows[1:]) & set(dict(kept.named_parameters())):
        raise UserError(
            f"model.initial_words={config.model.initial_words} begins the decoder's bias, and objective={learns.name} has no "
            "decoder; set model.initial_words=counts or random"
        )


def resolve_batching(wanted: str, kind: Architecture) -> str:
    """sequences, tokens or padded; a `UserError` where the model cannot take it."""
    rows = kind.form == PADDED
    if wanted == "auto":
        return "padded" if rows else "sequences"
    if (wanted == "padded") != rows:
        fits = "padded" if rows else "sequences or tokens"
        raise UserError(f"data.batching={wanted}: {kind.name} takes {fits}; set that, or leave the key out")
    return wanted


def choose_microbatch(
    config: TrainConfig,
    learns: Objective,
    kind: Architecture,
    encoder: EncoderConfig,
    hardware: Hardware,
    chosen: Backends,
    ranks: int,
    batching: str,
) -> memory.Microbatch:
    """What each rank takes at a time: as set, or the largest that fits; refused where nothing does."""
    share, wanted = config.batch_size // ranks, config.microbatch_size
    beside = memory.bytes_beside(config, learns, kind, encoder, ranks)
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
            multiple=BIN_SEQUENCES if batching == "tokens" else 1,
            most=memory.CPU_TOKENS // data.sequence_length if hardware.kind == "cpu" else 0,
        )

    traced = memory.traced(chosen.attention.name, chosen.kernels.name)
    of_step = (learns, kind, beside, encoder, data.sequence_length, data.mask_rate, hardware.autocast, traced)
    return choose(memory.need_of_batch(*of_step, in_pieces=lambda need: choose(need).size < share))


def encoder_config(config: TrainConfig, info: DatasetInfo, source: EncoderConfig | None = None) -> EncoderConfig:
    """The encoder's sizes; what no key states is `source`'s, where there is one."""
    model = config.model
    if model.vocab_size is not None and model.vocab_size != info.vocabulary.size:
        raise UserError(
            f"model.vocab_size={model.vocab_size}, but the shards in {config.data.path} were made with a vocabulary of "
            f"{info.vocabulary.size}; leave the key out, or prepare the shards again with the other vocabulary"
        )
    rows, pad_id = padded_vocab_size(info.vocabulary.size), info.vocabulary.pad_id
    try:
        return architecture(model.name).sizes(vars(model), rows, source, pad_token_id=pad_id)
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def resolve_backends(config: TrainConfig, kind: Architecture, encoder: EncoderConfig, hardware: Hardware) -> Backends:
    needs = encoder.requirements(hardware.device, hardware.activation_dtype)
    try:
        return kind.backends(config.model.attention, config.model.kernels, needs)
    except ValueError as error:
        raise UserError(str(error)) from None
