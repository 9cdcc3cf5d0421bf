"""Stages: parts of a run in turn, each with a length of sequences and a batch of its own.

An edge lies where the run has seen so many documents, and the stage of a batch is that of its first document. So where a run goes
on follows from what it has seen, with stages as without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from recipe.config import Stages, TrainConfig
from recipe.errors import UserError
from recipe.settings import as_word


class Share(NamedTuple):
    """A stage, and how much of the run it is."""

    share: float
    config: TrainConfig  # of a run that is this stage alone


def each(config: TrainConfig) -> list[Share]:
    """The stages of a run, in turn; a run without stages is one.

    Raises:
        UserError: lists that do not fit each other, or not the run's own keys.
    """
    shares = config.stages.share
    lengths = _values(config, "sequence_length", "data.sequence_length", config.data.sequence_length)
    sizes = _values(config, "batch_size", "batch_size", config.batch_size)
    if not shares:
        return [Share(1.0, config)]
    if abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"stages.share={as_word(shares)} sums to {sum(shares):g}; give shares of the run that sum to 1")
    if max(lengths) > lengths[-1]:
        raise UserError(
            f"stages.sequence_length={as_word(lengths)}: {max(lengths)} is longer than the last stage, whose length the encoder "
            "is made for; sort them"
        )
    found = []
    for share, length, size in zip(shares, lengths, sizes, strict=True):
        data = dataclasses.replace(config.data, sequence_length=length)
        found.append(Share(share, dataclasses.replace(config, stages=Stages(), data=data, batch_size=size)))
    return found


def _values(config: TrainConfig, name: str, key: str, last: int) -> list[int]:
    """One for each stage, checked."""
    shares, values = config.stages.share, getattr(config.stages, name)
    said = f"stages.{name}={as_word(values)}"
    if values and not shares:
        raise UserError(f"{said}: give stages.share too, of each how much of the run it is")
    if values and len(values) != len(shares):
        raise UserError(f"{said}: {len(values)} for the {len(shares)} stages of stages.share; give one for each")
    if values and values[-1] != last:
        raise UserError(f"{said}: the last stage has the run's own {key}, which is {last}; set {key}={values[-1]}")
    return values or [last] * len(shares)


def parts(total: int, stages: Sequence[Share]) -> list[int]:
    """`total` batches or documents of a run, by stage."""
    passed, ends = 0.0, [0]
    for stage in stages:
        passed += stage.share
        ends.append(round(passed * total))
    return [end - start for start, end in zip(ends[:-1], ends[1:], strict=True)]


def after(seen: int, batches: int, size: int, documents: int) -> int:
    """How many documents a run has seen when so many batches of `size` more are over, those counted that an epoch of `documents`
    leaves out because they fill no batch."""
    epoch, position = divmod(seen, documents)
    left = batches - (documents - position) // size
    if left <= 0:
        return seen + batches * size
    whole, rest = divmod(left - 1, documents // size)
    return (epoch + 1 + whole) * documents + (rest + 1) * size
