"""Item vectors from what occurs near what, to start training from.

Factorizing the positive pointwise mutual information of near items gives what
a skip-gram model would learn from the same windows (Levy and Goldberg 2014,
https://papers.nips.cc/paper/5477), in seconds. Started from there, the table
need not find the neighbourhoods of rare items by gradient steps.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from recsys.data.sequences import Sequences

# Context counts to this power, so that rare contexts do not dominate
# (Levy, Goldberg and Dagan 2015, https://doi.org/10.1162/tacl_a_00134).
_CONTEXT_POWER = 0.75


def co_occurrence_vectors(
    sequences: Sequences,
    vocabulary_size: int,
    dim: int,
    *,
    window: int = 10,
    seed: int = 0,
) -> np.ndarray:
    """Factorizes the co-occurrences of items within a window.

    Two items of one user d places apart, d from 1 to `window`, count 1 / d in
    both directions. With P the positive pointwise mutual information of these
    counts and U S Vᵀ its truncated singular value decomposition, the vectors
    are the rows of U √S, scaled to a root mean square of 1 over the items
    that have any.

    Args:
        sequences: The training sequences.
        vocabulary_size: Rows of the result.
        dim: Columns of the result.
        window: Greatest distance in positions.
        seed: Of the randomized decomposition.

    Returns:
        `[vocabulary_size, dim]` float32; zero for items without neighbours,
        and in columns beyond the rank of P.
    """
    information = _positive_information(
        _near_counts(sequences, vocabulary_size, window)
    )
    vectors = _left_factor(information, dim, np.random.default_rng(seed))
    present = np.abs(vectors).sum(axis=1) > 0
    scale = np.sqrt(np.mean(vectors[present] ** 2)) if present.any() else 1.0
    return (vectors / scale).astype(np.float32)


def _near_counts(
    sequences: Sequences, vocabulary_size: int, window: int
) -> scipy.sparse.csr_array:
    """`[vocabulary_size, vocabulary_size]`, symmetric, Σ 1 / distance."""
    rows, columns, counts = [], [], []
    for distance, earlier, later in sequences.near_pairs(window):
        rows.append(earlier)
        columns.append(later)
        counts.append(np.full(len(earlier), 1 / distance))
    one_way = scipy.sparse.coo_array(
        (
            np.concatenate(counts),
            (np.concatenate(rows), np.concatenate(columns)),
        ),
        shape=(vocabulary_size, vocabulary_size),
    ).tocsr()
    return one_way + one_way.T


def _positive_information(
    counts: scipy.sparse.csr_array,
) -> scipy.sparse.csr_array:
    """max(0, log(p(i, j) / (p(i) p(j)^power))), the last normalized."""
    pairs = counts.tocoo()
    total = counts.sum(axis=1)
    context = total**_CONTEXT_POWER
    context /= max(context.sum(), 1e-12)
    row, column = pairs.coords
    information = np.log(pairs.data / (total[row] * context[column]))
    positive = information > 0
    return scipy.sparse.csr_array(
        (information[positive], (row[positive], column[positive])),
        shape=counts.shape,
    )


def _left_factor(
    matrix: scipy.sparse.csr_array, dim: int, rng: np.random.Generator
) -> np.ndarray:
    """U √S of the largest `dim` singular values, by random projection.

    Halko, Martinsson and Tropp 2011 (https://doi.org/10.1137/090771806),
    with four power iterations, each made orthogonal again.
    """
    size = matrix.shape[0]
    rank = min(dim + 16, size)
    basis = rng.standard_normal((size, rank))
    for _ in range(4):
        basis = np.linalg.qr(matrix @ basis).Q
        basis = np.linalg.qr(matrix.T @ basis).Q
    basis = np.linalg.qr(matrix @ basis).Q
    left, values, _ = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    factor = np.zeros((size, dim))
    kept = min(dim, rank)
    factor[:, :kept] = (basis @ left[:, :kept]) * np.sqrt(values[:kept])
    return factor
