"""Numbers of a training config that cannot work, each refused in one line with a number that would."""

from __future__ import annotations

import itertools

from composer import Time
from composer.core import TimeUnit

from recipe.config import TrainConfig
from recipe.data.batch import BIN_SEQUENCES, MOST_OF_FULL
from recipe.data.sampler import Stage
from recipe.data.shards import DatasetInfo, SplitInfo
from recipe.errors import UserError
from recipe.settings import check_values
from recipe.training import stages
from recipe.training.averages import AVERAGES
from recipe.training.initial_words import RANDOM
from recipe.training.parallel import PARALLEL
from recipe.training.schedules import SCHEDULES

_UNITS = (TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.TOKEN, TimeUnit.EPOCH)


def check_numbers(config: TrainConfig, info: DatasetInfo, ranks: int, batching: str) -> None:
    """Raise a `UserError` for the first number that cannot work with these shards on so many ranks."""
    check_values(config)
    several = stages.each(config)
    for number, stage in enumerate(several, 1):
        try:
            _check_batches(stage.config, info, ranks)
            _check_bins(stage.config, ranks, batching)
            _check_parts(stage.config, batching)
        except UserError as error:
            raise UserError(f"stage {number}: {error}" if len(several) > 1 else str(error)) from None
    _check_data(config, info)
    _check_batching(config, info, batching)
    _check_optimizer(config)
    _check_average(config, info, batching)
    _check_initial_words(config)
    if problem := PARALLEL[config.parallel].problem(config, ranks):
        raise UserError(problem)
    for key in ("duration", "eval_every", "checkpoint_every"):
        parse_time(key, getattr(config, key))
    if parse_time("duration", config.duration).value < 1:
        raise UserError(f"duration={config.duration}: give at least 1ba")


def parse_time(key: str, text: str) -> Time:
    """`1000ba` and the like as Composer's Time."""
    try:
        time = Time.from_timestring(text)
    except ValueError:
        time = None
    if time is None or time.unit not in _UNITS or time.value < 0:
        raise UserError(f"{key}={text}: give a number with a unit, such as 1000ba, 286720000sp, 2000000000tok or 1ep")
    return time


def _check_batches(config: TrainConfig, info: DatasetInfo, ranks: int) -> None:
    if config.batch_size % ranks:
        lower = max(config.batch_size - config.batch_size % ranks, ranks)
        raise UserError(f"batch_size={config.batch_size} is not divisible by the {ranks} ranks; set batch_size={lower}")
    documents = info.split(config.data.train_split).documents
    if documents < config.batch_size:
        raise UserError(
            f"batch_size={config.batch_size}, but `{config.data.train_split}` holds {documents} documents; lower it"
        )


def _check_data(config: TrainConfig, info: DatasetInfo) -> None:
    data = config.data
    for key in ("train_split", "eval_split"):
        _check_maskable(f"data.{key}={getattr(data, key)}", info.split(getattr(data, key)))
    longest = info.max_tokens + 2
    if data.sequence_length > longest and info.split(data.train_split).truncated:
        raise UserError(
            f"data.sequence_length={data.sequence_length}, but the documents in {data.path} were cut for {longest}; set "
            f"data.sequence_length={longest}, or prepare them again with max_tokens={data.sequence_length - 2}"
        )


def _check_maskable(setting: str, split: SplitInfo) -> None:
    if not split.tokens or split.unknown == 1:
        what = "only [UNK]" if split.tokens else "no token"
        raise UserError(
            f"{setting}: holds {what}, so there is nothing to mask; choose another split, or prepare other text"
        )


def planned_documents(config: TrainConfig, info: DatasetInfo, batching: str) -> int:
    """How many documents the whole run sees."""
    duration, several = parse_time("duration", config.duration), stages.each(config)
    documents = info.split(config.data.train_split).documents
    units = [TimeUnit.SAMPLE] if batching == "tokens" else [TimeUnit.SAMPLE, TimeUnit.BATCH]
    if batching != "tokens" and len(several) == 1:
        units.append(TimeUnit.EPOCH)  # whose batches are not counted beforehand where they change
    if duration.unit not in units:
        key = "stages" if len(several) > 1 else "data.mask_rate_end"
        *most, last = (unit.value for unit in units)
        names = f"{', '.join(most)} or {last}" if most else last
        raise UserError(f"{key}: needs to know how many documents the run sees; give `duration` in {names}")
    if duration.unit == TimeUnit.BATCH:
        counts = stages.parts(duration.value, several)
        return sum(count * stage.config.batch_size for count, stage in zip(counts, several, strict=True))
    return duration.value * (documents if duration.unit == TimeUnit.EPOCH else 1)


def planned_stages(config: TrainConfig, info: DatasetInfo, batching: str) -> tuple[Stage, ...]:
    """The stages, each with the documents that the run has seen when it begins.

    Raises:
        UserError: where these follow only from the run itself, or a stage is too short for a batch to begin in it.
    """
    several, duration = stages.each(config), parse_time("duration", config.duration)
    if len(several) == 1:
        return (Stage(0, config.data.sequence_length, config.batch_size),)
    planned_documents(config, info, batching)
    documents, seen, found = info.split(config.data.train_split).documents, 0, []
    # A packed batch holds more documents than full ones, how many follows from their lengths.
    most = max(stage.config.batch_size for stage in several) * (MOST_OF_FULL if batching == "tokens" else 1)
    for number, (stage, count) in enumerate(zip(several, stages.parts(duration.value, several), strict=True), 1):
        size = stage.config.batch_size
        found.append(Stage(seen, stage.config.data.sequence_length, size))
        if count < (1 if duration.unit == TimeUnit.BATCH else most):
            needs = "a batch" if duration.unit == TimeUnit.BATCH else f"{most} documents, as many as a batch may hold"
            raise UserError(
                f"stages.share: stage {number} has {count}{duration.unit.value} of duration={config.duration}, less than "
                f"{needs}; give it a larger share, or the run a longer duration"
            )
        seen = stages.after(seen, count, size, documents) if duration.unit == TimeUnit.BATCH else seen + count
    return tuple(found)


