"""`python -m recipe.export`: what leaves the house is the run's encoder, as others load it, or nothing is written."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from recipe import records
from recipe.config import ExportConfig, run_main
from recipe.convert import to_mosaicml_name
from recipe.export import __main__ as entry
from recipe.export import modeling_mosaic_bert, subject, transformers_form, verifier, verify
from tests.mistakes import refused
from tests.processes import ROOT, call, start
from tests.tiny.families import write_family
from tests.tiny.models import write_encoder, write_run

FIXTURES = ROOT / "tests/fixtures/f9702d1/runs"
CODE = "modeling_mosaic_bert.py"
IDS = torch.arange(5, 17).reshape(2, 6)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {model: write_run(folder / model, model) for model in ("mosaic_bert", "modern", "hf_bert")}


@pytest.fixture(scope="module")
def exported(runs, export, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    return {model: export(run, folder / model) for model, run in runs.items()}


def load(folder: Path, auto: str = "AutoModelForMaskedLM", **settings):
    trust = {"trust_remote_code": True} if (folder / CODE).is_file() else {}
    return getattr(transformers, auto).from_pretrained(folder, **trust, **settings).eval()


@pytest.mark.parametrize(
    ("model", "kind"), [("mosaic_bert", "mosaic_bert"), ("modern", "modernbert"), ("hf_bert", "bert")]
)
def test_a_folder_says_what_it_is_and_what_was_compared(exported, model, kind):
    folder = exported[model]
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == kind and ("auto_map" in config) == (folder / CODE).is_file() == (model == kind)
    record = json.loads((folder / verify.FILE_NAME).read_text())
    sides = ("padded on the right", "padded on the left", "one alone", "without token types", "without a mask")
    numbers = {
        f"{what}, {side}, {how}" for what in ("logits", "hidden states") for side in sides for how in ("sdpa", "eager")
    }
    numbers |= {f"{what}, {side}, bf16 against float32" for what in ("logits", "hidden states") for side in sides}
    others = {"loss", "gradients, relative to the largest", "logits of the words of fill-mask"}
    assert record["verified"].keys() == numbers | others
    assert all(row["difference"] <= row["allowed"] for row in record["verified"].values())
    assert record["facts"]["texts that the tokenizer encodes alike"] > 100
    assert record["facts"]["held-out texts of its own, compared"] == "none: its run names no dataset"
    assert record["provenance"]["packages"]["transformers"] == transformers.__version__
    for file in folder.iterdir():
        assert b"/runs/" not in file.read_bytes(), f"{file.name} tells a path of this machine"


def test_the_shipped_code_is_the_file_and_the_names_are_the_reference_s(runs, exported):
    folder = exported["mosaic_bert"]
    assert (folder / CODE).read_bytes() == Path(modeling_mosaic_bert.__file__).read_bytes()
    ours = load_file(runs["mosaic_bert"] / "encoder" / "model.safetensors")
    theirs = load_file(folder / "model.safetensors")
    assert theirs.keys() == {to_mosaicml_name(name) for name in ours}
    assert all(torch.equal(theirs[to_mosaicml_name(name)], tensor) for name, tensor in ours.items())


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_a_moved_copy_and_a_fine_tuned_one_load(exported, model, tmp_path):
    folder = exported[model]
    moved = shutil.copytree(folder, tmp_path / "a copy.v2")
    assert torch.equal(load(moved)(IDS).logits, load(folder)(IDS).logits)
    classifier = load(moved, "AutoModelForSequenceClassification", id2label={0: "no", 1: "yes", 2: "perhaps"})
    classifier.save_pretrained(tmp_path / "tuned")
    again = load(tmp_path / "tuned", "AutoModelForSequenceClassification")
    assert torch.equal(again(IDS).logits, classifier(IDS).logits) and again.config.id2label[2] == "perhaps"


def test_a_process_without_this_project_loads_what_the_command_wrote(runs, tmp_path):
    """As users do it: the command, then transformers in a process in which none of our packages can be imported."""
    done = call(
        "recipe.export", str(runs["mosaic_bert"]), f"out={tmp_path / 'out'}", HF_MODULES_CACHE=str(tmp_path / "m")
    )
    assert done.returncode == 0, done.stderr
    assert "in a process of its own" in done.stdout and done.stdout.splitlines()[-1].startswith("done: ")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"], "no draft, and no code in a cache"
    stranger = tmp_path / "stranger.py"
    stranger.write_text(
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('recipe', 'kernels', 'benchmarks')))\n"
        "from transformers import AutoModel, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained('out', trust_remote_code=True)\n"
        "tokens = tokenizer(['red horse', 'a very old house'], padding=True, return_tensors='pt')\n"
        "hidden = AutoModel.from_pretrained('out', trust_remote_code=True)(**tokens).last_hidden_state\n"
        "assert hidden.isfinite().all() and not hidden[tokens.attention_mask == 0].any()\n"
        "print(*hidden.shape)\n"
    )
    launcher = ("env", "-C", str(tmp_path), sys.executable)
    process = start("stranger", launcher=launcher, HF_MODULES_CACHE=str(tmp_path / "m"), HF_HUB_OFFLINE="1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0 and out.splitlines()[-1].startswith("2 "), out + err


@pytest.mark.parametrize("model", ["mosaic_bert", "hf_bert"])
def test_a_checkpoint_on_the_way(export, model, tmp_path):
    """Its weights, and a card that says that the run's figures are not its own."""
    (file, *_) = sorted((FIXTURES / f"{model}-killed" / "checkpoints").glob("ba*.pt"))
    folder = export(file, tmp_path / "out")
    batch = json.loads((folder / verify.FILE_NAME).read_text())["batch"]
    assert file.name.startswith(f"ba{batch}-")
    assert f"checkpoint at batch {batch}" in (folder / "README.md").read_text()


