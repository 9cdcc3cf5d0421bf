"""Which run goes on, and from which checkpoint.

Machines may share nothing, and under an elastic launch any of them may have become rank 0. So each says what its own folder has,
and rank 0 what the object store `save_folder` has. The newest of all goes on, wherever it is: its record and its checkpoint move
to rank 0's folder, which is the run's from then on. What another machine has of the run stays there as it was, for the day when
it is all that is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from composer.utils import dist

from recipe import records
from recipe.config import TrainConfig, to_dict
from recipe.errors import UserError
from recipe.settings import as_word, what_changed
from recipe.system.files import entries, leaving, set_aside
from recipe.training import checkpoint_files, checkpoint_store, nodes
from recipe.training.callbacks import say
from recipe.training.checkpoint_files import FOLDER
from recipe.training.checkpoint_store import Saved


@dataclass(frozen=True)
class Held:
    """What a machine, or the store, has of a run. Small, as every rank is told of every machine's."""

    rank: int  # the machine's first, which looked
    place: str  # in words
    run: tuple[str, str, int]  # which one: name, begin, seed
    finished: bool
    batch: int  # of its newest complete checkpoint; -1 for none
    starts: int
    stored: bool = False  # rank 0 has to fetch it


@dataclass(frozen=True)
class Found:
    """The run that goes on."""

    record: dict[str, Any]
    held: Held  # the newest of it
    saved: Saved  # what the store has of it
    beside: Held | None = None  # the newest that a machine has, where the store names a newer one

    def after_fetching(self, batch: int) -> Found:
        """The run, once the store's newest whole checkpoint is known: a machine may have a newer one than that."""
        return replace(self, held=self.beside) if self.beside and self.beside.batch > batch else self

    @property
    def where(self) -> str:
        """For the terminal: nothing, where rank 0 has it."""
        return f" on {self.held.place}" if self.held.rank else ""


def find_run(config: TrainConfig) -> Found | None:
    """This very run, if a machine's `out` holds it; a folder that holds another is refused. The same on every rank.

    Raises:
        UserError: also for what no run may be written beside.
    """
    held = [one for one in nodes.of_machines(lambda: look(config)) if one]
    stored = nodes.decided(lambda: look_into_store(config)) if config.save_folder else None
    chosen = newest([*held, *([stored.held] if stored else [])], config.out)
    nodes.decided(lambda: check_folder(Path(config.out), chosen is not None))
    if chosen is None:
        return None
    if chosen.stored:
        return replace(stored, beside=newest(held, config.out))
    record = nodes.decided(lambda: records.read_record(config.out), chosen.rank)
    return Found(record, chosen, stored.saved if stored else [])


def look(config: TrainConfig) -> Held | None:
    """What this machine has of the run.

    Raises:
        UserError: it has another one, or one that is not to go on.
    """
    out = Path(config.out)
    if not (out / records.FILE_NAME).is_file():
        return None
    check_autoresume(config, f"out={out}")
    if link := leaving(out):
        raise UserError(f"{link}: a link that leaves the run's folder; copy what it leads to into its place")
    record = records.read_record(out)
    check_settings(config, record, f"out={out}")
    file, _ = checkpoint_files.newest_whole(out)  # refused before anything is written
    batch = checkpoint_files.batch_of(file) if file else -1
    return held_of(record, batch, dist.get_global_rank(), f"machine {dist.get_node_rank()}")


def look_into_store(config: TrainConfig) -> Found | None:
    """What the store has of it.

    Raises:
        UserError: likewise; or the store fails, or `save_folder` is none.
    """
    where = f"save_folder={config.save_folder}"
    checkpoint_store.check_store(config.save_folder)
    stored = checkpoint_store.stored_record(config.save_folder)
    if stored is None:
        return None
    check_autoresume(config, where)
    record, saved = stored
    check_settings(config, record, where)
    held = held_of(record, max((one["batch"] for one in saved), default=-1), 0, where)
    return Found(record, replace(held, stored=True), saved)


