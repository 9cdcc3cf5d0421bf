import dataclasses
import json
from pathlib import Path

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from recipe import records
from recipe.config import Cost, GlueConfig, load, run_main
from recipe.errors import UserError
from recipe.finetune import jobs as glue_jobs
from recipe.glue import glue, main
from tests.tiny.configs import glue_config as config
from tests.tiny.configs import glue_yaml
from tests.tiny.models import write_encoder, write_run
from tests.tiny.runs import composer_checkpoint
from tests.tiny.tasks import write_inference, write_sst2, write_stsb, write_tsv

REAL = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "glue"
ROOT = Path(__file__).resolve().parents[1]


def test_a_separable_task_is_learnt_and_recorded(tmp_path, run, capsys):
    write_sst2(tmp_path / "data")
    record = glue(config(tmp_path, seeds=2))
    out = capsys.readouterr().out
    result = record["glue"]
    task = result["tasks"]["SST-2"]
    assert task["score"] > 95 and task["metrics"] == {"accuracy": task["score"]} and task["init"] == "pretrained"
    assert [run["seed"] for run in task["runs"]] == [19, 8364] and task["std"] is not None
    assert (result["benchmark"], result["of"], result["score"]) == ("GLUE", 8, task["score"])
    assert result["absent"] == ["MNLI", "QQP", "QNLI", "CoLA", "RTE", "MRPC", "STS-B"]
    assert "1 of 8 GLUE tasks; absent: MNLI, QQP, QNLI, CoLA, RTE, MRPC, STS-B" in out
    assert out.count("SST-2      seed") == 2 and "\n  attention " in out and "CUDA" not in out
    assert (record["status"], record["kind"], record["model"]) == ("finished", "glue", "mosaic_bert")
    assert record["batches"] == 2 * 4 * 20 and record["sequences"] == 2 * 4 * 320
    seconds = sum(run["seconds"] for run in task["runs"])
    assert result["cost"]["seconds"] == pytest.approx(seconds)
    assert result["cost"]["usd"] == pytest.approx(seconds * record["device"]["count"])
    assert records.read_record(run / "glue") == json.loads(json.dumps(record))
    pretraining = records.read_record(run)
    assert (pretraining["glue"], pretraining["kind"], pretraining["batches"]) == (result, "pretrain", 7)


def test_without_a_signal_nothing_is_learnt(tmp_path, run):
    """The separable task again, its training labels dealt out at random: a score that is still high would be a leak."""
    write_sst2(tmp_path / "data")
    file = tmp_path / "data" / "SST-2" / "train.tsv"
    header, *rows = file.read_text().splitlines()
    texts, labels = [row.split("\t")[0] for row in rows], torch.randperm(len(rows), generator=torch.manual_seed(0)) % 2
    file.write_text("\n".join([header, *(f"{text}\t{int(label)}" for text, label in zip(texts, labels, strict=True))]))
    assert glue(config(tmp_path))["glue"]["score"] < 85


def test_the_same_seed_gives_the_same_numbers(tmp_path, run):
    write_stsb(tmp_path / "data")
    scores = [
        glue(config(tmp_path, seeds=2, epochs=1.5, out=str(tmp_path / name)))["glue"]["tasks"]["STS-B"]["runs"]
        for name in ("first", "second")
    ]
    first, second = ([job["metrics"] for job in jobs] for jobs in scores)
    assert first == second and first[0] != first[1]
    assert set(first[0]) == {"pearson", "spearman"}


def test_hugging_faces_bert_learns_the_same_task(tmp_path):
    run = write_run(tmp_path / "run", "hf_bert")
    write_sst2(tmp_path / "data")
    write_stsb(tmp_path / "data")
    record = glue(config(tmp_path))
    assert record["model"] == "hf_bert" and record["glue"]["tasks"]["SST-2"]["score"] > 95
    assert records.read_record(run)["glue"]["score"] == record["glue"]["score"]
    with pytest.raises(UserError, match=r"max_length=256, but the model has 64 position embeddings; set max_length=64"):
        glue(config(tmp_path, max_length=256))


