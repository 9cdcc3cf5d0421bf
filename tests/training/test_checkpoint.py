import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from recipe.errors import UserError
from recipe.finetune.examples import Examples
from recipe.finetune.kinds import CLASSIFICATION
from recipe.model.config import EncoderConfig
from recipe.model.heads import MosaicBertForMaskedLM
from recipe.model.hf_bert import HFBertForMaskedLM
from recipe.system.hardware import find_hardware
from recipe.training.checkpoint import find_checkpoint
from tests.mistakes import refused
from tests.tiny.models import write_encoder, write_run
from tests.tiny.runs import composer_checkpoint

HARDWARE = find_hardware("cpu", "fp32", 1)
TEXTS = Examples([("the red horse", "a tree"), ("old road", "the very new house and a tiger")], [0, 1])


def logits(path: Path) -> torch.Tensor:
    """Of TEXTS by a classifier on the checkpoint, with a classifier head that is the same each time."""
    checkpoint = find_checkpoint(str(path))
    model = checkpoint.fine_tuned(CLASSIFICATION, 2, checkpoint.resolve_backends(HARDWARE)).eval()
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if "pooler" in name or "classifier" in name:
            nn.init.normal_(parameter, std=0.02)
    encoded = CLASSIFICATION.encode(checkpoint.tokenizer, TEXTS, 32)
    batch = encoded.stream([0, 1]) if checkpoint.padding is None else encoded.padded([0, 1], checkpoint.padding)
    with torch.no_grad():
        return model(batch)


@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_every_form_of_a_path_finds_the_same_encoder(tmp_path, kind):
    run = write_run(tmp_path / "some-run", kind)
    found = find_checkpoint(str(run))
    assert (found.model, found.name, found.run, found.batch) == (kind, "some-run", run, None)
    inner = find_checkpoint(str(run / "encoder"))
    assert inner.run == run and inner.folder == found.folder and inner.name == "some-run"
    shutil.copytree(run / "encoder", tmp_path / "alone")
    alone = find_checkpoint(str(tmp_path / "alone"))
    assert alone.run is None and alone.name == "alone"
    assert torch.equal(logits(run), logits(tmp_path / "alone"))
    assert (found.max_length, alone.pad_id) == ((None, 0) if kind == "mosaic_bert" else (64, 0))


@pytest.mark.parametrize("kind", ["mosaic_bert", "hf_bert"])
def test_a_composer_checkpoint_gives_its_own_weights(tmp_path, kind):
    run = write_run(tmp_path / "run", kind)
    sizes = EncoderConfig.from_dict(json.loads((run / "encoder" / "config.json").read_text()))
    torch.manual_seed(99)  # another encoder than the one in run/encoder
    model = MosaicBertForMaskedLM(sizes) if kind == "mosaic_bert" else HFBertForMaskedLM(sizes, 64)
    file = composer_checkpoint(run, model)
    found = find_checkpoint(str(file))
    assert (found.run, found.batch, found.name) == (run, 0, "run-ba0")
    (tmp_path / "other").mkdir()
    shutil.copytree(run / "encoder", tmp_path / "other", dirs_exist_ok=True)
    if kind == "mosaic_bert":
        save_file(model.state_dict(), tmp_path / "other" / "model.safetensors")
    else:
        model.bert.save_pretrained(tmp_path / "other")
    assert torch.equal(logits(file), logits(tmp_path / "other"))
    assert not torch.allclose(logits(file), logits(run))
    (run / "checkpoints" / "latest-rank0.pt").symlink_to(file.name)
    assert find_checkpoint(str(run / "checkpoints" / "latest-rank0.pt")).name == "run-ba0"


def test_the_classifier_and_the_pooler_depend_on_the_seed_and_the_encoder_does_not(tmp_path):
    write_encoder(tmp_path)
    checkpoint = find_checkpoint(str(tmp_path))
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(checkpoint.fine_tuned(CLASSIFICATION, 3, checkpoint.resolve_backends(HARDWARE)).state_dict())
    for name, tensor in models[0].items():
        assert torch.equal(tensor, models[1][name])
        new = name in ("head.pooler.weight", "head.classifier.weight")
        assert torch.equal(tensor, models[2][name]) != new
    given = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(models[2][name], given[name]) for name in given if name.startswith("encoder."))


