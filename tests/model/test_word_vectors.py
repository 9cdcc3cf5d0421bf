"""Word embeddings from counts: the mutual information, its factors, and what they may not touch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from recipe.model import word_vectors

WIDTH, STD = 24, 0.02


def symmetric(counts: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array((counts + counts.T).astype(np.float32))


@pytest.fixture
def near():
    """Of 40 tokens the even ones stand near each other, the odd ones too; the last two are never seen."""
    draw, size = np.random.default_rng(5), 40
    alike = (np.arange(size)[:, None] - np.arange(size)) % 2 == 0
    counts = draw.poisson(np.where(alike, 20.0, 1.0))
    counts[-2:], counts[:, -2:] = 0, 0
    return symmetric(counts)


def test_mutual_information_is_its_definition(near):
    dense = near.toarray().astype(np.float64)
    smoothed = dense.sum(axis=0) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        given = dense / dense.sum(axis=1, keepdims=True)
        expected = np.log(given / (smoothed / smoothed.sum()))
    expected = np.where(np.isfinite(expected), np.maximum(expected, 0), 0)
    assert expected.max() > 0.3
    np.testing.assert_allclose(word_vectors.mutual_information(near).toarray(), expected, rtol=1e-5)


def test_their_products_are_the_matrix_that_was_factored(near):
    """U S U^T, where the matrix is symmetric and positive, so all of its columns are enough."""
    matrix = word_vectors.mutual_information(near)
    u, s, _ = np.linalg.svd(matrix.toarray())
    vectors = word_vectors.word_vectors(near, 40, STD, 3).double().numpy()
    expected = (u * np.sqrt(s))[:38]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True) * STD * 40**0.5
    np.testing.assert_allclose(vectors[:38] @ vectors[:38].T, expected @ expected.T, atol=1e-3)


def test_what_stands_in_the_same_places_is_alike(near):
    vectors = word_vectors.word_vectors(near, WIDTH, STD, 3)
    known = vectors[:-2]
    torch.testing.assert_close(known.norm(dim=1), torch.full((38,), STD * WIDTH**0.5))
    assert not vectors[-2:].any()
    cosines = known @ known.T / (STD**2 * WIDTH)
    even = torch.arange(38) % 2 == 0
    assert cosines[even][:, even].mean() > cosines[even][:, ~even].mean() + 0.3
    assert (known.std(dim=0) > STD / 4).all(), "no direction is left out"


def test_a_seed_gives_the_same_ones_and_torch_s_generator_does_not_move(near):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = (word_vectors.word_vectors(near, WIDTH, STD, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_more_columns_than_tokens(near):
    vectors = word_vectors.word_vectors(near, 64, STD, 3)
    torch.testing.assert_close(vectors[:38].norm(dim=1), torch.full((38,), STD * 8.0))


def test_nothing_was_seen():
    assert not word_vectors.word_vectors(sparse.csr_array((9, 9), dtype=np.float32), 8, STD, 3).any()


def test_log_frequencies():
    found = word_vectors.log_frequencies(np.array([0, 3, 5]))
    torch.testing.assert_close(found, torch.tensor([1, 4, 6]).div(11).log())