def spy(monkeypatch) -> dict[str, tuple[dict, dict]]:
    """What every job started from and what it left, by its name."""
    seen, real = {}, glue_jobs.fine_tune

    def watched(model, kind, job, *rest):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        outcome = real(model, kind, job, *rest)
        seen[job.name] = (before, {name: tensor.clone() for name, tensor in model.state_dict().items()})
        return outcome

    monkeypatch.setattr(glue_jobs, "fine_tune", watched)
    return seen


@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_rte_starts_from_what_mnli_left(tmp_path, monkeypatch, kind):
    write_run(tmp_path / "run", kind)
    write_inference(tmp_path / "data", "MNLI")
    write_inference(tmp_path / "data", "RTE", train=32)
    seen = spy(monkeypatch)
    result = glue(config(tmp_path, seeds=2, epochs=1))["glue"]
    assert {name: task["init"] for name, task in result["tasks"].items()} == {"MNLI": "pretrained", "RTE": "mnli"}
    assert set(result["tasks"]["MNLI"]["metrics"]) == {"accuracy_matched", "accuracy_mismatched"}
    before_mnli, after_mnli = seen["MNLI, seed 19"]
    for seed in (19, 8364):
        start, _ = seen[f"RTE, seed {seed}"]
        for name, tensor in start.items():
            if "classifier" in name:
                assert tensor.shape[0] == 2
            else:  # the pooler too
                assert torch.equal(tensor, after_mnli[name])
    changed = [name for name, tensor in before_mnli.items() if not torch.equal(tensor, after_mnli[name])]
    assert any("word" in name for name in changed) and any("pooler" in name for name in changed)


def test_without_mnli_rte_starts_from_pretraining(tmp_path, run, monkeypatch, capsys):
    write_inference(tmp_path / "data", "MNLI")
    write_inference(tmp_path / "data", "RTE", train=32)
    seen = spy(monkeypatch)
    result = glue(config(tmp_path, epochs=1, from_mnli=False))["glue"]
    assert result["tasks"]["RTE"]["init"] == "pretrained" and result["protocol"]["from_mnli"] is False
    assert "init: RTE from the pretrained encoder, as from_mnli=false" in capsys.readouterr().out
    start, left = seen["RTE, seed 19"][0], seen["MNLI, seed 19"][1]
    assert not torch.equal(start["encoder.embeddings.word.weight"], left["encoder.embeddings.word.weight"])
    result = glue(config(tmp_path, epochs=1, tasks=["RTE"], out=str(tmp_path / "alone")))["glue"]
    assert result["tasks"]["RTE"]["init"] == "pretrained" and "MNLI" in result["absent"]
    assert "init: RTE from the pretrained encoder, as MNLI is not among the tasks" in capsys.readouterr().out


def test_without_the_start_from_mnli_the_score_has_another_name(tmp_path, run, capsys):
    """Beside a published GLUE score it would mislead."""
    write_inference(tmp_path / "data", "RTE", train=32)
    write_sst2(tmp_path / "data", train=32, dev=16)
    words = ["checkpoint=" + str(run), f"data={tmp_path / 'data'}", "max_length=48", "cost.usd_per_hour=1", "epochs=1"]
    record = glue(load(GlueConfig, str(ROOT / "yamls/glue/glue5.yaml"), words))
    assert record["glue"]["benchmark"] == "GLUE" and record["glue"]["tasks"]["RTE"]["init"] == "pretrained"
    name = "2 tasks: GLUE-2, no MNLI start, dev; absent: MNLI"
    assert name in capsys.readouterr().out and name in (run / "glue" / "scores.md").read_text()
    glue(load(GlueConfig, str(ROOT / "yamls/glue/glue5.yaml"), [*words, "split=tuning"]))
    assert "2 tasks: GLUE-2, no MNLI start, tuning" in capsys.readouterr().out


