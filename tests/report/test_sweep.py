"""Whole sweeps of tiny models: what they make, what they do again, and what a branch of a trunk is."""

import pytest

from recipe import records, train
from recipe.config import SweepConfig, load
from recipe.cost.frontier import BRANCH, Curve
from recipe.errors import UserError
from recipe.pareto import main
from recipe.report import study, sweep
from tests.tiny.configs import glue_yaml, train_yaml
from tests.tiny.records import rows_of
from tests.tiny.runs import losses, run
from tests.tiny.tasks import write_pairs, write_sst2


@pytest.fixture
def files(tmp_path, tiny_dataset):
    """A sweep's YAML beside those that it names."""
    words = ("data.sequence_length=32", "model.hidden_dropout_prob=0", "log_every=1", "device=cpu", "precision=fp32")
    train_yaml(tmp_path, tiny_dataset, *words)
    write_sst2(tmp_path / "data", train=32, dev=16)
    glue_yaml(tmp_path, max_length=24, epochs=1.0)
    (tmp_path / "sweep.yaml").write_text(
        f"out: {tmp_path / 'sweep'}\nglue: {tmp_path / 'glue.yaml'}\nmodels: ['{tmp_path / 'train.yaml'}']\n"
        "budgets: [5ba, 10ba]\n"
    )
    return tmp_path


def begun(monkeypatch, stop_at: str = "") -> list[str]:
    """The folders of the runs that were trained, in order; the one named is interrupted."""
    names, real = [], train.build_model

    def watched(plan):
        names.append(plan.out.name)
        if plan.out.name == stop_at:
            raise KeyboardInterrupt
        return real(plan)

    monkeypatch.setattr(train, "build_model", watched)
    return names


def test_a_sweep_is_resumed_and_then_done(files, monkeypatch, capsys):
    train_yaml = files / "train.yaml"
    models = f"models=['{train_yaml}','{train_yaml} model.name=hf_bert']"
    command = ["sweep", str(files / "sweep.yaml"), models, "budgets=[2ba,300tok]"]
    with monkeypatch.context() as patched:
        begun(patched, stop_at="mosaic_bert-300tok-s17")
        assert main(command) == 130
    names = begun(monkeypatch)
    assert main(command) == 0
    assert names == ["mosaic_bert-300tok-s17", "hf_bert-2ba-s17", "hf_bert-300tok-s17"]
    runs = {folder.name: records.read_record(folder) for folder in (files / "sweep" / "runs").iterdir()}
    assert set(runs) == {"mosaic_bert-2ba-s17", *names} and all(
        run["glue"]["score"] is not None for run in runs.values()
    )
    assert runs["hf_bert-2ba-s17"]["batches"] == 2 and runs["hf_bert-300tok-s17"]["tokens"] >= 300
    # each budget's schedule is its own: the last step of both is the first of a decay that ends there
    assert all(run["loss_curve"][-1]["lr"] < 5e-4 for run in runs.values())
    assert set(rows_of(files / "sweep" / "pareto" / "pareto.csv")) == set(runs)
    total = sum(run["cost"]["usd"] for run in runs.values())
    assert sweep.spent(files / "sweep")["usd"] == pytest.approx(total)
    capsys.readouterr()
    names.clear()
    assert main(command) == 0 and names == [] and capsys.readouterr().out.count("nothing to do") == 8


def test_a_branch_is_the_run_of_its_own_length_and_shares_its_trunk(files, capsys):
    assert main(["trunk", str(files / "sweep.yaml"), "decay=0.4"]) == 0
    out = files / "sweep"
    stem = records.read_record(out / "trunks" / "mosaic_bert-s17")
    short, long = (records.read_record(out / "runs" / f"trunk-mosaic_bert-{n}ba-s17") for n in (5, 10))
    assert stem["batches"] == 6 and (short["batches"], long["batches"]) == (5, 10)
    assert (short["trunk"]["batch"], long["trunk"]["batch"]) == (3, 6)
    # the trunk at batch 6 is all of it, so that the longest branch pays for its decay alone
    assert long["trunk"]["tokens"] == stem["tokens"] and long["trunk"]["cost"]["usd"] == pytest.approx(
        stem["cost"]["usd"]
    )
    assert short["trunk"]["cost"]["usd"] < short["cost"]["usd"] < long["cost"]["usd"]
    own = [run["cost"]["usd"] - run["trunk"]["cost"]["usd"] for run in (short, long)]
    assert sweep.spent(out)["usd"] == pytest.approx(stem["cost"]["usd"] + sum(own))
    assert sweep.spent(out)["usd"] < short["cost"]["usd"] + long["cost"]["usd"]
    lr = [row["lr"] / 5e-4 for row in long["loss_curve"]]
    # Composer sets a batch's rate by the progress before the batch before it, so that 0 comes twice.
    assert lr[2:8] == pytest.approx([1.0] * 6) and lr[8:] == pytest.approx([1 - 0.98 * (i / 4) ** 0.5 for i in (1, 2)])
    words = [f"out={files / 'alone'}", "duration=10ba", "schedule.shape=wsd"]
    words += [f"schedule.{key}={long['config']['schedule'][key]}" for key in ("decay", "warmup")]
    alone = run(files / "train.yaml", *words)
    assert losses(long) == pytest.approx(losses(alone), rel=1e-6) and long["tokens"] == alone["tokens"]
    rows = rows_of(out / "pareto" / "pareto.csv")
    assert {(row["model"], row["way"]) for row in rows.values()} == {("mosaic_bert", "branch")}
    # All were evaluated on one dataset, so that their losses are compared, that of the run without scores too.
    drawn = study.gather([out / "runs", files / "alone"], measure="loss")
    assert set(drawn.fronts) == {Curve("mosaic_bert", BRANCH), Curve("mosaic_bert")}
    assert len(alone["dataset"]["vocabulary_sha256"]) == 64 and alone["dataset"] == short["dataset"]
    assert float(rows["trunk-mosaic_bert-10ba-s17"]["own_usd"]) == pytest.approx(own[1])
    assert "in all; the runs one by one" in capsys.readouterr().out


