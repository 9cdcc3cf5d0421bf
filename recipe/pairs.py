"""`python -m recipe.pairs YAML checkpoint=... [key=value ...]`: which of two sentences does an encoder find likelier?

Nothing is trained: the masked-language model's own head gives each sentence its pseudo-log-likelihood, and of each minimal pair
the acceptable sentence should have the higher one. The scores stand in a run.json of their own and in the pretraining run's.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipe import records
from recipe.config import PairsConfig, run_main, to_dict
from recipe.cost import prices
from recipe.errors import UserError, end
from recipe.finetune.batches import ExampleCollator, first_tokens
from recipe.finetune.minimal_pairs import (
    REPORTED,
    TUNING_PAIRS,
    MaskedCopies,
    Paradigm,
    files_of,
    mask_each,
    read_pairs,
)
from recipe.finetune.results import choose_folder, find_record, of_final_encoder
from recipe.settings import check_values
from recipe.system.files import digest
from recipe.system.hardware import Hardware, find_hardware
from recipe.system.quiet import quiet_libraries
from recipe.training.checkpoint import Checkpoint, find_checkpoint

METHOD = "pseudo-log-likelihood, each token masked in turn; a tie counts half; mean over paradigms"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that scoring needs, checked, with nothing written."""

    config: PairsConfig
    checkpoint: Checkpoint
    out: Path
    hardware: Hardware
    price: prices.Price
    paradigms: list[Paradigm]
    copies: list[tuple[MaskedCopies, np.ndarray]]  # of each paradigm; good and bad sentence of each pair in turn

    @property
    def collator(self) -> ExampleCollator:
        return ExampleCollator(self.config.max_tokens, self.checkpoint.padding)


def pairs(config: PairsConfig) -> dict[str, Any]:
    """Score one checkpoint; returns the record that it also writes, whose `pairs` holds the scores.

    Raises:
        UserError: before anything is written, for whatever cannot work.
    """
    plan = make_plan(config)
    found = find_record(plan.out, "pairs", config)
    if found is not None and found["pairs"]["inputs"] == inputs(plan):
        print(f"{plan.out} holds these scores already; nothing to do", flush=True)
        return publish(plan, found)
    backends = plan.checkpoint.resolve_backends(plan.hardware)
    model = plan.checkpoint.masked_lm(backends).to(plan.hardware.device).eval()
    record = records.new_record(
        kind="pairs",
        name=plan.checkpoint.name,
        model=plan.checkpoint.model,
        config=to_dict(config),
        device=records.device(plan.hardware.kind, plan.hardware.name, plan.hardware.count, plan.price),
        backends={key: dataclasses.asdict(getattr(backends, key)) for key in ("attention", "kernels")},
        parameters=sum(p.numel() for p in model.parameters()),
    )
    record["precision"] = str(plan.hardware.activation_dtype).removeprefix("torch.")
    say_start(plan, record)
    started = time.perf_counter()
    scores = {}
    for place, (paradigm, copies) in enumerate(zip(plan.paradigms, plan.copies, strict=True), 1):
        scores[paradigm.name] = score_paradigm(plan, model, paradigm, *copies)
        print(f"[{place}/{len(plan.paradigms)}] {paradigm.name}: {scores[paradigm.name]['score']:.1f}", flush=True)
    record["cost"] = prices.bill(time.perf_counter() - started, plan.hardware.count, plan.price, plan.hardware.kind)
    record["tokens"] = sum(int(copies.examples.offsets[-1]) for copies, _ in plan.copies)
    record["sequences"] = sum(len(copies) for copies, _ in plan.copies)
    record["pairs"] = {
        "method": METHOD,
        "part": config.part,
        "max_pairs": config.max_pairs,
        "tuning_pairs": TUNING_PAIRS,
        "inputs": inputs(plan),
        **summarise(scores),
    }
    record["status"] = "finished"
    records.write_record(plan.out, record)
    return publish(plan, record)


def make_plan(config: PairsConfig) -> Plan:
    """Check the config against the checkpoint, the data and the machine."""
    check_values(config)
    hardware = find_hardware(config.device, config.precision, ranks=1)
    price = prices.price_of(hardware.name, hardware.kind, config.cost.prices, config.cost.usd_per_hour)
    paradigms = read_pairs(config.data, config.part, config.max_pairs)
    checkpoint = find_checkpoint(config.checkpoint)
    if checkpoint.mask_id is None:
        raise UserError(f"{checkpoint.folder}: its tokenizer has no mask; give a masked-language model")
    out = choose_folder(config.out, checkpoint, "pairs" if config.part == REPORTED else f"pairs-{config.part}")
    copies = []
    for paradigm in paradigms:
        texts = [sentence for pair in paradigm.pairs for sentence in pair]
        copies.append(mask_each(checkpoint.tokenizer, texts, checkpoint.mask_id))
        longest, limit = int(copies[-1][0].examples.lengths.max()), checkpoint.max_length
        if limit is not None and longest > limit:
            problem = f"a sentence of {longest} tokens, but the model has {limit} position embeddings"
            raise UserError(f"{paradigm.name}: {problem}; remove its pair")
    return Plan(config, checkpoint, out, hardware, price, paradigms, copies)


