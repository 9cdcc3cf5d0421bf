"""Fine-tuning scored on a tuning split: apart from the development scores in every place where scores stand."""

from __future__ import annotations

import pytest

from recipe import records
from recipe.cost import frontier
from recipe.errors import UserError
from recipe.glue import glue
from tests.tiny.configs import glue_config as config
from tests.tiny.tasks import write_sst2, write_tsv


def test_a_tuning_split_is_scored_and_kept_apart(tmp_path, run, capsys):
    write_sst2(tmp_path / "data", train=640, dev=16)
    (tmp_path / "data" / "SST-2" / "dev.tsv").unlink()  # choosing never reads it
    write_tsv(tmp_path / "data" / "SST-2" / "test.tsv", [("index", "sentence"), (0, "the red house")])
    record = glue(config(tmp_path, split="tuning"))
    task = record["glue"]["tasks"]["SST-2"]
    assert (task["train_examples"], task["dev_examples"]) == (576, 64) and record["sequences"] == 4 * 576
    assert task["metrics"] == {"accuracy": task["score"]} and task["score"] > 80
    assert record["glue"]["protocol"]["split"] == "tuning"
    out = capsys.readouterr().out
    assert "; on the tuning split)" in out and "scores of split=tuning, not those of" in out
    folder = run / "glue-tuning"
    assert records.read_record(run)["glue"] is None and records.read_record(folder)["status"] == "finished"
    assert (folder / "jobs" / "SST-2-19" / "tuning.tsv").is_file() and not (folder / "submission").exists()


def test_tuning_and_development_scores_share_no_frontier(tmp_path, run):
    write_sst2(tmp_path / "data", train=64, dev=16)
    found = [glue(config(tmp_path, epochs=1.0, split=split)) for split in ("dev", "tuning")]
    assert "split" not in found[0]["glue"]["protocol"]  # as in records from before there was a choice
    runs = [{**records.read_record(run), "glue": one["glue"]} for one in found]
    with pytest.raises(UserError, match=r"protocol\.split"):
        frontier.points_of(runs)


def test_scores_from_before_there_was_a_choice_are_development_scores(tmp_path, run, capsys):
    write_sst2(tmp_path / "data", train=32, dev=16)
    glue(config(tmp_path, epochs=1.0))
    record = records.read_record(run / "glue")
    del record["config"]["split"]
    records.write_record(run / "glue", record)
    glue(config(tmp_path, epochs=1.0))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds scores with split=dev, and now split=tuning"):
        glue(config(tmp_path, epochs=1.0, split="tuning", out=str(run / "glue")))


def test_another_split_is_refused(tmp_path, run):
    write_sst2(tmp_path / "data", train=32, dev=16)
    with pytest.raises(UserError, match="split=train: must be one of dev, tuning"):
        glue(config(tmp_path, split="train"))
    assert not (run / "glue").exists()
