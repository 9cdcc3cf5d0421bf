"""Counts of what stands near what, against counting by hand; which documents they are made of."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from recipe.config import Data
from recipe.data import cooccurrence
from recipe.data.cache import open_dataset
from recipe.data.stream import open_documents


@pytest.fixture
def opened(tiny_dataset):
    data = Data(path=str(tiny_dataset))
    info = open_dataset(data, ("train",))
    return open_documents(data, info, "train"), info.vocabulary.size


def by_hand(texts: list[np.ndarray], size: int) -> np.ndarray:
    found = np.zeros((size, size))
    for text in texts:
        for i, one in enumerate(text):
            for distance, other in enumerate(text[i + 1 : i + 1 + cooccurrence.REACH], 1):
                found[one, other] += 1 / distance
                found[other, one] += 1 / distance
    return found


@pytest.mark.parametrize("at_a_time", [50, 2**19])
def test_counts_are_those_made_by_hand(opened, monkeypatch, at_a_time):
    monkeypatch.setattr(cooccurrence, "_AT_A_TIME", at_a_time)
    documents, size = opened
    found = cooccurrence.count(documents, size, 10**9, 20, near=True)
    texts = documents.read(np.arange(len(documents)), 20)
    assert found.tokens == sum(map(len, texts))
    np.testing.assert_array_equal(found.frequency_V, np.bincount(np.concatenate(texts), minlength=size))
    np.testing.assert_allclose(found.near_VV.toarray(), by_hand(texts, size), rtol=1e-5)
    assert cooccurrence.count(documents, size, 10**9, 20, near=False).near_VV is None


def test_a_sample_is_of_few_shards_that_lie_apart():
    lengths = np.random.default_rng(0).integers(1, 100, 4000)
    documents = SimpleNamespace(lengths=lengths, sizes=np.full(40, 100))
    assert len(cooccurrence.sample(documents, 10**9, 100)) == 4000
    numbers = cooccurrence.sample(documents, 20_000, 100)
    assert lengths[numbers].sum() == pytest.approx(20_000, rel=0.2)
    shards = np.unique(numbers // 100)
    assert shards.tolist() == [0, 13, 26, 39]
    few = cooccurrence.sample(documents, 500, 100)
    assert set(few // 100) == {0} and lengths[few].sum() == pytest.approx(500, rel=0.4)
    cut = cooccurrence.sample(documents, 20_000, 10)
    assert np.minimum(lengths[cut], 10).sum() == pytest.approx(20_000, rel=0.2)
