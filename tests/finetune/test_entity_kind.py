"""A label per word: words split beforehand, sub-words, windows of long sentences, and vocabularies of several kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recipe.data.tokenizer import encoder
from recipe.finetune.batches import IGNORED_LABEL, ExampleCollator
from recipe.finetune.examples import WORD_BREAK, Examples
from recipe.finetune.kinds import ENTITIES
from recipe.finetune.kinds.entities import BadTag, token_loss
from recipe.model.huggingface import load_tokenizer
from tests.tiny.families import write_family
from tests.tiny.models import write_tokenizer

LABELS = ("O", "B-A", "I-A")


@pytest.fixture(params=["wordpiece", "bytes"])
def tokenizer(request, tmp_path):
    if request.param == "wordpiece":
        write_tokenizer(tmp_path)
        return encoder(tmp_path)
    write_family(tmp_path, "roberta")
    return load_tokenizer(tmp_path)[0]


def sentences(*texts: str) -> Examples:
    return Examples(
        [(text.replace(" ", WORD_BREAK),) for text in texts], [[i % 3 for i, _ in enumerate(t.split())] for t in texts]
    )


def test_the_first_sub_word_of_each_word_has_its_label(tokenizer):
    texts = ("the horse horsetiger , red", "snake", "redhorse greenwhale under-the")
    found = ENTITIES.encode(tokenizer, sentences(*texts), 64)
    assert len(found) == 3 and found.truncated == 0
    for number, text in enumerate(texts):
        rows = found.rows([number])
        labelled = rows[found.labels[rows] != IGNORED_LABEL]
        assert found.labels[labelled].tolist() == [i % 3 for i, _ in enumerate(text.split())]
        starts = [tokenizer.decode([int(found.ids[row])]).strip().replace("##", "") for row in labelled]
        assert all(word.startswith(start) for word, start in zip(text.split(), starts, strict=True)), (text, starts)
        assert found.labels[rows[0]] == found.labels[rows[-1]] == IGNORED_LABEL  # special tokens


def test_words_are_tokenised_as_in_running_text(tokenizer):
    """A byte-level vocabulary knows a word by the space before it."""
    found = ENTITIES.encode(tokenizer, sentences("the red horse"), 64)
    tokenizer.no_truncation()
    assert found.ids.tolist() == tokenizer.encode("the red horse").ids


def test_a_long_sentence_becomes_windows_and_each_word_is_read_once(tokenizer):
    text = " ".join(["red horse under the tree"] * 9)
    examples = sentences(text, "the snake")
    whole, cut = (ENTITIES.encode(tokenizer, examples, length) for length in (200, 24))
    assert len(whole) == 2 and len(cut) == 4 and cut.lengths.max() <= 24 and cut.truncated == 0
    for found in (whole, cut):
        spoken = found.words[found.words >= 0]
        assert sorted(spoken.tolist()) == list(range(47)) and (np.diff(spoken) > 0).all()
        assert found.word_offsets.tolist() == [0, 45, 47]
    logits = np.eye(3, dtype=np.float32)[np.where(cut.labels == IGNORED_LABEL, 0, cut.labels)]
    assert ENTITIES.decode(cut, logits) == examples.labels
    # away from the ends of its window, unless the sentence itself ends there
    for number in range(len(cut) - 1):
        rows = cut.rows([number])
        places = np.flatnonzero(cut.words[rows] >= 0)
        assert number == 0 or places.min() > 2
        assert number == len(cut) - 2 or places.max() < len(rows) - 3


def test_a_word_of_which_nothing_is_left_is_outside(tokenizer):
    examples = Examples([(WORD_BREAK.join(["red", "\u200b\u200b", "horse"]),)], [()])
    found = ENTITIES.encode(tokenizer, examples, 64)
    said = next(ENTITIES.answers(found, np.zeros((len(found.labels), 3), np.float32) + [0, 0, 9], LABELS, False))
    assert len(said["prediction"]) == len(said["probability"]) == 3
    assert said["prediction"][0] == said["prediction"][2] == "I-A"


def test_tags_are_read_with_their_place():
    assert ENTITIES.read(["B-A", "I-A", "O"], LABELS) == [1, 2, 0]
    for tags, place in ((["O", "I-A"], 1), (["B-A", "B-C"], 1)):
        with pytest.raises(BadTag) as caught:
            ENTITIES.read(tags, LABELS)
        assert caught.value.place == place
    assert list(ENTITIES.words(["B-A", "O", "I-A", "O"])) == ["O", "B-A", "I-A"]


def test_the_loss_does_not_depend_on_how_a_batch_is_cut():
    logits, labels = torch.randn(12, 3), torch.tensor([0, 1, 2, -100] * 3)
    weights = torch.tensor([0.5, 2.0, 1.0])
    for given in ((), (weights,)):
        whole = token_loss(logits, labels, *given)
        counts = [(labels[part] != -100).sum() for part in (slice(0, 5), slice(5, 12))]
        pieces = [token_loss(logits[part], labels[part], *given) for part in (slice(0, 5), slice(5, 12))]
        total = sum(piece * count for piece, count in zip(pieces, counts, strict=True)) / sum(counts)
        torch.testing.assert_close(whole, total)
    assert token_loss(logits[:1], torch.tensor([-100])) == 0
    torch.testing.assert_close(token_loss(logits, labels), torch.nn.functional.cross_entropy(logits, labels))


def test_a_batch_of_windows(tokenizer):
    found = ENTITIES.encode(tokenizer, sentences(" ".join(["red horse"] * 20), "the snake"), 16)
    for pad in (None, 0):
        collator = ExampleCollator(40, pad)
        for part in collator.parts(found, range(len(found))):
            batch = collator.batch(found, part)
            assert len(batch["labels"]) == found.lengths[part].sum()
            assert batch["counts"][0, 3] == (batch["labels"] != IGNORED_LABEL).sum()
