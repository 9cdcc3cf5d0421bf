"""Words told by ids alone are the words that the tokenizer's own pre-tokenizer made of the text."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from recipe.config import Tokenizer as Settings
from recipe.data import tokenizer
from recipe.data.words import words_of
from tests.mistakes import refused
from tests.tiny.tokenizers import TOKENIZERS, TRAINED_ON, write_other_tokenizer

TEXTS = [
    *TRAINED_ON[:20],
    "Why (cats) sat, 123 dogs... it's rained\nunder  the-tree 7th",
    "naïveté; 東京 x2y",
    "unbelievable!?",
]


@pytest.mark.parametrize("kind", [*TOKENIZERS, "ours"])
def test_words_are_the_pre_tokenizer_s(tmp_path, kind):
    if kind == "ours":
        tokenizer.save(tokenizer.train(TRAINED_ON, Settings(vocab_size=256)), tmp_path)
    else:
        write_other_tokenizer(tmp_path, kind)
    encode, words = tokenizer.encoder(tmp_path), words_of(tmp_path)
    several = 0
    for text in TEXTS:
        encoding = encode.encode(text, add_special_tokens=False)
        own = np.array(encoding.word_ids)
        begins = np.concatenate([[True], own[1:] != own[:-1]])
        assert words.begins(np.array(encoding.ids)).tolist() == begins.tolist(), encoding.tokens
        several += int((~begins).sum())
    assert several > 10, "every token is a word, so nothing was tested"


def test_a_suffix_or_a_prefix_of_the_vocabulary_s_own_marks_words(tmp_path):
    for settings in ({"end_of_word_suffix": "</w>"}, {"continuing_subword_prefix": "@@"}):
        bpe = Tokenizer(models.BPE(**settings))
        bpe.pre_tokenizer = pre_tokenizers.Whitespace()
        bpe.train_from_iterator(TRAINED_ON, trainers.BpeTrainer(vocab_size=120, show_progress=False, **settings))
        bpe.save(str(tmp_path / "tokenizer.json"))
        encoding = bpe.encode("whybirds catsrained, treecat")
        own = np.array(encoding.word_ids)
        begins = words_of(tmp_path).begins(np.array(encoding.ids))
        assert begins.tolist() == [True, *(own[1:] != own[:-1]).tolist()]
        assert not begins.all()


def test_ids_that_do_not_tell_are_refused(tmp_path):
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(TRAINED_ON, trainers.BpeTrainer(vocab_size=120, show_progress=False))
    bpe.save(str(tmp_path / "tokenizer.json"))
    assert "set data.masking=token or span" in refused(words_of, tmp_path)


def test_without_a_pre_tokenizer_spaces_part_words(tmp_path):
    """As in a SentencePiece model that was converted: the normalizer alone marks spaces."""
    write_other_tokenizer(tmp_path, "unigram")
    file = tmp_path / "tokenizer.json"
    shutil.copy(file, tmp_path / "before.json")
    parts = json.loads(file.read_text("utf-8"))
    parts["pre_tokenizer"] = None
    file.write_text(json.dumps(parts), "utf-8")
    encoding = Tokenizer.from_file(str(tmp_path / "before.json")).encode("why birds rained", add_special_tokens=False)
    own = np.array(encoding.word_ids)
    begins = words_of(tmp_path).begins(np.array(encoding.ids))
    assert begins.tolist() == [True, *(own[1:] != own[:-1]).tolist()]