def test_a_vocabulary_file_alone_is_a_tokenizer_too(tmp_path):
    write_encoder(tmp_path, "hf_bert")
    expected = logits(tmp_path)
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (tmp_path / name).unlink()
    assert torch.equal(logits(tmp_path), expected)


def edit(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def broken(folder: Path, how: str) -> Path:
    """An encoder folder with one fault."""
    write_encoder(folder)
    if how == "nothing":
        return folder / "nowhere"
    if how == "no tokenizer":
        for name in ("tokenizer.json", "vocab.txt"):
            (folder / name).unlink()
    if how == "bad tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    if how == "no weights":
        (folder / "model.safetensors").unlink()
    if how == "small embedding":
        edit(folder / "config.json", vocab_size=20)
    if how == "bad json":
        (folder / "config.json").write_text("{")
    if how == "other family":
        edit(folder / "config.json", model_type="gpt2")
    if how == "no config":
        (folder / "config.json").unlink()
    if how == "a file":
        return folder / "vocab.txt"
    return folder


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nothing", "no such file or folder"),
        ("no tokenizer", "no tokenizer in it"),
        ("bad tokenizer", r"tokenizer\.json: not a tokenizer"),
        ("no weights", r"no model\.safetensors"),
        ("small embedding", r"the tokenizer has \d+ entries, the embedding 20 rows"),
        ("bad json", "not the configuration of an encoder"),
        ("other family", "model_type `gpt2`"),
        ("no config", r"neither run\.json nor config\.json"),
        ("a file", "not a checkpoint in a run's folder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, how, message):
    with pytest.raises(UserError, match=message) as caught:
        find_checkpoint(str(broken(tmp_path / "encoder", how)))
    assert "\n" not in str(caught.value)


def test_a_run_without_an_encoder_and_a_file_that_is_no_checkpoint(tmp_path):
    run = write_run(tmp_path / "run")
    file = run / "checkpoints" / "ba1-rank0.pt"
    file.parent.mkdir()
    file.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not a Composer checkpoint"):
        find_checkpoint(str(file))
    shutil.rmtree(run / "encoder")
    with pytest.raises(UserError, match="no finished encoder in it, the run is `finished`"):
        find_checkpoint(str(run))
    with pytest.raises(UserError, match="does not hold the run's sizes and tokenizer"):
        find_checkpoint(str(file))


def test_weights_under_other_names_are_never_left_random(tmp_path):
    write_encoder(tmp_path / "hf", "hf_bert")
    file = tmp_path / "hf" / "model.safetensors"
    renamed = {name.replace("attention.self.query", "attention.self.q"): t for name, t in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    checkpoint = find_checkpoint(str(tmp_path / "hf"))
    with pytest.raises(
        UserError, match=r"no weights for `encoder\.layer\.0\.attention\.self\.query\.bias` .* \(4 missing\)"
    ):
        checkpoint.fine_tuned(CLASSIFICATION, 2, checkpoint.resolve_backends(HARDWARE))
    write_encoder(tmp_path / "ours")
    file = tmp_path / "ours" / "model.safetensors"
    fewer = {name: t for name, t in load_file(file).items() if "layers.1.attention.qkv" not in name}
    save_file(fewer, file)
    checkpoint = find_checkpoint(str(tmp_path / "ours"))
    with pytest.raises(UserError, match=r"no weights for `layers\.1\.attention\.qkv\.bias`"):
        checkpoint.fine_tuned(CLASSIFICATION, 2, checkpoint.resolve_backends(HARDWARE))


def test_sizes_that_do_not_match_the_weights(tmp_path):
    for kind in ("mosaic_bert", "hf_bert"):
        write_encoder(tmp_path / kind, kind)
        edit(tmp_path / kind / "config.json", intermediate_size=96)
        checkpoint = find_checkpoint(str(tmp_path / kind))
        refused(checkpoint.fine_tuned, CLASSIFICATION, 2, checkpoint.resolve_backends(HARDWARE))
