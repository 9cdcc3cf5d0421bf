"""`python -m recipe.plan --gpu h200 --budget-usd 20`: what a budget buys before it is spent.

Tokens, steps and hours follow from the model's FLOPs and a speed that is measured (a run's record) or stated (--mfu); memory
from the model's own step (recipe.training.memory); scores from recorded runs of the same model, or there are none.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from recipe import records, shipped
from recipe.block import BLOCK
from recipe.config import TrainConfig, load, to_dict
from recipe.cost import prices
from recipe.cost.expectation import expectation
from recipe.cost.measures import LOSS, PAIRS, SCORE
from recipe.cost.scale import Scale
from recipe.errors import UserError, end, exit_status
from recipe.model.architectures import ARCHITECTURES, architecture
from recipe.model.config import EncoderConfig, padded_vocab_size
from recipe.objectives import objective_of
from recipe.objectives.objective import Counts
from recipe.report.published import published_score
from recipe.system.files import write_whole
from recipe.system.hardware import data_sheet_flops, find_hardware
from recipe.training import cluster, stages
from recipe.training.checkpoint import find_checkpoint
from recipe.training.memory import (
    GIB,
    Need,
    bytes_beside,
    check_fits,
    choose_microbatch,
    need_of_batch,
    traced,
)
from recipe.training.start import adopt

MODELS = {
    "base": "yamls/pretrain/mosaic-bert-base.yaml",
    "large": "yamls/pretrain/mosaic-bert-large.yaml",
    "small": "yamls/pretrain/small.yaml",
}
BERT_VOCABULARY = 30522  # where the YAML names none and there are no shards yet
PUBLISHED_MFU = 0.28  # of MosaicBERT-Base on A100s, derived from the hours that arXiv 2312.17482 gives
GLUE_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", *BLOCK)


@dataclass(frozen=True)
class Speed:
    flops: float  # a second, of one device
    source: str
    tokens_per_sequence: float | None = None  # of the run that it was measured on
    bf16: bool | None = None  # whether that run was in bf16


@dataclass(frozen=True)
class Forecast:
    """What the budget buys; every number of all devices together, save `need`."""

    config: TrainConfig  # to run it
    row: prices.Row
    count: int
    speed: Speed
    budget_usd: float
    seconds: float
    tokens: int
    batches: int
    need: Need  # of the stage that needs most
    microbatch: int  # in it
    expected: dict[str, str]  # in words, by what is measured
    scale: Scale | None = None  # over several machines


def forecast(
    config: TrainConfig,
    row: prices.Row,
    count: int,
    budget_usd: float,
    speed: Speed,
    runs: Sequence[dict[str, Any]],
    machines: cluster.Cluster | None = None,
) -> Forecast:
    """What `budget_usd` buys on `count` devices of a price table's row, with the sequences as long as those that `speed` was
    measured on, or full. Those of several `machines` wait for each other, as `recipe.cost.scale` has it.

    Raises:
        UserError: no budget, no device, or a budget below one batch.
    """
    if budget_usd <= 0 or count < 1:
        raise UserError(f"--budget-usd {budget_usd:g} --count {count}: give more than 0 dollars and at least 1 device")
    # Packed, what depends on a run's documents needs their number.
    by_documents = config.data.batching == "tokens" and (config.stages.share or config.data.mask_rate_end is not None)
    step = step_of(config, speed, count, "sp" if by_documents else "ba")
    scaled = (
        cluster.scaled_step(config, sizes_of(config), step.tokens, step.seconds, count, machines) if machines else None
    )
    step_s = scaled.step if scaled else step.seconds
    most_s = budget_usd / (row.usd_per_hour * count) * 3600
    batches = int(most_s / step_s)
    if not batches:
        raise UserError(
            f"--budget-usd {budget_usd:g} buys {most_s:.3g} s, and one batch takes {step_s:.3g} s; give more"
        )
    # A GPU trains in bf16; of a CPU only a run on it says whether it can.
    bf16 = config.precision != "fp32" and (row.kind == "gpu" if speed.bf16 is None else speed.bf16)
    needs = [_need(stage.config, row, count, torch.bfloat16 if bf16 else None) for stage in stages.each(config)]
    need, microbatch = max(needs, key=lambda found: found[0].of(found[1]))
    config = dataclasses.replace(
        config, duration=f"{round(batches * step.sequences)}sp" if by_documents else f"{batches}ba"
    )
    tokens = round(batches * step.tokens)
    expected, seconds = expectations(config, runs, tokens, budget_usd), batches * step_s
    return Forecast(config, row, count, speed, budget_usd, seconds, tokens, batches, need, microbatch, expected, scaled)


def _need(config: TrainConfig, row: prices.Row, count: int, autocast: torch.dtype | None) -> tuple[Need, int]:
    """Of a run without stages, and its microbatch."""
    sizes, data, ranks = sizes_of(config), config.data, ranks_of(row, count)
    kind, learns = architecture(config.model.name), objective_of(to_dict(config))
    beside = bytes_beside(config, learns, kind, sizes, ranks)
    need = need_of_batch(
        learns, kind, beside, sizes, data.sequence_length, data.mask_rate, autocast,
        traced(config.model.attention, config.model.kernels),
        in_pieces=lambda need: microbatch_of(config, row, count, need) < config.batch_size // ranks,
    )  # fmt: skip
    return need, microbatch_of(config, row, count, need)


@dataclass(frozen=True)
class Step:
    """A training step of all devices together; of a run with stages the mean over its batches."""

    tokens: float
    seconds: float
    sequences: float
    evaluation: float  # seconds of such a step for each sequence of an evaluation, as long as the last stage's


def step_of(config: TrainConfig, speed: Speed, count: int, unit: str = "ba") -> Step:
    """With the sequences as long as those that `speed` was measured on, or full. `unit` is that of the run's duration, which the
    stages are shares of: of its batches, or with sp of its sequences."""
    several = stages.each(config)
    if len(several) == 1:
        return _step_of(config, speed, count)
    found = []
    for stage in several:
        longest = stage.config.data.sequence_length
        length = min(speed.tokens_per_sequence or longest, longest)
        found.append(_step_of(stage.config, dataclasses.replace(speed, tokens_per_sequence=length), count))
    batches = [stage.share / (stage.config.batch_size if unit == "sp" else 1) for stage in several]
    names = ("tokens", "seconds", "sequences")
    means = [
        sum(n * getattr(step, name) for n, step in zip(batches, found, strict=True)) / sum(batches) for name in names
    ]
    return Step(*means, found[-1].evaluation)


def _step_of(config: TrainConfig, speed: Speed, count: int) -> Step:
    """Of a run without stages."""
    data = config.data
    length = speed.tokens_per_sequence or data.sequence_length
    tokens = config.batch_size * length
    counts = Counts(tokens, tokens * length, tokens * data.mask_rate)
    kind, learns, sizes = architecture(config.model.name), objective_of(to_dict(config)), sizes_of(config)
    if problem := learns.problem(kind, sizes):
        raise UserError(problem)
    flops = learns.flops(kind, dataclasses.asdict(sizes), counts)
    seconds = flops / (speed.flops * count)
    return Step(tokens, seconds, config.batch_size, seconds / config.batch_size)


def where(gpu: str | None, count: int | None, table: str, config: TrainConfig) -> tuple[prices.Row, int]:
    """The devices that will be paid for, and how many: those of a row of the price table, or this machine's.

    Raises:
        UserError: no such row, or a machine that none fits.
    """
    if gpu:
        return prices.row_named(gpu, table), 1 if count is None else count
    hardware = find_hardware(config.device, config.precision, ranks=1)
    price = prices.price_of(hardware.name, hardware.kind, table, config.cost.usd_per_hour)
    match = (hardware.name, "cpu") if hardware.kind == "cpu" else (hardware.name,)
    row = prices.Row(price.row or hardware.name, match, price.usd_per_hour, price.source)
    return row, hardware.count if count is None else count


def ranks_of(row: prices.Row, count: int) -> int:
    """A GPU is a rank; the cores of a CPU work on one together."""
    return count if row.kind == "gpu" else 1


def microbatch_of(config: TrainConfig, row: prices.Row, count: int, need: Need) -> int:
    """As set, or what `recipe.train` would choose there."""
    share, wanted = config.batch_size // ranks_of(row, count), config.microbatch_size
    if wanted or not row.memory_gib:
        return min(wanted or share, share)
    return choose_microbatch(need, share, 0, row.memory_gib * GIB, row.kind, f"one {row.name}").size


def sizes_of(config: TrainConfig) -> EncoderConfig:
    model = config.model
    try:
        return architecture(model.name).sizes(vars(model), padded_vocab_size(vocabulary_of(config)))
    except ValueError as error:
        raise UserError(f"model: {error}") from None


def vocabulary_of(config: TrainConfig) -> int:
    """The shards' vocabulary where they are made already, else the YAML's, else BERT's."""
    if (Path(config.data.path) / "dataset.json").is_file():
        from recipe.data.shards import read_info  # brings in the streaming library, which takes seconds

        return read_info(config.data.path).vocabulary.size
    return config.model.vocab_size or BERT_VOCABULARY