@pytest.mark.parametrize(("family", "types"), [("roberta", False), ("distilbert", False), ("electra", True)])
def test_any_encoder_of_hugging_face_s_can_be_handed_on(export, tmp_path, family, types):
    """By the ways of attention that it has, and with a tokenizer that makes what it takes."""
    has_sdpa = family != "electra" or transformers.ElectraModel._supports_sdpa  # from version 5 on
    folder = export(write_family(tmp_path / family, family), tmp_path / "out")
    assert "No record of its training" in (folder / "README.md").read_text()
    assert not (folder / CODE).exists()
    verified = json.loads((folder / verify.FILE_NAME).read_text())["verified"]
    attentions = {"eager", "sdpa"} if has_sdpa else {"eager"}
    assert {what.split(", ")[-1] for what in verified if what.startswith("logits, one alone")} >= attentions
    assert any("sdpa" in what for what in verified) == has_sdpa
    assert ("token_type_ids" in transformers.AutoTokenizer.from_pretrained(folder)("red house")) == types


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("weight", "logits, padded on the right, sdpa differs by"),
        ("code", "differs by"),
        ("tokenizer", "makes other ids of"),
    ],
)
def test_what_differs_is_not_written(export, runs, tmp_path, monkeypatch, what, words):
    whole = transformers_form.write_model

    def damaged(whatever, model, folder: Path) -> None:
        if what == "weight":
            with torch.no_grad():
                model.get_parameter("bert.encoder.layer.1.mlp.wo.bias")[3] += 1e-3
        whole(whatever, model, folder)
        code, vocabulary = folder / CODE, folder / "tokenizer.json"
        if what == "code":
            code.write_text(code.read_text().replace("-8.0 * (i + 1)", "-7.9 * (i + 1)"))
        if what == "tokenizer":
            tokens = json.loads(vocabulary.read_text())
            ids = tokens["model"]["vocab"]
            ids["a"], ids["e"] = ids["e"], ids["a"]
            vocabulary.write_text(json.dumps(tokens))

    monkeypatch.setattr(transformers_form, "write_model", damaged)
    message = refused(export, runs["mosaic_bert"], tmp_path / "out")
    assert "nothing was written" in message and words in message
    assert list(tmp_path.iterdir()) == []


