"""WordPiece: trained deterministically, from a file, by name; saved so that transformers loads it."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizerFast

from recipe.config import Tokenizer as Settings
from recipe.data import tokenizer
from recipe.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
BERT = ROOT.parent / "shared" / "data" / "vocab" / "bert-base-uncased-vocab.txt"
MINIMAL = [*tokenizer.SPECIAL, "the", "cat", "##s", "sat", ".", "[", "]", "mask"]


def texts(count=400, seed=3):
    draw = random.Random(seed)
    syllables = ["ka", "to", "mi", "ren", "shu", "Pol", "é", "ß", "ing", "日", "-", "!", "9"]
    return [
        " ".join("".join(draw.choices(syllables, k=draw.randint(1, 5))) for _ in range(40)) + f" rare{chr(0x2600 + i)}"
        for i in range(count)
    ]


def vocabulary_file(tmp_path, entries):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(entries) + "\n", "utf-8")
    return str(path)


def test_training_is_deterministic(tmp_path):
    """The library's hash maps have another seed at each training, so two in one process are as good as two processes."""
    for run in "abc":
        tokenizer.save(tokenizer.train(texts(), Settings(vocab_size=600)), tmp_path / run)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    for name in names:
        first, *others = ((tmp_path / run / name).read_bytes() for run in "abc")
        assert others == [first, first], name


def test_training_is_the_same_in_every_process():
    """Whatever Python's own hashes are, and on however many threads."""
    code = (
        "from pydoc_data.topics import topics\n"
        "from recipe.config import Tokenizer\n"
        "from recipe.data import tokenizer\n"
        "print(tokenizer.digest(tokenizer.train([*topics.values()], Tokenizer(vocab_size=2048))))\n"
    )
    digests = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": parallel},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed, parallel in (("1", "true"), ("77", "false"))
    ]
    assert len(digests[0].strip()) == 64 and digests[0] == digests[1]


def test_trained_vocabulary(tmp_path):
    trained = tokenizer.train(texts(), Settings(vocab_size=600))
    assert len(trained) == 600
    assert trained.convert_tokens_to_ids(list(tokenizer.SPECIAL)) == [0, 1, 2, 3, 4]
    tokenizer.save(trained, tmp_path)
    entries = (tmp_path / "vocab.txt").read_text("utf-8").split("\n")[:-1]
    assert len(set(entries)) == 600
    assert "##日" not in entries  # ideographs stand alone, so this entry could never be used
    assert "##-" not in entries
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, BertTokenizerFast)
    for line in texts(5, seed=9):
        ids = loaded(line)["input_ids"]
        assert ids == trained(line)["input_ids"]
        assert ids[0] == loaded.cls_token_id and ids[-1] == loaded.sep_token_id
        assert loaded.unk_token_id not in loaded(line.rsplit(" ", 1)[0])["input_ids"]
    pair = loaded("kato", "miren")
    assert pair["token_type_ids"][0] == 0 and pair["token_type_ids"][-1] == 1


@pytest.mark.parametrize("lowercase", [True, False])
def test_case(tmp_path, lowercase):
    trained = tokenizer.train(texts(), Settings(vocab_size=400, lowercase=lowercase))
    tokenizer.save(trained, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.do_lower_case == lowercase
    assert (loaded.tokenize("Pol") == loaded.tokenize("pol")) == lowercase


def test_a_literal_special_token_in_text_is_text(tmp_path):
    existing = tokenizer.load(Settings(vocab_file=vocabulary_file(tmp_path, MINIMAL)))
    tokenizer.save(existing, tmp_path / "saved")
    encoding = tokenizer.encoder(tmp_path / "saved").encode("The [MASK] cats.", add_special_tokens=False)
    assert encoding.tokens == ["the", "[", "mask", "]", "cat", "##s", "."]


def test_nothing_is_cut_or_padded(tmp_path):
    existing = tokenizer.load(Settings(vocab_file=vocabulary_file(tmp_path, MINIMAL)))
    tokenizer.save(existing, tmp_path / "saved")
    file = tmp_path / "saved" / "tokenizer.json"
    saved = json.loads(file.read_text())
    saved["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    file.write_text(json.dumps(saved))
    batch = tokenizer.encoder(tmp_path / "saved").encode_batch_fast(["cats " * 9, "the"], add_special_tokens=False)
    assert [len(encoding.ids) for encoding in batch] == [18, 1]


def test_by_folder(tmp_path):
    tokenizer.save(tokenizer.load(Settings(vocab_file=vocabulary_file(tmp_path, MINIMAL))), tmp_path / "saved")
    named = tokenizer.load(Settings(name=str(tmp_path / "saved")))
    assert named.get_vocab() == {token: i for i, token in enumerate(MINIMAL)}


def test_bert_vocabulary(tmp_path):
    if not BERT.is_file():
        pytest.skip("BERT's vocabulary is not at ../shared/data/vocab")
    existing = tokenizer.load(Settings(vocab_file=str(BERT)))
    tokenizer.save(existing, tmp_path)
    assert (tmp_path / "vocab.txt").read_text("utf-8").split() == BERT.read_text("utf-8").split()
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == 30522
    assert (loaded.pad_token_id, loaded.unk_token_id, loaded.cls_token_id) == (0, 100, 101)
    assert (loaded.sep_token_id, loaded.mask_token_id) == (102, 103)
    assert loaded.tokenize("Héllo, unaffable 東京!") == ["hello", ",", "una", "##ffa", "##ble", "東", "京", "!"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (MINIMAL[1:], r"lacks \[PAD\]"),
        (["a", "b"], r"lacks \[PAD\] \[UNK\] \[CLS\] \[SEP\] \[MASK\]"),
        ([*MINIMAL, "cat"], r"vocab.txt:14: `cat` stands already in line 7"),
        ([*MINIMAL, "Cat"], "holds capitals .*lowercase=false"),
    ],
)
def test_unusable_vocabularies(tmp_path, entries, message):
    with pytest.raises(UserError, match=message):
        tokenizer.load(Settings(vocab_file=vocabulary_file(tmp_path, entries)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(vocab_file="a", name="b"), "both set"),
        (Settings(vocab_file="no-such-file"), "no-such-file cannot be read"),
        (Settings(name="./no-such-folder"), "cannot be loaded"),
    ],
)
def test_contradictory_settings(settings, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as error:
        tokenizer.load(settings)
    assert "\n" not in str(error.value)


def test_a_tokenizer_without_a_fast_form(tmp_path, monkeypatch):
    """And one without a mask: neither can be prepared with."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="has no pad_token and no cls_token and no sep_token and no mask_token; add it"):
        tokenizer.load(Settings(name=str(tmp_path)))
    slow = BertTokenizer(vocabulary_file(tmp_path, MINIMAL))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: slow)
    with pytest.raises(UserError, match="is a BertTokenizer, which has no fast form"):
        tokenizer.load(Settings(name=str(tmp_path)))