def stated_speed(row: prices.Row, mfu: float, source: str) -> Speed:
    """A share of the device's data-sheet peak.

    Raises:
        UserError: an MFU that is none, or a device without a data sheet.
    """
    if not 0 < mfu < 1:
        raise UserError(f"--mfu {mfu:g}: give a share between 0 and 1, such as 0.3")
    peak = next((peak for name in row.match if (peak := data_sheet_flops(name))), None)
    if peak is None:
        raise UserError(f"no peak of {row.name} is known for an MFU to be a share of; give --record RUN, a run on one")
    return Speed(mfu * peak, f"MFU {mfu:.0%}, {source}")


def measured_speed(record: dict[str, Any], where: str) -> Speed:
    """The FLOP/s of one device that a finished run reached.

    Raises:
        UserError: the record of something else, or of a run that has done nothing.
    """
    if record["kind"] != "pretrain" or not record["tokens"] or not record["cost"]["seconds"]:
        raise UserError(f"--record {where}: no pretraining run that has trained on anything; give another")
    if record["model"] not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"--record {where}: its model, `{record['model']}`, is not known here; known are {known}")
    kind, tokens, length = architecture(record["model"]), record["tokens"], record["tokens"] / record["sequences"]
    learns = objective_of(record["config"])
    counts = Counts(tokens, tokens * length, tokens * record["config"]["data"]["mask_rate"])
    flops = learns.flops(kind, record["encoder"], counts)
    each = flops / record["cost"]["seconds"] / record["device"]["count"]
    source = f"measured on {record['device']['name']} by run `{record['name']}`"
    return Speed(each, source, length, record.get("precision") == "bfloat16")