def test_the_constant_answer_stands_beside_the_score(tmp_path, run, capsys):
    """By hand: the mean of the training set's numbers correlates with nothing; a class's share of the development set."""
    write_sst2(tmp_path / "data", train=32, dev=16)
    write_stsb(tmp_path / "data", train=32, dev=16)
    for name, labels in (("train", "10000"), ("dev", "0001")):
        text = "sentence\tlabel\n" + "".join(f"a red house\t{label}\n" for label in labels)
        (tmp_path / "data" / "SST-2" / f"{name}.tsv").write_text(text)
    record = glue(config(tmp_path, epochs=1.0))
    assert record["glue"]["constant"] == {"SST-2": 75.0, "STS-B": 0.0}
    head, row = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("task ", "SST-2  "))]
    assert row[head.index("constant")] == "75.00"


def test_scores_that_exist_are_returned_and_others_are_not_overwritten(tmp_path, run, capsys):
    write_sst2(tmp_path / "data", train=32, dev=16)
    first = glue(config(tmp_path, epochs=1.0))
    again = glue(config(tmp_path, epochs=1.0))
    assert again["glue"] == json.loads(json.dumps(first["glue"])) and "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds scores with epochs=1\.0, and now epochs=2\.0; choose another folder"):
        glue(config(tmp_path, epochs=2.0))
    with pytest.raises(UserError, match="holds a run of kind `pretrain`"):
        glue(config(tmp_path, out=str(run)))
    with pytest.raises(UserError, match="not empty and holds no scores"):
        glue(config(tmp_path, out=str(tmp_path / "data")))
    glue(config(tmp_path, epochs=2.0, out=str(tmp_path / "elsewhere")))
    assert "replace earlier ones" in capsys.readouterr().out


def stop_at(monkeypatch, name: str, error: BaseException) -> list[str]:
    """Make the job `name` raise; returns the list of the jobs that were begun."""
    begun, real = [], glue_jobs.fine_tune

    def watched(model, kind, fit, *rest):
        begun.append(fit.name)
        if fit.name == name:
            raise error
        return real(model, kind, fit, *rest)

    monkeypatch.setattr(glue_jobs, "fine_tune", watched)
    return begun


def without_times(glue: dict) -> dict:
    """The scores without what two runs of the same can differ in."""
    tasks = {
        name: task | {"runs": [{k: v for k, v in run.items() if k != "seconds"} for run in task["runs"]]}
        for name, task in glue["tasks"].items()
    }
    return {**glue, "tasks": tasks, "cost": None}


def test_an_interrupted_run_continues_with_the_jobs_that_are_missing(tmp_path, run, monkeypatch, capsys):
    write_inference(tmp_path / "data", "MNLI", train=48)
    write_inference(tmp_path / "data", "RTE", train=32)
    write_sst2(tmp_path / "data", train=32, dev=16)
    unbroken = glue(config(tmp_path, epochs=1, seeds=2, out=str(tmp_path / "unbroken")))
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_at(patched, "RTE, seed 8364", KeyboardInterrupt())
        glue(config(tmp_path, epochs=1, seeds=2))
    partial = records.read_record(run / "glue")
    assert partial["status"] == "running" and len(partial["glue"]["tasks"]["RTE"]["runs"]) == 1
    assert (run / "glue" / "jobs" / "MNLI-19" / "encoder.safetensors").is_file()
    begun = stop_at(monkeypatch, "", KeyboardInterrupt())
    capsys.readouterr()
    record = glue(config(tmp_path, epochs=1, seeds=2))
    assert begun == ["RTE, seed 8364"] and record["status"] == "finished"
    out = capsys.readouterr().out
    assert "5 of 6 jobs were done before" in out and "[6/6] RTE        seed 8364" in out
    assert without_times(record["glue"]) == without_times(unbroken["glue"])
    jobs = [records.read_record(folder) for folder in sorted((run / "glue" / "jobs").iterdir())]
    assert record["tokens"] == sum(job["tokens"] for job in jobs) == unbroken["tokens"]
    assert record["cost"]["usd"] == pytest.approx(sum(job["cost"]["usd"] for job in jobs))
    assert {job["job"]["init"] for job in jobs if job["job"]["task"] == "RTE"} == {"mnli"}
    assert not list(run.rglob("encoder.safetensors"))  # half a gigabyte of Base, and nothing needs it any more