def test_one_point_that_fails_leaves_the_others(files, monkeypatch, capsys):
    real = train.build_model

    def breaks(plan):
        if plan.out.name == "mosaic_bert-1ba-s17":
            raise UserError("no luck")
        return real(plan)

    monkeypatch.setattr(train, "build_model", breaks)
    assert main(["sweep", str(files / "sweep.yaml"), "budgets=[1ba,2ba]"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-2:] == [
        "error: mosaic_bert-1ba-s17: no luck",
        "error: mosaic_bert-1ba-s17 failed; repair and run the same command again: it continues with them",
    ]
    assert records.read_record(files / "sweep/runs/mosaic_bert-2ba-s17")["glue"]["score"] is not None


def test_a_sweep_scores_by_minimal_pairs_too(files, capsys):
    write_pairs(files / "pairs.jsonl", {"one": 48, "two": 48})
    (files / "pairs.yaml").write_text(f"data: {files / 'pairs.jsonl'}\ndevice: cpu\ncost: {{usd_per_hour: 3.6}}\n")
    command = ["sweep", str(files / "sweep.yaml"), f"pairs={files / 'pairs.yaml'}", "budgets=[2ba]"]
    assert main([*command, "glue=null"]) == 0
    record = records.read_record(files / "sweep/runs/mosaic_bert-2ba-s17")
    assert record["glue"] is None and record["pairs"]["score"] is not None
    assert sorted(file.name for file in (files / "sweep/pareto").glob("*.csv")) == ["pairs.csv"]
    assert main(command) == 0, "which scores it by fine-tuning as well, and trains nothing again"
    again = records.read_record(files / "sweep/runs/mosaic_bert-2ba-s17")
    assert again["glue"]["score"] is not None and again["pairs"] == record["pairs"]
    assert sorted(file.name for file in (files / "sweep/pareto").glob("*.csv")) == ["pairs.csv", "pareto.csv"]
    capsys.readouterr()


def test_hours_and_dollars_become_batches_by_a_runs_speed(files):
    measured = run(files / "train.yaml", f"out={files / 'm'}", "duration=6ba")
    hours, dollars = 2 * measured["cost"]["device_hours"], 2 * measured["cost"]["usd"]
    budgets = [f"budgets=['{hours:.9f}h','{dollars:.12f}usd']", f"speed={files / 'm'}"]
    config = load(SweepConfig, str(files / "sweep.yaml"), budgets)
    assert {sweep.duration_of(point, config) for point in sweep.points_of(config)} <= {"11ba", "12ba"}


@pytest.mark.parametrize(
    ("way", "words", "says"),
    [
        ("sweep", ["budgets=[]"], "give at least one"),
        ("sweep", ["seeds=[1,1]"], "none twice"),
        ("sweep", ["budgets=[10]"], "`10`: give 300ba"),
        ("sweep", ["budgets=[1usd]"], "needs a speed; give speed=RUN"),
        ("sweep", ["glue=nowhere.yaml"], "nowhere.yaml: no such file"),
        ("sweep", ["pairs=nowhere.yaml"], "nowhere.yaml: no such file"),
        ("sweep", ["glue=null"], "no scoring: give glue=YAML, pairs=YAML or both"),
        ("sweep", ["models=[nowhere.yaml]"], "nowhere.yaml: no such file"),
        ("trunk", ["budgets=[100tok]"], "a trunk branches at batches"),
        ("trunk", ["models=['{train} data.mask_rate_end=0.1']"], "no trunk is shared; use sweep"),
        ("trunk", ["models=['{train} average.steps=2']"], "set average.shape=ema, or use sweep"),
        ("trunk", ["decay=1.0"], "must be above 0 and below 1"),
        ("sweep", ["budget=[1ba]"], "did you mean `budgets`?"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(files, capsys, way, words, says):
    words = [word.replace("{train}", str(files / "train.yaml")) for word in words]
    assert main([way, str(files / "sweep.yaml"), *words]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and not (files / "sweep").exists()


def test_a_trunk_of_two_ranks(files):
    """Each pretraining in processes of its own, from the trunk's checkpoint on."""
    words = ["trunk", str(files / "sweep.yaml"), "ranks=2", "budgets=[4ba]", "decay=0.25"]
    assert main(words) == 0
    record = records.read_record(files / "sweep" / "runs" / "trunk-mosaic_bert-4ba-s17")
    assert record["status"] == "finished" and record["batches"] == 4 and record["trunk"]["batch"] == 4 - 1
    assert record["glue"]["score"] is not None
