"""Other people's encoders, in Hugging Face's form, are read, fine-tuned and refused."""

import json
import shutil

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from recipe.finetune.examples import Examples
from recipe.finetune.kinds import CLASSIFICATION
from recipe.glue import glue
from recipe.system.hardware import find_hardware
from recipe.training.checkpoint import find_checkpoint
from tests.mistakes import refused
from tests.tiny.configs import glue_config
from tests.tiny.families import FAMILIES, POSITIONS, write_bpe, write_family
from tests.tiny.models import write_encoder, write_tokenizer
from tests.tiny.tasks import write_inference, write_sst2

HARDWARE = find_hardware("cpu", "fp32", 1)
PAIRS = Examples([("the red horse", "a tree"), ("old road", "the very new house and a tiger")], [0, 1])


OF_OTHERS = [kind for kind in FAMILIES if kind != "modernbert"]  # which is a row of the house's own


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_logits_are_the_librarys_own(tmp_path, kind):
    folder = write_family(tmp_path / kind, kind)
    checkpoint = find_checkpoint(str(folder))
    assert checkpoint.model == ("hf_bert" if kind == "bert" else kind) and checkpoint.run is None
    model = checkpoint.fine_tuned(CLASSIFICATION, 3, checkpoint.resolve_backends(HARDWARE)).eval()
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
    given = AutoModelForMaskedLM.from_pretrained(folder).base_model.state_dict()
    ours = model.model.base_model.state_dict()
    assert given and all(torch.equal(ours[name], tensor) for name, tensor in given.items())
    theirs.load_state_dict(model.model.state_dict())  # pooler and classifier are random in both
    batch = CLASSIFICATION.encode(checkpoint.tokenizer, PAIRS, 16).padded([0, 1], checkpoint.pad_id)
    words = AutoTokenizer.from_pretrained(folder)
    first, second = zip(*PAIRS.sentences, strict=True)
    wanted = words(
        list(first), list(second), padding=True, truncation="longest_first", max_length=16, return_tensors="pt"
    )
    assert torch.equal(batch["input_ids"], wanted["input_ids"])
    assert torch.equal(batch["attention_mask"], wanted["attention_mask"])
    if not model.token_types:
        wanted.pop("token_type_ids", None)
    with torch.no_grad():
        assert torch.equal(model(batch), theirs(**wanted).logits)
    assert model.token_types == (kind in ("bert", "electra", "albert"))


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_the_longest_input_is_known_before_anything_runs(tmp_path, kind):
    checkpoint = find_checkpoint(str(write_family(tmp_path / kind, kind)))
    behind_padding = {"roberta": POSITIONS - 2, "mpnet": POSITIONS - 2}
    unlimited = {"deberta-v2": None}
    assert checkpoint.max_length == {**behind_padding, **unlimited}.get(kind, POSITIONS)
    longest = checkpoint.max_length or 2 * POSITIONS
    long = CLASSIFICATION.encode(checkpoint.tokenizer, Examples([("red " * 100,)], [0]), longest).padded(
        [0], checkpoint.pad_id
    )
    assert long["input_ids"].shape == (1, longest)
    model = checkpoint.fine_tuned(CLASSIFICATION, 2, checkpoint.resolve_backends(HARDWARE)).eval()
    with torch.no_grad():
        assert model(long).isfinite().all()
    if checkpoint.max_length:
        long = CLASSIFICATION.encode(checkpoint.tokenizer, Examples([("red " * 100,)], [0]), longest + 1).padded(
            [0], checkpoint.pad_id
        )
        with pytest.raises((IndexError, RuntimeError)):
            model(long)


