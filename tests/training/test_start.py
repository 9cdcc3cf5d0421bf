"""`init_from`: whatever people have is what a run starts from, to the loss's last digit; what does not fit is one line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    ElectraConfig,
    ElectraForPreTraining,
    ModernBertConfig,
    ModernBertForMaskedLM,
)

import kernels
from recipe.config import TrainConfig, load, run_main
from recipe.convert import from_mosaicml_name
from recipe.data.batch import pad_batch
from recipe.model import huggingface
from recipe.plan import main as plan_main
from recipe.system.hardware import find_hardware
from recipe.train import build_model, main
from recipe.training.checkpoint import find_checkpoint
from recipe.training.preflight import Plan, make_plan
from tests.mistakes import refused
from tests.tiny.configs import train_yaml
from tests.tiny.families import write_family
from tests.tiny.models import write_encoder
from tests.tiny.runs import run
from tests.tiny.texts import WORDS, make_text, open_batches, write_dataset, write_text, write_vocabulary

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared/data/golden/mosaic_bert_4heads.safetensors"
ENTRIES = 480  # of the vocabulary, whose embedding is 512 rows
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    write_text(folder / "text.jsonl", make_text(200, 5))
    filler = [f"word{i}" for i in range(ENTRIES - 5 - 2 - len(WORDS))]
    return write_dataset(folder, write_vocabulary(folder, ("entry", ".", *WORDS, *filler)))


@pytest.fixture
def yaml(tmp_path, dataset) -> Path:
    """A run whose YAML says nothing of the model; without dropout, so that its first loss is the source's."""
    file = train_yaml(tmp_path, dataset, "model.hidden_dropout_prob=0", "duration=1ba", "log_every=1", "precision=fp32")
    text = file.read_text().splitlines()
    sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    file.write_text("\n".join(line for line in text if line.split(":")[0].strip() not in sizes) + "\n")
    return file


def planned(yaml: Path, source: Path | str, *words: str) -> Plan:
    return make_plan(load(TrainConfig, str(yaml), (f"init_from={source}", *words)))


def with_tokenizer(dataset: Path, folder: Path) -> Path:
    """`folder` with the dataset's tokenizer in it."""
    shutil.copytree(dataset / "tokenizer", folder, dirs_exist_ok=True)
    return folder


def bert(folder: Path, dataset: Path, rows: int = ENTRIES, **settings) -> Path:
    """A folder of Hugging Face's BERT with random weights that are far from alike."""
    torch.manual_seed(5)
    config = BertConfig(vocab_size=rows, max_position_embeddings=64, initializer_range=0.2, **BERT, **settings)
    BertForMaskedLM(config).save_pretrained(with_tokenizer(dataset, folder))
    return folder


def published(folder: Path, dataset: Path) -> Path:
    """The golden file's weights as the published repositories have them: a pickle, code, the wrong number of rows, no class."""
    with safe_open(GOLDEN, framework="pt") as file:
        sizes = json.loads(file.metadata()["config"])
        names = [name for name in list(file.keys()) if name.startswith("weight.")]  # the file object is no mapping
        weights = {name.removeprefix("weight."): file.get_tensor(name) for name in names}
    code = {"AutoConfig": "configuration_bert.BertConfig", "AutoModelForMaskedLM": "bert_layers.BertForMaskedLM"}
    config = {
        **sizes,
        "model_type": "bert",
        "vocab_size": ENTRIES,
        "auto_map": code,
        "architectures": ["BertForMaskedLM"],
    }
    with_tokenizer(dataset, folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "bert_layers.py").write_text("raise SystemExit('code of a repository was run')\n")
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def exported(folder: Path, dataset: Path) -> Path:
    """The same as this project exports it: the reference's names in safetensors."""
    published(folder, dataset)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights.pop("cls.predictions.decoder.weight")  # tied
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "pytorch_model.bin").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "mosaic_bert", "vocab_size": 512}))
    return folder


