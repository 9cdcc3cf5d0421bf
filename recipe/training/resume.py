"""Which run goes on, and from which checkpoint.

Machines may share nothing, and under an elastic launch any of them may have become rank 0. So each says what its own folder has,
and the newest of all goes on, whoever has it: its record and its checkpoint move to rank 0's folder, which is the run's from then
on. What another machine has of the run stays there as it was, for the day when it is all that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.utils import dist

from recipe import records
from recipe.config import TrainConfig, to_dict
from recipe.errors import UserError
from recipe.settings import as_word, what_changed
from recipe.system.files import leaving, set_aside
from recipe.training import checkpoint_files, nodes
from recipe.training.callbacks import say
from recipe.training.checkpoint_files import FOLDER


@dataclass(frozen=True)
class Held:
    """What a machine has of a run. Small, as every rank is told of every machine's."""

    rank: int  # the machine's first, which looked
    machine: int
    run: tuple[str, str, int]  # which one: name, begin, seed
    finished: bool
    batch: int  # of its newest complete checkpoint; -1 for none
    starts: int


@dataclass(frozen=True)
class Found:
    """The run that goes on."""

    record: dict[str, Any]
    rank: int  # whose machine has the newest of it
    where: str  # for the terminal: nothing, if that is rank 0's


def find_run(config: TrainConfig) -> Found | None:
    """This very run, if a machine's `out` holds it; a folder that holds another is refused. The same on every rank.

    Raises:
        UserError: also for what no run may be written beside.
    """
    held = newest([one for one in nodes.of_machines(lambda: look(config)) if one], config.out)
    nodes.decided(lambda: check_folder(Path(config.out), held is not None))
    if held is None:
        return None
    record = nodes.decided(lambda: records.read_record(config.out), held.rank)
    return Found(record, held.rank, f" on machine {held.machine}" if held.rank else "")


def look(config: TrainConfig) -> Held | None:
    """What this machine has of the run.

    Raises:
        UserError: it has another one, or one that is not to go on.
    """
    out = Path(config.out)
    if not (out / records.FILE_NAME).is_file():
        return None
    if not config.autoresume:
        raise UserError(f"out={out} holds a run already; choose another folder, or continue it with autoresume=true")
    if link := leaving(out):
        raise UserError(f"{link}: a link that leaves the run's folder; copy what it leads to into its place")
    record = records.read_record(out)
    for key, (before, now) in what_changed(TrainConfig, record["config"], to_dict(config)).items():
        raise UserError(
            f"out={out} holds a run with {key}={as_word(before)}, and now {key}={as_word(now)}; "
            "resume with the same settings, or choose another folder"
        )
    file, _ = checkpoint_files.newest_whole(out)  # refused before anything is written
    return Held(
        rank=dist.get_global_rank(),
        machine=dist.get_node_rank(),
        run=(record["name"], record["provenance"]["started"], record["config"]["seed"]),
        finished=record["status"] == "finished",
        batch=checkpoint_files.batch_of(file) if file else -1,
        starts=len(record.get("resumed", [])),
    )


def newest(held: Sequence[Held], out: str) -> Held | None:
    """The one to continue; of equal ones rank 0's, so that nothing moves.

    Raises:
        UserError: they are of different runs.
    """
    runs: dict[tuple, Held] = {}
    for one in held:
        runs.setdefault(one.run, one)
    if len(runs) > 1:
        said = ", ".join(f"machine {one.machine} has {name} of {began}" for (name, began, _), one in runs.items())
        raise UserError(
            f"out={out} holds different runs: {said}; move the folder away where the run is not to go on, or choose another"
        )
    return max(held, key=lambda one: (one.finished, one.batch, one.starts, -one.rank), default=None)


def check_folder(out: Path, goes_on: bool) -> None:
    """Raise a `UserError` unless a run can be written at rank 0's `out`, or is there; `goes_on` if some machine has it."""
    if not out.exists() or (out / records.FILE_NAME).is_file():
        return
    found = {file.name for file in out.iterdir()}
    if found - {FOLDER}:
        raise UserError(f"out={out} is not empty and holds no run; choose another folder")
    if found and not goes_on:  # it is what Composer and `nodes.bring` leave on machines that are not rank 0's
        raise UserError(
            f"out={out}: this machine had a part in a run whose record is on another one; start it together with that one, or "
            "choose another folder"
        )


def last_checkpoint(out: Path, run: Found | None) -> Path | None:
    """The one that the run continues from, on this machine; None before there is one."""
    if run is None:
        return None
    file, torn = nodes.decided(lambda: checkpoint_files.newest_whole(out), run.rank)
    for one in torn:
        say(
            f"  {one}{run.where} is torn, as if the run was killed while writing it; "
            f"{'passed over' if file else 'starting again'}"
        )
        if dist.get_global_rank() == run.rank:
            set_aside(one)
    batch = checkpoint_files.batch_of(file) if file else -1
    for said in sum(nodes.of_machines(lambda: others_aside(out, batch)), []):
        say(f"  {said}")
    if file is None:
        return None
    if run.where:
        say(f"  continues from {file.name}{run.where}; from now on the run is in {out} on machine 0")
    return nodes.bring(out / FOLDER / file.name, run.rank)


def others_aside(out: Path, batch: int) -> list[str]:
    """Set aside what this machine has of later batches, which the run writes anew; what to say of it. The machine that the run
    continues from has no such file any more."""
    said = []
    for file in checkpoint_files.later(out, batch):
        with suppress(FileNotFoundError):  # another machine has the same folder
            set_aside(file)
            said.append(
                f"{file} on machine {dist.get_node_rank()} is later than what the run continues from; set aside"
            )
    return said