@pytest.mark.parametrize("kind", ["roberta", "modernbert"])
def test_a_family_is_fine_tuned_and_hands_on_what_mnli_left(tmp_path, kind):
    write_family(tmp_path / kind, kind)
    data = tmp_path / "data"
    write_sst2(data)
    write_inference(data, "MNLI", train=48)
    write_inference(data, "RTE", train=32)
    record = glue(glue_config(tmp_path, checkpoint=str(tmp_path / kind), out=str(tmp_path / "out"), max_length=38))
    tasks = record["glue"]["tasks"]
    own = kind == "modernbert"
    assert record["model"] == ("modern" if own else kind)
    assert (record["backends"]["attention"]["name"] == "transformers") == (not own)
    assert tasks["SST-2"]["score"] > 90
    assert [tasks[name]["init"] for name in ("MNLI", "RTE")] == ["pretrained", "mnli"]


def test_a_classifier_of_another_task_is_not_taken_over(tmp_path):
    folder = write_family(tmp_path / "roberta", "roberta")
    fitted = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    torch.nn.init.constant_(fitted.classifier.out_proj.weight, 7.0)
    fitted.save_pretrained(folder)
    checkpoint = find_checkpoint(str(folder))
    for outputs in (2, 3):  # as many labels as there, and others
        model = checkpoint.fine_tuned(CLASSIFICATION, outputs, checkpoint.resolve_backends(HARDWARE)).model
        assert model.classifier.out_proj.weight.shape[0] == outputs and model.classifier.out_proj.weight.abs().max() < 1
        assert torch.equal(
            model.roberta.embeddings.word_embeddings.weight, fitted.roberta.embeddings.word_embeddings.weight
        )


def test_weights_in_several_files_and_in_a_pickle_are_read(tmp_path):
    whole = write_family(tmp_path / "whole", "bert")
    model = AutoModelForMaskedLM.from_pretrained(whole)
    for name, how in (("parts", {"max_shard_size": "20KB"}), ("pickle", {"safe_serialization": False})):
        shutil.copytree(whole, tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        model.save_pretrained(tmp_path / name, **how)
        checkpoint = find_checkpoint(str(tmp_path / name))
        assert len(checkpoint.files) == (1 if name == "pickle" else len(list((tmp_path / name).glob("*.safetensors"))))
        loaded = checkpoint.fine_tuned(CLASSIFICATION, 2, checkpoint.resolve_backends(HARDWARE)).model.bert.state_dict()
        for key, tensor in model.bert.state_dict().items():
            assert torch.equal(loaded[key], tensor)


def test_what_is_no_encoder_is_refused_in_one_line(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    decoder = transformers.BertConfig(is_decoder=True)
    for config in (transformers.GPT2Config(), transformers.BartConfig(), transformers.T5Config(), transformers.ViTConfig(),
                   decoder):  # fmt: skip
        config.save_pretrained(tmp_path)
        assert f"model_type `{config.model_type}` is no encoder" in refused(find_checkpoint, str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    assert "no-such-model" in refused(find_checkpoint, str(tmp_path))


def test_another_models_tokenizer_is_refused_in_one_line(tmp_path):
    folder = write_family(tmp_path / "roberta", "roberta")
    write_family(tmp_path / "bert", "bert")

    def swap(pattern: str) -> None:
        for file in [*folder.glob("*token*"), folder / "vocab.json", folder / "merges.txt"]:
            file.unlink(missing_ok=True)
        for file in (tmp_path / pattern).glob("*token*"):
            shutil.copy(file, folder)

    swap("bert")
    assert "the tokenizer pads with 0, config.json with 1" in refused(find_checkpoint, str(folder))
    swap("nothing")
    assert "no tokenizer in it" in refused(find_checkpoint, str(folder))
    (folder / "tokenizer.json").write_text("{}")
    assert "its tokenizer cannot be loaded" in refused(find_checkpoint, str(folder))
    write_encoder(tmp_path / "ours")
    write_bpe(tmp_path / "other", pair=True)
    shutil.copy(tmp_path / "other" / "tokenizer.json", tmp_path / "ours")
    assert "they are not of one model" in refused(find_checkpoint, str(tmp_path / "ours"))