def test_a_job_whose_files_changed_runs_again(tmp_path, run, monkeypatch):
    write_sst2(tmp_path / "data", train=32, dev=16)
    write_stsb(tmp_path / "data", train=32, dev=16)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        stop_at(patched, "STS-B, seed 19", KeyboardInterrupt())
        glue(config(tmp_path, epochs=1))
    with (tmp_path / "data" / "SST-2" / "dev.tsv").open("a") as file:
        file.write("a red house\t0\n")
    begun = stop_at(monkeypatch, "", KeyboardInterrupt())
    record = glue(config(tmp_path, epochs=1))
    assert begun == ["SST-2, seed 19", "STS-B, seed 19"] and record["glue"]["tasks"]["SST-2"]["dev_examples"] == 17


def test_more_processes_than_cores_are_refused(tmp_path, run):
    write_sst2(tmp_path / "data", train=8, dev=8)
    with pytest.raises(UserError, match=r"processes=\d+: give 1 to \d+, as many as there are cores"):
        glue(config(tmp_path, processes=10_000))


def test_one_bad_task_is_one_line_and_the_others_go_on(tmp_path, run, capsys):
    write_sst2(tmp_path / "data", train=32, dev=16)
    write_inference(tmp_path / "data", "MNLI", train=24)
    write_inference(tmp_path / "data", "RTE", train=16)
    write_stsb(tmp_path / "data", train=32, dev=16)
    broken = tmp_path / "data" / "MNLI" / "dev_matched.tsv"
    text = broken.read_text()
    broken.write_text(text + "1\tone\ttwo\tperhaps\n")
    yaml = glue_yaml(tmp_path, epochs=1.0)
    assert run_main(GlueConfig, main, [str(yaml)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert f"MNLI: {broken}:18: label `perhaps`; known are entailment, neutral, contradiction" in errors[0]
    assert [line.split(":")[1] for line in errors[1:4]] == [" RTE", " STS-B", " MNLI; RTE; STS-B failed; repair and run the "
                                                            "same command again"]  # fmt: skip
    record = records.read_record(run / "glue")
    assert record["status"] == "incomplete" and list(record["glue"]["tasks"]) == ["SST-2"]
    assert list(record["glue"]["failed"]) == ["MNLI", "RTE", "STS-B"]
    assert "failed: MNLI" in (run / "glue" / "scores.md").read_text()
    assert records.read_record(run)["glue"] is None  # a score of fewer tasks is not the run's
    broken.write_text(text)
    assert run_main(GlueConfig, main, [str(yaml)]) == 0
    assert "1 of 4 jobs were done before" in capsys.readouterr().out
    assert len(records.read_record(run)["glue"]["tasks"]) == 4


def test_a_loss_that_runs_away_fails_its_job_alone(tmp_path, run, monkeypatch, capsys):
    write_sst2(tmp_path / "data", train=32, dev=16)
    write_stsb(tmp_path / "data", train=32, dev=16)
    stop_at(monkeypatch, "SST-2, seed 8364", UserError("SST-2, seed 8364: the loss ran away"))
    with pytest.raises(UserError, match="^SST-2, seed 8364 failed"):
        glue(config(tmp_path, epochs=1, seeds=2))
    tasks = records.read_record(run / "glue")["glue"]["tasks"]
    assert [len(task["runs"]) for task in tasks.values()] == [1, 2]
    assert "error: SST-2, seed 8364: the loss ran away\n" in capsys.readouterr().err


def columns(file: Path) -> list[list[str]]:
    """The columns of a TSV file with a header line, that line included."""
    return [list(column) for column in zip(*(line.split("\t") for line in file.read_text().splitlines()), strict=True)]


def test_metrics_are_those_of_the_stored_predictions(tmp_path, run):
    write_sst2(tmp_path / "data", train=64, dev=30)
    write_stsb(tmp_path / "data", train=64, dev=30)
    tasks = glue(config(tmp_path, epochs=2))["glue"]["tasks"]
    labels, predictions = (list(map(int, c[1:])) for c in columns(run / "glue" / "jobs" / "SST-2-19" / "dev.tsv"))
    assert tasks["SST-2"]["metrics"]["accuracy"] == pytest.approx(100 * accuracy_score(labels, predictions))
    labels, predictions = (list(map(float, c[1:])) for c in columns(run / "glue" / "jobs" / "STS-B-19" / "dev.tsv"))
    found = tasks["STS-B"]["metrics"]
    assert found["pearson"] == pytest.approx(100 * pearsonr(labels, predictions).statistic, rel=1e-4)
    assert found["spearman"] == pytest.approx(100 * spearmanr(labels, predictions).statistic, rel=1e-4)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/glue, which is not here")
def test_the_real_tasks_run_through_with_metrics_of_their_stored_predictions(tmp_path, run):
    settings = {"data": str(REAL), "max_train_examples": 32, "max_length": 16, "epochs": 1, "lr_scale": 1.0}
    record = glue(config(tmp_path, **settings))
    tasks = record["glue"]["tasks"]
    assert set(tasks) == {"CoLA", "MRPC", "RTE", "SST-2", "STS-B"} and not record["glue"]["failed"]
    assert {name: task["dev_examples"] for name, task in tasks.items()} == {
        "SST-2": 872, "CoLA": 1043, "RTE": 277, "MRPC": 408, "STS-B": 1500
    }  # fmt: skip
    of = {"accuracy": accuracy_score, "matthews": matthews_corrcoef, "pearson": lambda a, b: pearsonr(a, b).statistic,
          "f1": f1_score, "spearman": lambda a, b: spearmanr(a, b).statistic}  # fmt: skip
    for name, task in tasks.items():
        labels, predictions = (c[1:] for c in columns(run / "glue" / "jobs" / f"{name}-19" / "dev.tsv"))
        if name != "RTE":
            labels, predictions = ([float(value) for value in column] for column in (labels, predictions))
        for metric, value in task["metrics"].items():
            assert value == pytest.approx(100 * of[metric](labels, predictions), rel=1e-3, abs=1e-6), (name, metric)


def test_test_sets_are_predicted_in_the_form_that_the_benchmark_takes(tmp_path, run):
    data = tmp_path / "data"
    write_sst2(data, train=320, dev=80)
    write_stsb(data)
    write_inference(data, "MNLI", train=24)
    dev = [line.split("\t") for line in (data / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    write_tsv(data / "SST-2" / "test.tsv", [("index", "sentence"), *((n, text) for n, (text, _) in enumerate(dev))])
    pairs = [line.split("\t")[2:4] for line in (data / "STS-B" / "dev.tsv").read_text().splitlines()[1:]]
    backwards = [(100 - n, *pair) for n, pair in enumerate(reversed(pairs))]
    write_tsv(data / "STS-B" / "test.tsv", [("index", "sentence1", "sentence2"), *backwards])
    write_tsv(data / "MNLI" / "test_matched.tsv", [("index", "sentence1", "sentence2"), (0, "red", "blue")])
    record = glue(config(tmp_path, seeds=2))
    submission = run / "glue" / "submission"
    assert sorted(file.name for file in submission.iterdir()) == ["MNLI-m.tsv", "SST-2.tsv", "STS-B.tsv"]
    index, predictions = columns(submission / "SST-2.tsv")
    assert index == ["index", *map(str, range(80))] and predictions[0] == "prediction"
    right = [p == label for p, (_, label) in zip(predictions[1:], dev, strict=True)]
    best = max(job["score"] for job in record["glue"]["tasks"]["SST-2"]["runs"])
    assert 100 * sum(right) / 80 == pytest.approx(best)
    index, predictions = columns(submission / "STS-B.tsv")
    assert index[1:] == [str(n) for n, *_ in backwards]
    best = max(record["glue"]["tasks"]["STS-B"]["runs"], key=lambda job: job["score"])
    of_dev = columns(run / "glue" / "jobs" / f"STS-B-{best['seed']}" / "dev.tsv")[1][:0:-1]
    expected = [min(max(float(p), 0.0), 5.0) for p in of_dev]
    assert [float(p) for p in predictions[1:]] == pytest.approx(expected, abs=1e-4)
    assert columns(submission / "MNLI-m.tsv")[1][1] in ("entailment", "neutral", "contradiction")


def test_an_early_checkpoint_does_not_give_the_run_its_scores(tmp_path, run, capsys):
    from recipe.model.heads import MosaicBertForMaskedLM
    from recipe.training.checkpoint import find_checkpoint

    write_sst2(tmp_path / "data", train=32, dev=16)
    file = composer_checkpoint(run, MosaicBertForMaskedLM(find_checkpoint(str(run)).sizes))
    record = glue(config(tmp_path, checkpoint=str(file), epochs=1))
    assert record["name"] == "run-ba0" and (run / "glue-ba0" / "run.json").is_file()
    assert records.read_record(run)["glue"] is None and "stays as it is" in capsys.readouterr().out


def test_an_encoder_of_no_run(tmp_path):
    write_encoder(tmp_path / "alone")
    write_sst2(tmp_path / "data", train=32, dev=16)
    alone = config(tmp_path, checkpoint=str(tmp_path / "alone"), epochs=1)
    with pytest.raises(UserError, match="belongs to no run of this project; say where with out=FOLDER"):
        glue(alone)
    record = glue(dataclasses.replace(alone, out=str(tmp_path / "out")))
    assert record["name"] == "alone" and (tmp_path / "out" / "run.json").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["checkpoint={tmp}/nowhere"], "no such file or folder"),
        (["tasks=[Cola]"], "did you mean CoLA?"),
        (["tasks=[RTE]"], "RTE is not in"),
        (["data={tmp}/run"], "no task in it"),
        (["seeds=6"], "give 1 to 5"),
        (["processes=0"], "must be at least 1"),
        (["epochs=0"], "must be above 0"),
        (["lr_scale=-1"], "must be above 0"),
        (["max_length=4"], "must be at least 8"),
        (["max_tokens=200"], "a text of max_length=256 has more; set at least that"),
        (["max_train_examples=-1"], "0 for all"),
        (["device=tpu"], "must be one of auto, gpu, cpu"),
        (["cost.prices={tmp}/none.yaml"], "cannot read the price table"),
        (["sedes=1"], "did you mean `seeds`?"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, run, capsys, words, message):
    write_sst2(tmp_path / "data", train=8, dev=8)
    file = glue_yaml(tmp_path, max_length=256, cost=Cost())
    assert run_main(GlueConfig, main, [str(file), *(word.format(tmp=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(path.name for path in run.iterdir()) == ["encoder", "run.json"]


def test_a_broken_row_stops_before_anything_is_written(tmp_path, run, capsys):
    write_sst2(tmp_path / "data", train=8, dev=8)
    with (tmp_path / "data" / "SST-2" / "dev.tsv").open("a") as file:
        file.write("no label\n")
    assert run_main(GlueConfig, main, [str(glue_yaml(tmp_path))]) == 2
    assert "dev.tsv:10: 1 columns instead of 2" in capsys.readouterr().err and not (run / "glue").exists()


def test_several_ranks_are_refused(tmp_path, run, monkeypatch):
    monkeypatch.setattr("recipe.finetune.jobs.dist.get_world_size", lambda: 2)
    with pytest.raises(UserError, match="on one device, not 2 ranks"):
        glue(config(tmp_path))


FILES = [*ROOT.glob("yamls/glue/*.yaml"), *ROOT.glob("benchmarks/books/glue*.yaml")]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_yaml_files_are_valid(file):
    found = load(GlueConfig, str(file), ["checkpoint=runs/any", "data=any"])
    assert found.data and found.max_length >= 8
