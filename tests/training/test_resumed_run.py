"""Which machine's run goes on, from folders that real runs left."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from recipe.config import TrainConfig, load
from recipe.errors import UserError
from recipe.records import read_record, write_record
from recipe.training.checkpoint_files import later
from recipe.training.nodes import owned
from recipe.training.resume import Found, Held, check_folder, drop_brought, look, newest, others_aside
from tests.mistakes import refused
from tests.tiny.configs import train_yaml
from tests.tiny.runs import run, stop_at


@pytest.fixture(scope="module")
def begun(tmp_path_factory, tiny_dataset) -> tuple[Path, Path]:
    """A config, and the folder of a run that ended early, with checkpoints at 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("begun")
    yaml = train_yaml(folder, tiny_dataset, "duration=9ba", "checkpoint_every=1ba", "keep_checkpoints=3", "device=cpu")
    with pytest.raises(KeyboardInterrupt):
        run(yaml, callbacks=[stop_at(4)])
    return yaml, folder / "run"


@pytest.fixture
def machine(begun, tmp_path):
    """What a machine says of a folder of its own: the run's, without some of its checkpoints, another of them torn."""

    def has(number: int, *, lacks: tuple[int, ...] = (), torn: int = 0, **changes) -> Held:
        out = tmp_path / str(number)
        shutil.copytree(begun[1], out, symlinks=True)
        checkpoint = "checkpoints/ba{}-rank0.pt".format
        for batch in lacks:
            (out / checkpoint(batch)).unlink()
        if torn:
            whole = (out / checkpoint(torn)).read_bytes()
            (out / checkpoint(torn)).write_bytes(whole[: len(whole) // 2])
        write_record(out, read_record(out) | changes)
        found = look(load(TrainConfig, str(begun[0]), [f"out={out}", "autoresume=true"]))
        return replace(found, rank=number, place=f"machine {number}")

    return has


def test_the_newest_complete_checkpoint_goes_on_wherever_it_is(machine):
    held = [machine(0, lacks=(2, 3)), machine(1, torn=3), machine(2, lacks=(3,))]
    assert [one.batch for one in held] == [1, 2, 2]
    assert newest(held, "run") is held[1]
    assert newest([held[0], replace(held[2], starts=1), held[1]], "run").rank == 2, "its record is the newer one"
    assert newest([held[1], replace(held[0], finished=True)], "run").rank == 0
    assert newest([replace(held[1], stored=True), held[2]], "run") is held[2], "nothing need be fetched"
    assert newest([], "run") is None


def test_a_torn_one_in_the_store_does_not_hide_a_whole_one_of_a_machine(machine):
    held = machine(1)
    stored = Found({}, replace(held, rank=0, batch=8, stored=True), [], beside=held)
    assert stored.after_fetching(8) is stored, "it was whole"
    assert stored.after_fetching(2).held is held and "machine 1" in stored.after_fetching(2).where
    assert stored.after_fetching(held.batch) is stored, "nothing need move"


def test_of_equal_ones_rank_0_keeps_its_own(machine):
    assert newest([machine(0), machine(1)], "run").rank == 0


def test_different_runs_are_one_line(machine):
    ours = machine(0)
    other = machine(1, provenance={"started": "2026-01-02T03:04:05+00:00"})
    assert refused(newest, [ours, replace(ours, rank=1), other], "run") == (
        f"out=run: different runs could go on: machine 0 has run of {ours.run[1]}, machine 1 has run of {other.run[1]}; "
        "move away the folder whose run is not to, or choose others"
    )


def test_a_machine_that_had_a_part_only_joins_and_does_not_begin_anew(tmp_path):
    out = tmp_path / "run"
    check_folder(out, goes_on=False)
    (out / "checkpoints").mkdir(parents=True)
    check_folder(out, goes_on=True)
    assert refused(check_folder, out, goes_on=False).startswith(
        f"out={out}: this machine had a part in a run whose record"
    )
    (out / "notes.txt").write_text("mine")
    assert refused(check_folder, out, goes_on=True) == f"out={out} is not empty and holds no run; choose another folder"


def test_what_a_machine_has_of_later_batches_is_set_aside_and_named(machine, tmp_path):
    machine(1, torn=3)
    file = tmp_path / "1/checkpoints/ba3-rank0.pt"
    assert others_aside(tmp_path / "1", 2) == [
        f"{file} on machine 0 is later than what the run continues from; set aside"
    ]
    assert not file.exists() and file.with_name("ba3-rank0.pt.torn").exists()
    assert others_aside(tmp_path / "1", 2) == []


def test_a_checkpoint_stays_where_the_run_is_and_nowhere_else(machine, tmp_path):
    machine(0), machine(1)
    (tmp_path / "1/run.json").unlink()
    for number in (0, 1):
        drop_brought(tmp_path / str(number))
    assert len(later(tmp_path / "0", -1)) == 3 and not later(tmp_path / "1", -1)


def test_a_folder_whose_run_was_killed_in_its_first_write_is_empty(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / ".run.json.4711.140000.tmp").write_text("{")
    check_folder(out, goes_on=False)
    with owned(out, resumes=False):
        pass
    (out / "run.json.tmp").write_text("{")  # nobody's draft
    with pytest.raises(UserError, match="is not empty and holds no run"):
        check_folder(out, goes_on=False)


def test_a_run_that_goes_on_keeps_as_many_checkpoints_as_another(begun, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(begun[1], out, symlinks=True)
    run(begun[0], f"out={out}", "autoresume=true")
    assert sorted(file.name for file in (out / "checkpoints").glob("ba*")) == [f"ba{n}-rank0.pt" for n in (7, 8, 9)]