def progress_by_documents(config: TrainConfig) -> tuple[list[float], list[float]]:
    """Places of a run as shares of its documents, and as shares of its `duration`, which is what its schedules go by; between
    them lie lines. They differ where a stage's batches are larger than another's and the duration counts batches."""
    several, duration = stages.each(config), parse_time("duration", config.duration)
    if duration.unit != TimeUnit.BATCH:
        return [0.0, 1.0], [0.0, 1.0]
    counts = stages.parts(duration.value, several)
    documents = [count * stage.config.batch_size for count, stage in zip(counts, several, strict=True)]
    return [0.0, *shares_of(documents)], [0.0, *shares_of(counts)]


def shares_of(amounts: list[int]) -> list[float]:
    """Of each the share of the sum that is reached with it."""
    return [reached / sum(amounts) for reached in itertools.accumulate(amounts)]


def planned_batches(config: TrainConfig, info: DatasetInfo, batching: str) -> int:
    """How many batches the whole run has; 0 where only its end will tell."""
    duration = parse_time("duration", config.duration)
    if duration.unit == TimeUnit.BATCH:
        return duration.value
    if batching == "tokens" or len(stages.each(config)) > 1 or duration.unit == TimeUnit.TOKEN:
        return 0
    if duration.unit == TimeUnit.SAMPLE:
        return -(-duration.value // config.batch_size)
    return duration.value * (info.split(config.data.train_split).documents // config.batch_size)


def _check_average(config: TrainConfig, info: DatasetInfo, batching: str) -> None:
    steps, batches = config.average.steps, planned_batches(config, info, batching)
    if steps > batches > 0:
        raise UserError(
            f"average.steps={steps}, but the run has {batches} batches; set average.steps={batches} or less"
        )
    if steps and not batches and AVERAGES[config.average.shape].needs_end:
        raise UserError(
            f"average.shape={config.average.shape}: needs to know at which batch the run ends; give `duration` in ba, or set "
            "average.shape=ema"
        )


def _check_initial_words(config: TrainConfig) -> None:
    words = config.model.initial_words
    if words != RANDOM and config.init_from is not None:
        raise UserError(
            f"model.initial_words={words}: the word embeddings of init_from would be lost; leave one of the two out"
        )


def _check_bins(config: TrainConfig, ranks: int, batching: str) -> None:
    for key, value in (("batch_size", config.batch_size // ranks), ("microbatch_size", config.microbatch_size)):
        if batching == "tokens" and value % BIN_SEQUENCES:
            raise UserError(
                f"{key}: {value} a rank; with data.batching=tokens give a multiple of {BIN_SEQUENCES} a rank"
            )


def _check_batching(config: TrainConfig, info: DatasetInfo, batching: str) -> None:
    if batching == "tokens" and parse_time("duration", config.duration).unit == TimeUnit.EPOCH:
        documents = info.split(config.data.train_split).documents
        raise UserError(
            f"duration={config.duration}: with data.batching=tokens the batches of an epoch are not known beforehand; "
            f"give sp, the split has {documents} documents"
        )
    planned_stages(config, info, batching)
    if config.data.mask_rate_end is not None:
        planned_documents(config, info, batching)
    if config.data.mask_rate_falls == "with_lr":
        _check_mask_rate(config)


def _check_parts(config: TrainConfig, batching: str) -> None:
    if config.data.order != "canonical":
        return
    multiple = config.data.canonical_parts * (BIN_SEQUENCES if batching == "tokens" else 1)
    if config.batch_size % multiple:
        bins = f", in whole bins of {BIN_SEQUENCES} sequences" if batching == "tokens" else ""
        raise UserError(
            f"batch_size={config.batch_size}: a batch holds as much of each of data.canonical_parts="
            f"{config.data.canonical_parts}{bins}; give a multiple of {multiple}"
        )


def _check_mask_rate(config: TrainConfig) -> None:
    if config.data.mask_rate_end is None:
        raise UserError("data.mask_rate_falls=with_lr: to which rate? set data.mask_rate_end too")
    if SCHEDULES[config.schedule.shape].factor(1.0, config.schedule) >= 1:
        raise UserError(
            "data.mask_rate_falls=with_lr, but the learning rate never falls; lower schedule.final_lr, give wsd a "
            "schedule.decay, or set data.mask_rate_falls=evenly"
        )


def _check_optimizer(config: TrainConfig) -> None:
    optimizer, schedule = config.optimizer, config.schedule
    if len(optimizer.betas) != 2:
        raise UserError(f"optimizer.betas={optimizer.betas}: give two numbers, such as [0.9,0.98]")
    if problem := SCHEDULES[schedule.shape].problem(schedule):
        raise UserError(problem)