def first_batch(plan: Plan) -> dict:
    config = plan.config
    return next(iter(open_batches(config.data, config.batch_size, plan.batching, seed=config.seed)))


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the reference model's stored run is not here (shared/data/golden)")
@pytest.mark.parametrize("form", [published, exported])
def test_mosaic_bert_s_loss_is_the_reference_s_own(yaml, tmp_path, dataset, form):
    plan = planned(yaml, form(tmp_path / "source", dataset))
    assert (plan.config.model.name, plan.encoder.num_attention_heads, plan.encoder.vocab_size) == (
        "mosaic_bert",
        4,
        512,
    )
    model = build_model(plan)
    with safe_open(GOLDEN, framework="pt") as file:
        golden = {name: file.get_tensor(name) for name in list(file.keys()) if not name.startswith("grad.")}
    ids, places, cu_seqlens, longest = kernels.unpad(golden["input.input_ids"], golden["input.attention_mask"])
    labels = golden["input.labels"].flatten()[places]
    masked = (labels != -100).nonzero().flatten()
    batch = {
        "input_ids": ids,
        "cu_seqlens": cu_seqlens,
        "max_seqlen": longest,
        "masked_indices": masked,
        "labels": labels[masked],
    }
    batch["token_type_ids"] = golden["input.token_type_ids"].flatten()[places]
    torch.testing.assert_close(model(batch)["loss"], golden["output.loss"], rtol=0, atol=1e-5)
    for name in golden:
        if name.startswith("weight.") and (ours := from_mosaicml_name(name.removeprefix("weight."))):
            assert torch.equal(model.state_dict()[ours], golden[name]), name


@pytest.mark.skipif(not GOLDEN.is_file(), reason="the reference model's stored run is not here (shared/data/golden)")
def test_a_published_encoder_is_scored_too_and_gives_an_exported_one_s_loss(yaml, tmp_path, dataset):
    """Both layouts through the whole command; what GLUE and pairs load is the same model."""
    sources = [published(tmp_path / "a", dataset), exported(tmp_path / "b", dataset)]
    curves = [run(yaml, f"init_from={source}", f"out={tmp_path / source.name}-run")["loss_curve"] for source in sources]
    assert curves[0][0]["loss"] == curves[1][0]["loss"]
    hardware = find_hardware("cpu", "fp32", ranks=1)
    models = []
    for source in sources:
        found = find_checkpoint(str(source))
        assert found.padding is None and found.max_length is None
        models.append(found.masked_lm(found.resolve_backends(hardware)).state_dict())
    assert all(torch.equal(tensor, models[1][name]) for name, tensor in models[0].items())


@pytest.mark.parametrize("rows", [ENTRIES, 512, 530])
def test_bert_s_first_loss_is_the_source_s_own(yaml, tmp_path, dataset, rows, capsys):
    """480 rows are padded to 512, which adds nothing to the softmax; of 530 those that no token has are trimmed."""
    source = bert(tmp_path / "source", dataset, rows)
    if rows == 530:  # a trained model expects no token that there is none of
        weights = load_file(source / "model.safetensors")
        weights["cls.predictions.bias"][ENTRIES:] = -1e4
        save_file(weights, source / "model.safetensors", {"format": "pt"})
    record = run(yaml, f"init_from={source}")
    said = capsys.readouterr().out
    assert ("padded from 480 rows to 512" in said) == (rows == ENTRIES)
    assert ("trimmed from 530 rows to 512" in said) == (rows == 530)
    assert record["model"] == "hf_bert" and record["config"]["model"]["hidden_size"] == 32
    batch = first_batch(planned(yaml, source, f"out={tmp_path / 'other'}"))
    theirs = AutoModelForMaskedLM.from_pretrained(source).eval()
    with torch.no_grad():
        loss = theirs(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    assert record["loss_curve"][0]["loss"] == pytest.approx(float(loss), abs=2e-6)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "encoder")
    assert again.config.max_position_embeddings == 64 and again.config.vocab_size == 512  # not the run's 48 positions