def find_speed(row: prices.Row, model: str, runs: Sequence[dict[str, Any]]) -> Speed:
    """That of the longest recorded run of `model` on such a device; without one, the published MFU."""
    mine = [run for run in runs if run["model"] == model and run["device"]["price_row"] == row.name]
    mine = [run for run in mine if run["tokens"] and "encoder" in run]
    if mine:
        best = max(mine, key=lambda run: run["tokens"])
        return measured_speed(best, best["name"])
    return stated_speed(row, PUBLISHED_MFU, f"published for MosaicBERT-Base on A100; no run on {row.name} is recorded")


def expectations(
    config: TrainConfig, runs: Sequence[dict[str, Any]], tokens: float, budget_usd: float
) -> dict[str, str]:
    """What the recorded runs of this very model give at so many tokens, in words, by what is measured."""
    alike = [run for run in runs if run["model"] == config.model.name and shape_of(run) == shape_of_config(config)]
    alike = [run for run in alike if objective_of(run["config"]).name == config.objective]
    scored = [run for run in alike if run["glue"] and run["glue"]["benchmark"] == "GLUE"]
    found = {
        "GLUE": expectation(SCORE, scored, tokens),
        "pairs": expectation(PAIRS, alike, tokens),
        "loss": expectation(LOSS, alike, tokens),
    }
    published = published_score(config.model.name, shape_of_config(config), budget_usd, config.cost.prices)
    return {**found, **({"published": published} if published and found["GLUE"].startswith("no data") else {})}


def shape_of(run: dict[str, Any]) -> dict[str, Any]:
    """The sizes, and what is changed of the block, by which a recorded run's scores are another's."""
    return _stated(run["config"].get("model", {}))


def shape_of_config(config: TrainConfig) -> dict[str, Any]:
    return _stated(vars(config.model))


def _stated(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: model[name] for name in GLUE_SHAPE if model.get(name) is not None}