def check_autoresume(config: TrainConfig, where: str) -> None:
    if not config.autoresume:
        raise UserError(f"{where} holds a run already; choose another folder, or continue it with autoresume=true")


def check_settings(config: TrainConfig, record: dict[str, Any], where: str) -> None:
    for key, (before, now) in what_changed(TrainConfig, record["config"], to_dict(config)).items():
        raise UserError(
            f"{where} holds a run with {key}={as_word(before)}, and now {key}={as_word(now)}; "
            "resume with the same settings, or choose another folder"
        )


def held_of(record: dict[str, Any], batch: int, rank: int, place: str) -> Held:
    return Held(
        rank=rank,
        place=place,
        run=(record["name"], record["provenance"]["started"], record["config"]["seed"]),
        finished=record["status"] == "finished",
        batch=batch,
        starts=len(record.get("resumed", [])),
    )


def newest(held: Sequence[Held], out: str) -> Held | None:
    """The one to continue; of equal ones a machine's, and rank 0's first, so that nothing moves.

    Raises:
        UserError: they are of different runs.
    """
    runs: dict[tuple, Held] = {}
    for one in held:
        runs.setdefault(one.run, one)
    if len(runs) > 1:
        said = ", ".join(f"{one.place} has {name} of {began}" for (name, began, _), one in runs.items())
        raise UserError(
            f"out={out}: different runs could go on: {said}; move away the folder whose run is not to, or choose others"
        )
    return max(held, key=lambda one: (one.finished, one.batch, not one.stored, one.starts, -one.rank), default=None)


def check_folder(out: Path, goes_on: bool) -> None:
    """Raise a `UserError` unless a run can be written at rank 0's `out`, or is there; `goes_on` if some machine has it."""
    if not out.exists() or (out / records.FILE_NAME).is_file():
        return
    found = {file.name for file in entries(out)}
    if found - {FOLDER}:
        raise UserError(f"out={out} is not empty and holds no run; choose another folder")
    if found and not goes_on:  # it is what Composer and `nodes.bring` leave on machines that are not rank 0's
        raise UserError(
            f"out={out}: this machine had a part in a run whose record is on another one; start it together with that one, or "
            "choose another folder"
        )


def last_checkpoint(config: TrainConfig, run: Found | None) -> Path | None:
    """The one that the run continues from, on this machine; None before there is one.

    Raises:
        UserError: it cannot be fetched.
    """
    if run is None:
        return None
    out = Path(config.out)
    if run.held.stored:
        for said in nodes.decided(lambda: checkpoint_store.fetch_newest(config.save_folder, run.saved, out)):
            say(f"  {said}")
    file, torn = nodes.decided(lambda: checkpoint_files.newest_whole(out), run.held.rank)
    fetched, run = run, run.after_fetching(checkpoint_files.batch_of(file) if file else -1)
    if run is not fetched:
        file, torn = nodes.decided(lambda: checkpoint_files.newest_whole(out), run.held.rank)
    rank = run.held.rank
    if run.held.stored and file is None:
        raise UserError(
            f"save_folder={config.save_folder}: no checkpoint in it is complete; to begin anew, choose another"
        )
    for one in torn:
        say(
            f"  {one}{run.where} is torn, as if the run was killed while writing it; "
            f"{'passed over' if file else 'starting again'}"
        )
        if dist.get_global_rank() == rank:
            set_aside(one)
    batch = checkpoint_files.batch_of(file) if file else -1
    for said in sum(nodes.of_machines(lambda: others_aside(out, batch)), []):
        say(f"  {said}")
    if file is None:
        return None
    if run.where:
        say(f"  continues from {file.name}{run.where}; from now on the run is in {out} on machine 0")
    return nodes.bring(out / FOLDER / file.name, rank)


def drop_brought(out: Path) -> None:
    """A checkpoint that was brought to a machine which has no record of the run is of no use there once it is loaded."""
    dist.barrier()  # all ranks have loaded it
    if dist.get_local_rank() == 0 and not (out / records.FILE_NAME).is_file():
        for file in checkpoint_files.later(out, -1):
            file.unlink()


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
