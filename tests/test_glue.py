import dataclasses
import json
from pathlib import Path

import pytest
import torch

import recipe.glue
from recipe.config import GlueConfig, load, run_main
from recipe.cost import records
from recipe.errors import UserError
from recipe.glue import glue, main
from tests.tiny_encoder import write_encoder, write_inference, write_run, write_sst2, write_stsb

YAMLS = Path(__file__).resolve().parents[1] / "yamls" / "glue"


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small are slower on two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(tmp_path: Path, **values) -> GlueConfig:
    base = {"checkpoint": str(tmp_path / "run"), "data": str(tmp_path / "data"), "max_length": 48, "seeds": 1,
            "lr_scale": 100.0, "epochs": 4.0, "device": "cpu", "precision": "fp32"}  # fmt: skip
    found = GlueConfig(**{**base, **values})
    found.cost.usd_per_hour = 3600.0  # a dollar a core-second
    return found


@pytest.fixture
def run(tmp_path) -> Path:
    return write_run(tmp_path / "run")


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
    assert out.count("SST-2      seed") == 2 and "attention: " in out
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
    seen, real = {}, recipe.glue.fine_tune

    def watched(model, job, *rest):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        outcome = real(model, job, *rest)
        seen[job.name] = (before, {name: tensor.clone() for name, tensor in model.state_dict().items()})
        return outcome

    monkeypatch.setattr(recipe.glue, "fine_tune", watched)
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


def test_without_mnli_rte_starts_from_pretraining(tmp_path, run, monkeypatch):
    write_inference(tmp_path / "data", "MNLI")
    write_inference(tmp_path / "data", "RTE", train=32)
    seen = spy(monkeypatch)
    result = glue(config(tmp_path, epochs=1, from_mnli=False))["glue"]
    assert result["tasks"]["RTE"]["init"] == "pretrained" and result["protocol"]["from_mnli"] is False
    start, left = seen["RTE, seed 19"][0], seen["MNLI, seed 19"][1]
    assert not torch.equal(start["encoder.embeddings.word.weight"], left["encoder.embeddings.word.weight"])
    result = glue(config(tmp_path, epochs=1, tasks=["RTE"], out=str(tmp_path / "alone")))["glue"]
    assert result["tasks"]["RTE"]["init"] == "pretrained" and "MNLI" in result["absent"]


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


def test_an_interrupted_run_keeps_what_it_has(tmp_path, run, monkeypatch, capsys):
    write_sst2(tmp_path / "data", train=32, dev=16)
    write_stsb(tmp_path / "data", train=32, dev=16)
    real = recipe.glue.fine_tune

    def stops_at_stsb(model, job, *rest):
        if job.name.startswith("STS-B"):
            raise KeyboardInterrupt
        return real(model, job, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(recipe.glue, "fine_tune", stops_at_stsb)
        glue(config(tmp_path, epochs=1))
    partial = records.read_record(run / "glue")
    assert partial["status"] == "running" and partial["glue"]["tasks"]["SST-2"]["runs"]
    assert records.read_record(run)["glue"] is None  # half a score is not the run's
    assert glue(config(tmp_path, epochs=1))["status"] == "finished"
    assert "it starts anew" in capsys.readouterr().out
    assert len(records.read_record(run)["glue"]["tasks"]) == 2


def test_an_early_checkpoint_does_not_give_the_run_its_scores(tmp_path, run, capsys):
    from recipe.model.heads import MosaicBertForMaskedLM
    from recipe.training.checkpoint import find_checkpoint
    from tests.training.test_checkpoint import composer_checkpoint

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
        (["epochs=0"], "give a number above 0"),
        (["lr_scale=-1"], "give a factor above 0"),
        (["max_length=4"], "set at least 8"),
        (["max_train_examples=-1"], "or 0 for all"),
        (["device=tpu"], "known are auto, gpu, cpu"),
        (["cost.prices={tmp}/none.yaml"], "cannot read the price table"),
        (["sedes=1"], "did you mean `seeds`?"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, run, capsys, words, message):
    write_sst2(tmp_path / "data", train=8, dev=8)
    file = tmp_path / "glue.yaml"
    file.write_text(f"checkpoint: {run}\ndata: {tmp_path / 'data'}\ndevice: cpu\nprecision: fp32\n")
    assert run_main(GlueConfig, main, [str(file), *(word.format(tmp=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(path.name for path in run.iterdir()) == ["encoder", "run.json"]


def test_a_broken_row_stops_before_anything_is_written(tmp_path, run, capsys):
    write_sst2(tmp_path / "data", train=8, dev=8)
    with (tmp_path / "data" / "SST-2" / "dev.tsv").open("a") as file:
        file.write("no label\n")
    yaml = tmp_path / "glue.yaml"
    yaml.write_text(f"checkpoint: {run}\ndata: {tmp_path / 'data'}\n")
    assert run_main(GlueConfig, main, [str(yaml)]) == 2
    assert "dev.tsv:10: 1 columns instead of 2" in capsys.readouterr().err and not (run / "glue").exists()


def test_several_ranks_are_refused(tmp_path, run, monkeypatch):
    monkeypatch.setattr("recipe.glue.dist.get_world_size", lambda: 2)
    with pytest.raises(UserError, match="on one device, not 2 ranks"):
        glue(config(tmp_path))


@pytest.mark.parametrize("name", ["glue", "books", "demo"])
def test_the_yaml_files_are_valid(name):
    found = load(GlueConfig, str(YAMLS / f"{name}.yaml"), ["checkpoint=runs/any"])
    assert found.data and found.max_length >= 8