def test_a_verifying_process_that_fails_is_one_line(runs, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho a traceback >&2\necho 'error: KeyError: model_type' >&2\nexit 2\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    message = refused(verify.compared, ExportConfig(checkpoint=str(runs["mosaic_bert"]), out="out"), tmp_path)
    assert message == "the export could not be verified, so nothing was written: KeyError: model_type"


def test_the_verifying_process_has_no_network():
    with pytest.raises(OSError, match="network is off"):
        verifier.no_network(("127.0.0.1", 80))


def test_the_same_export_again_finds_it_done_and_another_one_is_refused(runs, exported, capsys):
    run, out = str(runs["hf_bert"]), exported["hf_bert"]
    before = (out / verify.FILE_NAME).read_bytes()
    assert entry.export(ExportConfig(run, str(out))) == out and (out / verify.FILE_NAME).read_bytes() == before
    assert capsys.readouterr().out == f"{out} holds this export already; nothing to do\n"
    for other in (ExportConfig(run, str(out), format="sentence"), ExportConfig(str(runs["modern"]), str(out))):
        assert f"out={out} is not empty" in refused(entry.export, other)
    (out / verify.FILE_NAME).write_text("[")
    assert f"out={out} is not empty" in refused(entry.export, ExportConfig(run, str(out)))
    (out / verify.FILE_NAME).write_bytes(before)


def test_where_it_may_write(runs, tmp_path, monkeypatch):
    run = str(runs["hf_bert"])
    (tmp_path / "file").touch()
    assert "is a file" in refused(entry.export, ExportConfig(run, str(tmp_path / "file")))
    assert "is not empty" in refused(entry.export, ExportConfig(run, str(tmp_path)))
    assert "cannot be written to" in refused(entry.export, ExportConfig(run, str(tmp_path / "file" / "out")))
    monkeypatch.setattr(entry, "find_spec", lambda package: None)
    message = refused(entry.export, ExportConfig(run, str(tmp_path / "out"), format="onnx"))
    assert "requirements-export.txt" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "out=x"], "checkpoint=nowhere: no such file or folder"),
        (["runs"], "command line: `out` has no value; say out=..."),
        (["runs", "out=x", "fromat=onnx"], "unknown key `fromat`; did you mean `format`?"),
        (["runs", "out=x", "format=gguf"], "format=gguf: must be one of huggingface, sentence, onnx"),
        (["runs", "out=x", "int8=pairs.jsonl"], "int8=pairs.jsonl is for ONNX; set format=onnx"),
        (["runs", "out=x", "pooling=cls"], "pooling=cls is a sentence encoder's; set format=sentence"),
    ],
)
def test_mistakes_are_one_line_each(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_main(ExportConfig, entry.main, words, first=["checkpoint"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line and list(tmp_path.iterdir()) == []


def test_an_architecture_whose_row_has_no_export_is_refused(export, runs, tmp_path, monkeypatch):
    row = dataclasses.replace(subject.architecture("mosaic_bert"), export=None)
    monkeypatch.setattr(subject, "architecture", lambda name: row)
    says = refused(export, runs["mosaic_bert"], tmp_path / "out")
    assert (
        says.endswith("whose row in the table of architectures has no export yet") and not (tmp_path / "out").exists()
    )


def test_an_ablation_without_a_class_is_refused(export, tmp_path):
    sizes = write_encoder(tmp_path / "encoder")
    config = json.loads((tmp_path / "encoder/config.json").read_text())
    (tmp_path / "encoder/config.json").write_text(json.dumps({**config, "window": 8, "global_every": 2}))
    said = refused(export, tmp_path / "encoder", tmp_path / "out")
    assert said.startswith("encoder cannot be exported: window=8, global_every=2: neither transformers nor the file")
    assert sizes.window is None and not (tmp_path / "out").exists()


def test_help_names_the_first_word(capsys):
    assert run_main(ExportConfig, entry.main, ["--help"], first=["checkpoint"]) == 0
    assert capsys.readouterr().out.startswith("usage: CHECKPOINT [key=value ...]")


def test_the_card_has_the_record_s_numbers(export, tmp_path):
    """Of a run that was scored on tasks; whatever a test could type in by hand is taken from its record."""
    run = FIXTURES / "mosaic_bert-s17"
    card = (export(run, tmp_path / "out") / "README.md").read_text()
    record = records.read_record(run)
    words = [
        f"{record['parameters']:,} parameters",
        f"| tokens | {record['tokens']:,} |",
        f"| seconds | {record['cost']['seconds']:,.1f} |",
        f"| dollars | {record['cost']['usd']:.4g}, at {record['device']['usd_per_hour']:g} per hour",
        f"| hardware | {record['device']['count']} × {record['device']['name']} |",
        f"Loss on held-out text: {record['eval']['loss']:.4f}",
        *(f"| {task} | {found['score']:.2f} |" for task, found in record["glue"]["tasks"].items()),
        f"max_length {record['glue']['protocol']['max_length']}",
        "None is stated. Whoever publishes this folder chooses one",
        f"at most {record['config']['data']['sequence_length']} tokens. ALiBi takes longer ones",
        'from_pretrained("out", trust_remote_code=True)',
    ]
    assert [word for word in words if word not in card] == []
    assert record["glue"]["tasks"] and "license:" not in card.split("---")[1]