def tell(found: Forecast) -> list[str]:
    config, row = found.config, found.row
    unit = "GPUs" if row.kind == "gpu" else "cores"
    rate = found.tokens / found.seconds
    usd = found.seconds / 3600 * row.usd_per_hour * found.count
    length = "as long as in that run" if found.speed.tokens_per_sequence else "all counted as full"
    memory = f"{found.need.of(found.microbatch) / GIB:.2f} GiB with microbatches of {found.microbatch}"
    memory += f", of {row.memory_gib:g} GiB" if row.memory_gib else ""
    sizes = ", ".join(f"{stage.config.batch_size:,}" for stage in stages.each(config))
    return [
        f"{config.model.name} on {found.count} {unit}, {row.name}, ${row.usd_per_hour}/h each ({row.source})",
        f"  speed   {found.speed.source}: {rate:,.0f} tokens/s",
        f"  buys    {found.tokens:,} tokens, {found.batches:,} batches of {sizes} sequences ({length}), "
        f"{found.seconds / 3600:.3g} h",
        f"  costs   ${usd:,.4g} of ${found.budget_usd:,g}; evaluation, checkpoints and fine-tuning are not in it",
        f"  memory  {memory}",
        *(cluster.tell(found.scale) if found.scale else ()),
        *(f"  {name:<7} {text}" for name, text in found.expected.items()),
    ]


def differing(config: Any, default: Any) -> dict[str, Any]:
    """The settings that are not the default ones, as a YAML file has them."""
    return {
        key: differing(value, default[key]) if isinstance(value, dict) else value
        for key, value in config.items()
        if value != default[key]
    }


def as_yaml(found: Forecast) -> str:
    """A file for recipe.train that spends the budget."""
    head = f"# {found.row.name} x {found.count}, ${found.budget_usd:g}; {found.speed.source}\n"
    return head + yaml.safe_dump(differing(to_dict(found.config), to_dict(TrainConfig())), sort_keys=False)


def recorded(places: Sequence[str]) -> list[dict[str, Any]]:
    files = [file for place in places for file in sorted(shipped.find(place).rglob(records.FILE_NAME))]
    found = [records.read_record(file) for file in files]
    return [record for record in found if record["kind"] == "pretrain"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m recipe.plan", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--gpu", help="a row of the price table, such as h200; cpu-core for a CPU; absent: this machine"
    )
    parser.add_argument("--count", type=int, help="GPUs, or cores (1; of this machine all)")
    parser.add_argument(
        "--nodes", type=int, help="machines, each with --count GPUs: what their links cost is counted too"
    )
    parser.add_argument("--network-gbit", type=float, default=100, help="of each node to the others (%(default)s)")
    parser.add_argument("--link-gbyte", type=float, default=200, help="of each GPU within a node (%(default)s)")
    parser.add_argument(
        "--parts", default=cluster.PARTS, help="what was measured of loader and checkpoints (%(default)s)"
    )
    parser.add_argument("--budget-usd", type=float, required=True)
    parser.add_argument("--model", default="base", help="base, large, small, or a training YAML (%(default)s)")
    parser.add_argument("--mfu", type=float, help="state the share of the peak that is reached")
    parser.add_argument("--record", help="take the speed of this run")
    parser.add_argument("--runs", nargs="*", default=["benchmarks/results"], help="recorded runs (%(default)s)")
    parser.add_argument("--prices", default="yamls/prices.yaml")
    parser.add_argument("--out", help="write the YAML here too")
    words = parser.parse_args(argv)
    return exit_status(lambda: plan(words))


def plan(words: argparse.Namespace) -> None:
    """What the command line asks for, printed and, if wanted, written."""
    config = load(TrainConfig, MODELS.get(words.model, words.model))
    if config.init_from:  # whose sizes the run will have
        source = find_checkpoint(config.init_from, "init_from")
        config = adopt(config, source.trained_as().name, source.sizes)
    row, count = where(words.gpu, words.count, words.prices, config)
    machines = None
    if words.nodes is not None:
        if row.kind != "gpu":
            raise UserError("--nodes is for machines with GPUs; name theirs with --gpu")
        machines = cluster.cluster_of(words.nodes, words.network_gbit, words.link_gbyte, words.parts)
        count *= words.nodes
    runs = recorded(words.runs)
    if words.record:
        speed = measured_speed(records.read_record(words.record), words.record)
    elif words.mfu:
        speed = stated_speed(row, words.mfu, "stated")
    else:
        speed = find_speed(row, config.model.name, runs)
    found = forecast(config, row, count, words.budget_usd, speed, runs, machines)
    print("\n".join([*tell(found), "", as_yaml(found)]))
    if row.memory_gib:
        check_fits(found.need, found.microbatch, row.memory_gib * GIB, f"one {row.name}")
    if words.out:
        write_new(Path(words.out), as_yaml(found))


def write_new(file: Path, text: str) -> None:
    if file.exists():
        raise UserError(f"--out {file} exists; choose another name")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, text)


if __name__ == "__main__":
    end(main)
