"""Fine-tuning on a user's own task: every kind on both forms of batches, its scores, its folder, restart, and the knobs."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score

from recipe import records
from recipe.config import FinetuneConfig, load, run_main
from recipe.errors import UserError
from recipe.finetune import jobs as finetune_jobs
from recipe.finetune.__main__ import finetune, main
from recipe.finetune.folder import open_fine_tuned
from recipe.finetune.kinds.sequence import balanced_classes, classification_loss
from recipe.finetune.layers import depths, freeze, slower_below
from recipe.finetune.own import OwnTask
from recipe.system import files
from recipe.system.hardware import find_hardware
from recipe.training.checkpoint import find_checkpoint
from tests.mistakes import refused
from tests.tiny.models import write_run
from tests.tiny.own import own_config, own_yaml, write_own

ROOT = Path(__file__).resolve().parents[1]
REAL = ROOT.parent / "shared" / "data"


LEARNT = {
    "classification": {},
    "multilabel": {"lr": 2e-3, "batch_size": 8, "epochs": 8.0},
    "regression": {"lr": 1e-2, "batch_size": 8, "epochs": 8.0},
    "entities": {"epochs": 2.0},
}


@pytest.mark.parametrize(
    ("kind", "model"),
    [*((kind, "mosaic_bert") for kind in LEARNT), ("classification", "hf_bert"), ("entities", "hf_bert")],
)
def test_every_kind_is_learnt_and_leaves_a_folder(tmp_path, kind, model, capsys):
    write_run(tmp_path / "run", model)
    write_own(tmp_path / "own")
    record = finetune(own_config(tmp_path, kind, **LEARNT[kind]))
    out, result = tmp_path / "run/finetune-mine", record["finetune"]
    assert result["score"] > 90 > result["constant"]["mine"] + 10 and record["status"] == "finished"
    assert records.read_record(out) == json.loads(json.dumps(record))
    assert (out / "jobs/19/run.json").is_file() and not (out / "jobs/19/model").exists()
    said = capsys.readouterr().out
    assert "[1/1] mine" in said and f"model in {out / 'model'}" in said and f"{kind}" in said
    found = open_fine_tuned(str(out))
    task, labels = found.task, result["labels"]
    assert (task["kind"], task["labels"], task["seed"]) == (kind, labels, 19) and task["metrics"] == result["tasks"][
        "mine"
    ]["metrics"]
    model = found.model(find_hardware("cpu", "fp32", 1))
    assert not model.training and find_checkpoint(str(out / "model")).name == "model"


def test_a_folder_of_scores_is_one_command_s_and_a_killed_one_s_draft_is_no_scores(tmp_path, run, monkeypatch):
    write_own(tmp_path / "own", 40)
    out = run / "finetune-mine"
    out.mkdir()
    (out / "run.json.12.34.tmp").touch()  # all that a command leaves that was killed in its first write
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with files.held(out):
        assert f"out={out}: another command scores there" in refused(finetune, own_config(tmp_path, epochs=1.0))
    assert finetune(own_config(tmp_path, epochs=1.0))["status"] == "finished"
    assert not list(out.rglob("*.tmp"))


def test_seeds_have_a_spread_and_the_best_on_dev_is_kept(tmp_path, run):
    write_own(tmp_path / "own", 80)
    record = finetune(own_config(tmp_path, seeds=[1, 2, 3], epochs=1.0, test=[], dev_share=0.3))
    task = record["finetune"]["tasks"]["mine"]
    scores = [one["score"] for one in task["runs"]]
    assert task["std"] == pytest.approx(np.std(scores, ddof=1)) and task["score"] == pytest.approx(np.mean(scores))
    best = [1, 2, 3][int(np.argmax(scores))]
    assert record["finetune"]["model"] == {"seed": best, "chosen_by": "best dev score"}
    lines = (run / "finetune-mine/jobs" / str(best) / "dev.tsv").read_text().splitlines()[1:]
    right = [label == said for label, said in (line.split("\t") for line in lines)]
    assert 100 * np.mean(right) == pytest.approx(max(scores))


def test_an_interrupted_run_continues_and_gives_the_same(tmp_path, run, monkeypatch, capsys):
    write_own(tmp_path / "own", 80)
    unbroken = finetune(own_config(tmp_path, seeds=[1, 2], epochs=1.0, out=str(tmp_path / "unbroken")))
    real = finetune_jobs.fine_tune

    def stopping(model, kind, fit, *rest):
        if fit.seed == 2:
            raise KeyboardInterrupt
        return real(model, kind, fit, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(finetune_jobs, "fine_tune", stopping)
        finetune(own_config(tmp_path, seeds=[1, 2], epochs=1.0))
    out = run / "finetune-mine"
    assert records.read_record(out)["status"] == "running" and not (out / "model").exists()
    assert "its fine-tuning has not ended" in refused(open_fine_tuned, str(out))
    record = finetune(own_config(tmp_path, seeds=[1, 2], epochs=1.0))
    assert "1 of 2 jobs were done before" in capsys.readouterr().out
    metrics = [[one["metrics"] for one in found["finetune"]["tasks"]["mine"]["runs"]] for found in (record, unbroken)]
    assert metrics[0] == metrics[1]
    weights = [load_file(folder / "model/model.safetensors") for folder in (out, tmp_path / "unbroken")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    finetune(own_config(tmp_path, seeds=[1, 2], epochs=1.0))
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"holds scores with epochs=1\.0, and now epochs=2\.0"):
        finetune(own_config(tmp_path, seeds=[1, 2], epochs=2.0))


def test_changed_files_run_again(tmp_path, run):
    write_own(tmp_path / "own", 40)
    first = finetune(own_config(tmp_path, epochs=1.0))
    with (tmp_path / "own/train.csv").open("a") as stream:
        stream.write("a red house,colour\n")
    again = finetune(own_config(tmp_path, epochs=1.0))
    assert (
        again["finetune"]["tasks"]["mine"]["train_examples"]
        == 41
        == first["finetune"]["tasks"]["mine"]["train_examples"] + 1
    )


def test_a_fine_tuned_folder_is_fine_tuned_again(tmp_path, run):
    write_own(tmp_path / "own", 40)
    finetune(own_config(tmp_path, epochs=1.0))
    again = own_config(tmp_path, "regression", checkpoint=str(run / "finetune-mine/model"), out=str(tmp_path / "two"))
    assert finetune(again)["finetune"]["tasks"]["mine"]["score"] is not None


def test_entity_f1_stands_by_type_too(tmp_path, run, capsys):
    write_own(tmp_path / "own", 80)
    task = finetune(own_config(tmp_path, "entities", max_length=8))["finetune"]["tasks"]["mine"]
    assert list(task["entity_f1"]) == ["ANIMAL"] and task["entity_f1"]["ANIMAL"] == pytest.approx(task["score"])
    said = capsys.readouterr().out
    assert "ANIMAL       F1" in said and "sentences beyond 8 tokens are read in" in said


def test_a_row_too_long_is_said(tmp_path, run, capsys):
    write_own(tmp_path / "own", 40)
    with (tmp_path / "own/train.csv").open("a") as stream:
        stream.write(f"{'red house ' * 40},colour\n")
    finetune(own_config(tmp_path, epochs=1.0))
    said = capsys.readouterr().out
    assert "note: train: 1 of 41 rows are longer than max_length=48 tokens and are cut, the first at" in said
    assert "train.csv:42" in said


def test_a_pool_s_processes_get_the_examples_that_were_read(tmp_path, run, monkeypatch):
    write_own(tmp_path / "own", 20)
    source = OwnTask(own_config(tmp_path))
    read = source.data
    shutil.rmtree(tmp_path / "own")
    assert pickle.loads(pickle.dumps(source)).data == read


def test_early_stopping_keeps_the_best_epoch(tmp_path, run):
    """Learnt after a few epochs, nothing gets better: training ends long before its 40 epochs, with the weights of the best."""
    write_own(tmp_path / "own", 160)
    record = finetune(own_config(tmp_path, epochs=40.0, early_stopping=2))
    assert record["sequences"] < 20 * 144 and record["finetune"]["tasks"]["mine"]["score"] > 90
    assert record["finetune"]["tasks"]["mine"]["runs"][0]["choosing"] > 90
    assert record["finetune"]["model"]["chosen_by"] == "best dev score"


def test_freezing_the_encoder_trains_the_head_alone(tmp_path, run):
    write_own(tmp_path / "own", 40)
    finetune(own_config(tmp_path, epochs=1.0, freeze_layers=-1))
    before = load_file(run / "encoder/model.safetensors")
    after = load_file(run / "finetune-mine/model/model.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items() if name.startswith("encoder."))
    finetune(own_config(tmp_path, epochs=1.0, freeze_layers=1, out=str(tmp_path / "one")))
    after = load_file(tmp_path / "one/model/model.safetensors")
    moved = {
        name.split(".")[2]
        for name, tensor in after.items()
        if "layers." in name and not torch.equal(tensor, before[name])
    }
    assert moved == {"1"} and torch.equal(
        after["encoder.embeddings.word.weight"], before["encoder.embeddings.word.weight"]
    )
    with pytest.raises(UserError, match="freeze_layers=9: the encoder has 2 layers"):
        finetune(own_config(tmp_path, epochs=1.0, freeze_layers=9, out=str(tmp_path / "nine")))


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_layers_below_learn_more_slowly(tmp_path, model):
    checkpoint = find_checkpoint(str(write_run(tmp_path / "run", model)))
    from recipe.finetune.kinds import CLASSIFICATION

    net = checkpoint.fine_tuned(CLASSIFICATION, 2, checkpoint.resolve_backends(find_hardware("cpu", "fp32", 1)))
    found = depths(net)
    assert set(found.values()) == {0, 1, 2, 3} and all(
        found[name] == 3 for name in found if "classifier" in name or "pooler" in name
    )
    optimizer = slower_below(torch.optim.AdamW(net.parameters(), lr=1.0), net, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5, 0.25, 0.125]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(found)
    freeze(net, 2)
    assert {found[name] for name, parameter in net.named_parameters() if parameter.requires_grad} == {3}


def test_rare_classes_count_as_much_as_others(tmp_path, run, monkeypatch):
    labels = np.array([0, 0, 0, 1, -100])
    weights = balanced_classes(labels, 3)
    assert weights.tolist() == pytest.approx([4 / 9, 4 / 3, 0])
    logits = torch.randn(4, 3)
    loss = classification_loss(logits, torch.tensor([0, 0, 0, 1]), torch.from_numpy(weights))
    each = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0, 0, 1]), reduction="none")
    torch.testing.assert_close(loss, (each * torch.tensor([4 / 9] * 3 + [4 / 3])).mean())
    seen, real = [], finetune_jobs.fine_tune

    def watched(model, kind, fit, *rest):
        seen.append(fit.weights)
        return real(model, kind, fit, *rest)

    monkeypatch.setattr(finetune_jobs, "fine_tune", watched)
    write_own(tmp_path / "own", 20)
    rows = (tmp_path / "own/train.csv").read_text().splitlines()
    (tmp_path / "own/train.csv").write_text("\n".join(rows[:16]) + "\n")  # 10 colours, 5 animals
    for weights in ("none", "balanced"):
        finetune(own_config(tmp_path, epochs=1.0, class_weights=weights, out=str(tmp_path / weights)))
    assert seen[0] is None and seen[1].tolist() == pytest.approx([15 / 10, 15 / 20])


def test_macro_f1_is_scikit_learn_s(tmp_path, run):
    write_own(tmp_path / "own", 80)
    record = finetune(own_config(tmp_path, epochs=1.0, metrics=["macro_f1", "matthews", "accuracy"]))
    lines = (run / "finetune-mine/jobs/19/test.tsv").read_text().splitlines()[1:]
    gold, said = zip(*(line.split("\t") for line in lines), strict=True)
    metrics = record["finetune"]["tasks"]["mine"]["metrics"]
    assert metrics["macro_f1"] == pytest.approx(100 * f1_score(gold, said, average="macro")) and len(metrics) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train=[none.csv]"], "none.csv: no such file"),
        (["label=lable"], "did you mean `label`?"),
        (["kind=clasification"], "did you mean `classification`?"),
        (["max_length=100000", "max_tokens=100"], "max_tokens=100: a text of max_length=100000 has more"),
        (["checkpoint={tmp}/nowhere"], "no such file or folder"),
        (["epoch=3"], "did you mean `epochs`?"),
        (["layer_decay=0"], "must be above 0"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(tmp_path, run, capsys, words, message):
    write_own(tmp_path / "own", 20)
    yaml = own_yaml(tmp_path)
    assert run_main(FinetuneConfig, main, [str(yaml), *(word.format(tmp=tmp_path) for word in words)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert sorted(path.name for path in run.iterdir()) == ["encoder", "run.json"]


@pytest.mark.parametrize("file", sorted(ROOT.glob("yamls/finetune/*.yaml")), ids=lambda file: file.stem)
def test_the_yaml_files_read_the_real_data(file):
    config = load(
        FinetuneConfig, str(file), ["checkpoint=runs/any", *(["train=[x.csv]"] if file.stem == "own" else [])]
    )
    folders = {"banking77": "intents", "conll2003": "ner", "stsb-embedding": "glue/STS-B"}
    folder = folders.get(file.stem, "pairs")
    if file.stem in ("own", "clinc150"):
        return
    if not (REAL / folder).is_dir():
        pytest.skip(f"{REAL / folder} is not there")
    config.data = str(REAL / folder)
    data = OwnTask(config).data
    sizes = {"banking77": (10_001, 3_080, 77), "conll2003": (14_041, 3_453, 9), "sick-entailment": (4_500, 4_927, 3),
             "sick-relatedness": (4_500, 4_927, 0), "stsb-embedding": (1_406, 1_500, 0)}  # fmt: skip
    assert (len(data.train), len(data.dev["test"]), len(data.labels)) == sizes[file.stem]
