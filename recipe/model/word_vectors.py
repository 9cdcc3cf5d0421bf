"""Word embeddings from counts: what a masked language model's first batches would otherwise be spent on.

Positive pointwise mutual information of a token and what stands near it, contexts' frequencies smoothed (Levy, Goldberg and
Dagan, 2015), factored by a randomised SVD into U sqrt(S): word2vec's implicit matrix (Levy and Goldberg, 2014), not trained.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

SMOOTHING = 0.75  # power of the contexts' frequencies
_MORE = 10  # columns beside those wanted, for the SVD's precision
_ROUNDS = 2


def log_frequencies(frequency_V: np.ndarray) -> Tensor:
    """(V,) float32: log probability of each token, each counted once more."""
    counts_V = torch.from_numpy(frequency_V).double() + 1
    return (counts_V / counts_V.sum()).log().float()


def word_vectors(near_VV: sparse.csr_array, width: int, std: float, seed: int) -> Tensor:
    """(V, width) float32, rows of the norm that N(0, std) gives; rows of tokens that nothing is known of are 0.

    `near_VV` has the weights with which tokens stand near each other. The columns are turned by a random orthogonal matrix: else
    the first of them would hold most of the variance, and attention heads would begin with unequal shares of it. The same seed
    gives the same vectors, and torch's generator is left as it is.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        matrix, columns = _as_torch(mutual_information(near_VV)), min(width, near_VV.shape[0])
        u_VC, s_C, _ = torch.svd_lowrank(matrix, min(columns + _MORE, near_VV.shape[0]), niter=_ROUNDS)
        turn_DD, _ = torch.linalg.qr(torch.randn(width, width))
        vectors_VD = (u_VC[:, :columns] * s_C[:columns].sqrt()) @ turn_DD[:columns]
    norm_V1 = vectors_VD.norm(dim=1, keepdim=True)
    known_V1 = norm_V1 > 1e-6 * norm_V1.max()
    return torch.where(known_V1, vectors_VD / norm_V1, 0.0) * std * width**0.5


def mutual_information(near_VV: sparse.csr_array) -> sparse.csr_array:
    """(V, V): max(0, log(P(near | token) / P(near))) where the two were seen together, P(near) after smoothing; else 0."""
    row_V = near_VV.sum(axis=1)
    context_V = row_V**SMOOTHING
    context_V = context_V / max(context_V.sum(), 1e-30)
    pairs = near_VV.tocoo()
    row, column = pairs.coords
    values = np.log(pairs.data / (row_V[row] * context_V[column]))
    seen = values > 0
    return sparse.coo_array((values[seen], (row[seen], column[seen])), near_VV.shape).tocsr()


def _as_torch(matrix: sparse.csr_array) -> Tensor:
    """By rows, so that its transpose is multiplied six times as fast as that of a list of places."""
    parts = (torch.from_numpy(part.astype(np.int64)) for part in (matrix.indptr, matrix.indices))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(*parts, torch.from_numpy(matrix.data.astype(np.float32)), matrix.shape)