def score_paradigm(
    plan: Plan, model: nn.Module, paradigm: Paradigm, copies: MaskedCopies, which: np.ndarray
) -> dict[str, Any]:
    """The share of pairs whose acceptable sentence is the likelier one, times 100; ties, counted half, are texts that are one
    sequence of tokens, or two of the very same number."""
    likelihoods = pseudo_log_likelihoods(model, copies, plan.collator, plan.hardware)
    good, bad = likelihoods[which.reshape(-1, 2)].T
    ties = int((good == bad).sum())
    right = int((good > bad).sum()) + ties / 2
    return {
        "score": 100 * right / len(good),
        "pairs": len(good),
        "ties": ties,
        "term": paradigm.term,
        "field": paradigm.field,
    }


@torch.inference_mode()
def pseudo_log_likelihoods(
    model: nn.Module, copies: MaskedCopies, collator: ExampleCollator, hardware: Hardware
) -> np.ndarray:
    """Natural log, float64, of each sentence: the sum over its tokens of log p(token | the sentence with it masked)."""
    log_p = np.empty(len(copies))
    for part in collator.parts(copies.examples, range(len(copies))):
        batch = collator.batch(copies.examples, part)
        batch["masked_indices"] = first_tokens(batch) + torch.from_numpy(copies.places[part])
        batch = {key: value.to(hardware.device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        with torch.autocast(hardware.device, hardware.autocast, enabled=hardware.autocast is not None):
            logits_MV = model.masked_logits(batch)
        of_labels = logits_MV.float().log_softmax(1).gather(1, batch["labels"][:, None])
        log_p[part] = of_labels[:, 0].double().cpu().numpy()
    if not np.isfinite(log_p).all():
        raise UserError("the model's log-probabilities are no finite numbers; its training diverged")
    return np.bincount(copies.sentences, weights=log_p)


def summarise(paradigms: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over paradigms, of each term, of each field and of all, and the standard error of the last, in points."""
    variances = [one["score"] * (100 - one["score"]) / one["pairs"] for one in paradigms.values()]
    return {
        "score": statistics.fmean(one["score"] for one in paradigms.values()),
        "standard_error": math.sqrt(math.fsum(variances)) / len(paradigms),
        "fields": _means(paradigms, "field"),
        "terms": _means(paradigms, "term"),
        "paradigms": paradigms,
    }


def _means(paradigms: dict[str, dict[str, Any]], key: str) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for one in paradigms.values():
        groups.setdefault(one[key], []).append(one["score"])
    return {name: statistics.fmean(scores) for name, scores in sorted(groups.items())}


def inputs(plan: Plan) -> dict[str, Any]:
    """Digests of what the numbers follow from, beside the config."""
    place = Path(plan.config.data)
    return {"checkpoint": digest(plan.checkpoint.files), "data": digest(files_of(place))}


def publish(plan: Plan, record: dict[str, Any]) -> dict[str, Any]:
    """Print the table, and bring the scores into the record of the pretraining run."""
    found, run = record["pairs"], plan.checkpoint.run
    print("\n".join(table(found)), flush=True)
    if run is None:
        return record
    if found["part"] != REPORTED or not of_final_encoder(plan.checkpoint):
        print(f"{run / records.FILE_NAME} stays as it is; see {plan.out}", flush=True)
        return record
    written = records.write_record(run, {**records.read_record(run), "pairs": found})
    print(f"scores in {written}", flush=True)
    return record


def table(found: dict[str, Any]) -> Iterable[str]:
    """The scores of fields, of terms, where there is more than one, and of all as lines of text."""
    counts = [one["pairs"] for one in found["paradigms"].values()]
    for group in (found["fields"], found["terms"]):
        if len(group) > 1:
            yield from ("", *(f"{name:<28}{score:6.1f}" for name, score in group.items()))
    yield ""
    yield (
        f"score {found['score']:.2f}, standard error {found['standard_error']:.2f} ({found['method']}; part={found['part']}, "
        f"{sum(counts):,} pairs of {len(counts)} paradigms, {sum(one['ties'] for one in found['paradigms'].values())} ties)"
    )


def say_start(plan: Plan, record: dict[str, Any]) -> None:
    print(
        f"{plan.checkpoint.name}: {plan.checkpoint.model}, {record['parameters'] / 1e6:.1f} M parameters -> {plan.out}\n"
        f"  on {plan.hardware.devices}, {record['precision']}\n"
        f"  {plan.config.part} part of {plan.config.data}: {len(plan.paradigms)} paradigms, "
        f"{sum(len(copies) for copies, _ in plan.copies):,} masked copies",
        flush=True,
    )


def main(config: PairsConfig) -> None:
    """The entry point's own part: a clean terminal, then `pairs`."""
    quiet_libraries()
    pairs(config)


if __name__ == "__main__":
    end(lambda: run_main(PairsConfig, main))