def test_modernbert_s_first_loss_is_the_source_s_own(yaml, tmp_path, dataset):
    """Its block follows the source too, with windows that the texts cross; another one is refused."""
    torch.manual_seed(5)
    settings = {"local_attention": 6, "global_rope_theta": 5e4, "initializer_range": 0.2, "vocab_size": ENTRIES}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    config = ModernBertConfig(**{**BERT, "num_hidden_layers": 3}, **settings, **special, pad_token_id=0)
    ModernBertForMaskedLM(config).save_pretrained(source := with_tokenizer(dataset, tmp_path / "source"))
    record = run(yaml, f"init_from={source}")
    assert record["model"] == "modern" and record["config"]["model"]["window"] is None
    assert (record["encoder"]["window"], record["encoder"]["rope_theta"]) == (6, 5e4)
    batch = pad_batch(first_batch(planned(yaml, source, f"out={tmp_path / 'other'}")), 0)
    with torch.no_grad():
        theirs = AutoModelForMaskedLM.from_pretrained(source).eval()
        loss = theirs(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    assert record["loss_curve"][0]["loss"] == pytest.approx(loss.item(), abs=2e-6)
    said = refused(planned, yaml, source, "model.window=8", f"out={tmp_path / 'other'}")
    assert said == f"model.window=8, but init_from={source} has 6; leave it out to follow the source"


def test_an_electra_as_wide_as_its_embeddings_is_a_bert_that_detects(yaml, tmp_path, dataset):
    """Every logit is the source's own; for another objective its encoder alone is taken, and a new head is said."""
    torch.manual_seed(5)
    config = ElectraConfig(vocab_size=512, max_position_embeddings=64, embedding_size=32, initializer_range=0.2, **BERT)
    ElectraForPreTraining(config).save_pretrained(source := with_tokenizer(dataset, tmp_path / "source"))
    plan = planned(yaml, source, "objective=replaced_tokens")
    assert (plan.start.model, plan.start.new, plan.start.longest) == ("hf_bert", (), 64)
    batch, model = first_batch(plan), build_model(plan).eval()
    real = batch["attention_mask"].bool()
    theirs = AutoModelForPreTraining.from_pretrained(source).eval()
    with torch.no_grad():
        logits = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        ours = plan.objective.kept(model).logits(batch).view_as(logits)
    torch.testing.assert_close(ours[real], logits[real], rtol=0, atol=1e-5)
    other = planned(yaml, source)
    said = "its head, 4 tensors, `dense.bias` the first, is not used; this run's, 7 tensors, is new"
    assert said in " ".join(other.start.said)
    weights = build_model(other).state_dict()
    assert torch.equal(
        weights["bert.bert.encoder.layer.1.output.dense.bias"], theirs.electra.encoder.layer[1].output.dense.bias
    )


def test_what_pretraining_has_more_is_left_out_and_said(yaml, tmp_path, dataset, capsys):
    """TensorFlow's names in LayerNorm, a pooler, next-sentence prediction and stored positions, as BERT's own files have them."""
    source = bert(tmp_path / "source", dataset)
    plain = run(yaml, f"init_from={source}", f"out={tmp_path / 'plain'}")
    weights = load_file(source / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
           for name, tensor in weights.items()}  # fmt: skip
    old |= {"bert.pooler.dense.weight": torch.ones(32, 32), "cls.seq_relationship.bias": torch.ones(2)}
    (source / "model.safetensors").unlink()
    torch.save({**old, "bert.embeddings.position_ids": torch.arange(64)[None]}, source / "pytorch_model.bin")
    record = run(yaml, f"init_from={source}")
    assert record["loss_curve"][0]["loss"] == plain["loss_curve"][0]["loss"]
    assert "3 tensors not used here, `bert.pooler.dense.weight` the first" in capsys.readouterr().out


def test_a_vocabulary_file_alone_is_the_same_tokenizer(yaml, tmp_path, dataset):
    """As older repositories have it, and BERT's own was: no tokenizer.json."""
    source = bert(tmp_path / "source", dataset)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    assert BertTokenizer.from_pretrained(source).vocab_size == ENTRIES
    assert planned(yaml, source).start.model == "hf_bert"


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_a_run_and_its_checkpoint_are_gone_on_with(yaml, tmp_path, dataset, model):
    sizes = (
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "model.num_attention_heads=2",
        "model.intermediate_size=24",
    )
    run(yaml, f"model.name={model}", *sizes, "duration=4ba", "checkpoint_every=2ba")
    finished, early = tmp_path / "run", tmp_path / "run" / "checkpoints" / "ba2-rank0.pt"
    weights = [
        build_model(planned(yaml, source, f"out={tmp_path / 'next'}")).state_dict() for source in (finished, early)
    ]
    assert any(not torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    detects = planned(yaml, finished, "objective=swapped_tokens", f"out={tmp_path / 'next'}")
    assert detects.start.new == ("dense.bias", "dense.weight", "out.bias", "out.weight")
    kept, word = detects.objective.kept(build_model(detects)).state_dict(), detects.architecture.vocabulary_rows[0]
    assert torch.equal(kept[word], weights[0][word])
    record = run(yaml, f"init_from={finished}", f"out={tmp_path / 'next'}", "duration=4ba", "checkpoint_every=2ba")
    assert record["model"] == model and record["config"]["model"]["hidden_size"] == 16
    again = run(yaml, f"init_from={finished}", f"out={tmp_path / 'next'}", "duration=4ba", "autoresume=true")
    assert again["status"] == "finished"
    if model == "mosaic_bert":
        assert planned(yaml, finished, "data.sequence_length=512", f"out={tmp_path / 'longer'}").positions == 512
    else:
        said = refused(planned, yaml, finished, "data.sequence_length=64", f"out={tmp_path / 'longer'}")
        assert "has 48 position embeddings; set data.sequence_length=48" in said


def test_sizes_follow_the_source_and_a_stated_one_must_be_its(yaml, tmp_path, dataset):
    source = bert(tmp_path / "source", dataset, hidden_act="relu", layer_norm_eps=1e-7)
    plan = planned(yaml, source, "model.num_hidden_layers=2")
    assert (plan.encoder.hidden_size, plan.encoder.hidden_act, plan.encoder.layer_norm_eps) == (32, "relu", 1e-7)
    assert plan.encoder.hidden_dropout_prob == 0 and plan.batching == "padded"
    said = refused(planned, yaml, source, "model.hidden_size=64")
    assert said.startswith("model.hidden_size=64, but init_from=") and "has 32; leave it out" in said
    write_encoder(tmp_path / "ours")
    assert "trained with another tokenizer" in refused(planned, yaml, tmp_path / "ours", "model.name=hf_bert")


def test_another_tokenizer_is_refused_with_the_remedy(yaml, tmp_path, dataset):
    source = bert(tmp_path / "source", dataset)
    file = source / "tokenizer.json"
    parts = json.loads(file.read_text("utf-8"))
    parts["model"]["vocab"]["cat"], parts["model"]["vocab"]["dog"] = (
        parts["model"]["vocab"][w] for w in ("dog", "cat")
    )
    file.write_text(json.dumps(parts))
    said = refused(planned, yaml, source)
    assert "trained with another tokenizer" in said and "(another vocabulary)" in said
    assert f"tokenizer.name={source}" in said
    with_tokenizer(dataset, source)
    settings = source / "tokenizer_config.json"  # by which transformers makes the normalizer
    settings.write_text(json.dumps({**json.loads(settings.read_text("utf-8")), "do_lower_case": False}))
    assert "(another normalizer)" in refused(planned, yaml, source)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: [w.pop("bert.encoder.layer.1.output.dense.bias"), w.pop("cls.predictions.bias")],
         "no weights for `bert.bert.encoder.layer.1.output.dense.bias` (1 missing, 0 unknown)"),
        (lambda w: w.update({"bert.encoder.layer.2.output.dense.bias": torch.ones(32), "extra.weight": torch.ones(1)}),
         "the model has no `bert.bert.encoder.layer.2.output.dense.bias` (0 missing, 2 unknown)"),
        (lambda w: w.update({"bert.encoder.layer.0.output.dense.bias": torch.ones(31)}), "is (31,); the model has (32,)"),
        (lambda w: w.update({"bert.embeddings.word_embeddings.weight": torch.ones(400, 32)}), "400 rows and its tokenizer 480"),
        (lambda w: w.update({"cls.predictions.bias": torch.ones(400)}), "is (400,); the model has (512,)"),
        (lambda w: [w.pop(name) for name in list(w) if name.startswith("cls.")], "no weights for `bert.cls.predictions.bias`"),
        (lambda w: w.update({"cls.predictions.decoder.weight": torch.ones(ENTRIES, 32)}), "is not the word embeddings' matrix"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_counted_and_nothing_is_written(yaml, tmp_path, dataset, change, says):
    source = bert(tmp_path / "source", dataset)
    weights = load_file(source / "model.safetensors")
    if "cls.predictions.bias` (" not in says and "1 missing" in says:
        weights["cls.predictions.decoder.bias"] = weights[
            "cls.predictions.bias"
        ]  # the same parameter under its other name
    change(weights)
    (source / "model.safetensors").unlink()
    torch.save(weights, source / "pytorch_model.bin")
    said = refused(run, yaml, f"init_from={source}")
    assert says in said and not (tmp_path / "run").exists()


class Touch:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize(
    ("holds", "says"),
    [
        (lambda weights, marker: {**weights, "more": Touch(marker)}, "could execute code"),
        (lambda weights, marker: {**weights, "epoch": 3}, "holds more than tensors (`epoch` is a int)"),
        (lambda weights, marker: {"state_dict": weights}, "holds more than tensors (`state_dict` is a dict)"),
        (lambda weights, marker: list(weights.values()), "holds a list, and not tensors by name"),
        (lambda weights, marker: None, "not tensors by name"),
    ],
)
def test_a_bin_that_holds_more_than_tensors_is_refused(yaml, tmp_path, dataset, holds, says, capsys):
    source, marker = bert(tmp_path / "source", dataset), tmp_path / "executed"
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save(holds(weights, marker), source / "pytorch_model.bin")
    assert run_main(TrainConfig, main, [str(yaml), f"init_from={source}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and says in said and "pytorch_model.bin" in said
    assert not marker.exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["electra", "roberta"])
def test_an_architecture_that_is_no_row_is_refused(yaml, tmp_path, kind):
    said = refused(planned, yaml, write_family(tmp_path / kind, kind))
    assert f"a `{kind}`, which recipe.train cannot go on with; it trains mosaic_bert, modern, hf_bert" in said


def test_what_is_not_there_and_a_hub_that_cannot_be_reached_are_one_line(yaml, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "no such file or folder; give a run's folder" in refused(planned, yaml, tmp_path / "nowhere")
    said = refused(planned, yaml, "some-owner/some-encoder")
    assert (
        said.startswith("init_from=some-owner/some-encoder: no such file or folder here") and "can be reached" in said
    )


def test_a_hub_name_is_a_folder_and_the_published_ones_get_bert_s_tokenizer(
    yaml, tmp_path, dataset, monkeypatch, capsys
):
    """The hub is played: which files are asked for, and what comes of it."""
    hub = {"bert-base-uncased": bert(tmp_path / "hub" / "bert" / "snapshots" / "1", dataset)}
    if GOLDEN.is_file():
        folder = published(tmp_path / "hub" / "mosaic" / "snapshots" / "2", dataset)
        for file in [*folder.glob("*token*"), folder / "vocab.txt"]:
            file.unlink()
        hub["mosaicml/mosaic-bert-base"] = folder
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(hub[name])

    monkeypatch.setattr(huggingface, "snapshot_download", download)
    assert planned(yaml, "bert-base-uncased").start.model == "hf_bert"
    assert [name for name, _ in asked] == ["bert-base-uncased"], "a pickle was asked for beside safetensors"
    assert not any("py" in pattern.split(".") for _, patterns in asked for pattern in patterns)
    if GOLDEN.is_file():
        for _ in range(2):  # the second time it is there
            plan = planned(yaml, "mosaicml/mosaic-bert-base")
        assert plan.start.model == "mosaic_bert" and "bert-base-uncased's is taken" in capsys.readouterr().out
        assert "pytorch_model*.bin" in asked[2][1]


def test_a_budget_is_planned_for_the_source_s_sizes(yaml, tmp_path, dataset, capsys):
    settings = yaml.read_text() + f"init_from: {bert(tmp_path / 'source', dataset)}\n"
    yaml.write_text(settings)
    assert plan_main(["--gpu", "h100", "--budget-usd", "0.01", "--model", str(yaml)]) == 0
    assert capsys.readouterr().out.startswith("hf_bert on 1 GPUs")
