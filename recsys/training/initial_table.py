"""Initial item tables: from co-occurrences, item features and neighbors."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from recsys.data.sequences import Sequences
from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.item_features import ItemFeatures

# Exponent of context counts, so that rare contexts do not dominate
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

    Two items in a user's history at a distance of d positions, from 1 to
    `window`, count 1 / d in both directions. With P the positive pointwise
    mutual information of these counts and U S Vᵀ its truncated singular value
    decomposition, the vectors are the rows of U √S, scaled to a root mean
    square of 1 over the items with neighbors.

    Args:
        sequences: The training sequences.
        vocabulary_size: Number of rows.
        dim: Number of columns.
        window: Largest distance, in positions.
        seed: Seed of the randomized decomposition.

    Returns:
        `[vocabulary_size, dim]` float32; zero for items without neighbors,
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
    """U √S of the largest `dim` singular values, by random projection."""
    # Halko, Martinsson and Tropp 2011, https://doi.org/10.1137/090771806
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


# Weight of the squared coefficients. A feature value of this many items
# explains half of what they have in common.
_PENALTY = 3.0
_NUM_STEPS = 30


def feature_matrix(features: ItemFeatures) -> scipy.sparse.csr_array:
    """Returns `[vocabulary_size, num_values + vector_dim]`.

    Its product with `[E; W]`, times the layer's scale, is every item's vector.
    """
    parts = []
    if features.values_per_item:
        values = features.values.numpy()
        weights = features.value_weights.numpy()
        # Items with fewer values than others are padded with zeros.
        present = np.nonzero(weights)
        parts.append(
            scipy.sparse.coo_array(
                (weights[present], (present[0], values[present])),
                shape=(len(values), features.num_values),
            )
        )
    if features.vector_dim:
        parts.append(scipy.sparse.coo_array(features.vectors.numpy()))
    return scipy.sparse.hstack(parts).tocsr()


def ridge_coefficients(
    matrix: scipy.sparse.csr_array, targets: np.ndarray
) -> np.ndarray:
    """Returns the B that minimizes ‖X B − Y‖² + penalty ‖B‖².

    Uses conjugate gradients on the normal equations (Hestenes and Stiefel
    1952), which need only products with the sparse X.

    Args:
        matrix: `[num_items, num_features]`, X.
        targets: `[num_items, dim]`, Y.

    Returns:
        `[num_features, dim]` float64, approximate.
    """
    solution = np.zeros((matrix.shape[1], targets.shape[1]))
    residual = matrix.T @ targets
    direction = residual.copy()
    length = np.sum(residual**2, axis=0)
    for _ in range(_NUM_STEPS):
        product = matrix.T @ (matrix @ direction) + _PENALTY * direction
        curvature = np.sum(direction * product, axis=0)
        step = length / np.maximum(curvature, 1e-30)
        solution += step * direction
        residual -= step * product
        before, length = length, np.sum(residual**2, axis=0)
        direction = residual + length / np.maximum(before, 1e-30) * direction
    return solution


def explain_rows(
    features: ItemFeatures, rows: np.ndarray, trained: np.ndarray
) -> np.ndarray:
    """Moves the part of the rows that the features explain into the layer.

    For trained items the sum of both stays equal to the rows.

    Args:
        features: The layer, whose E and W are assigned.
        rows: `[vocabulary_size, dim]` float32, the initial table.
        trained: `[num_trained]` int, the items with training interactions.

    Returns:
        `[vocabulary_size, dim]` float32, the rest of the rows; zero for
        untrained items.
    """
    matrix = feature_matrix(features)
    coefficients = ridge_coefficients(matrix[trained], rows[trained])
    coefficients /= features.scale
    if features.values_per_item:
        features.embeddings.assign(coefficients[: features.num_values])
        coefficients = coefficients[features.num_values :]
    if features.vector_dim:
        features.projection.assign(coefficients)
    left = np.zeros_like(rows)
    left[trained] = rows[trained] - features(trained).numpy()
    return left


# The largest distance of neighbors in a history, in positions.
_WINDOW = 5
_NOISE = 0.02
_RARE_SHARE = 0.1


def neighbor_rows(
    table: np.ndarray, is_new: np.ndarray, sequences: Sequences, seed: int
) -> np.ndarray:
    """Fills in rows for new items that resemble trained rows.

    Candidates are trained to lie near the vectors of the histories before
    them, so a new item should point in the direction of the items consumed
    just before and after it: the mean of these neighbors' rows, scaled to the
    length of old items' rows at the same frequency. Rare items are trained to
    score low, so an item with n interactions starts as n / (n + 1) of that
    mean plus 1 / (n + 1) of the mean of the rare items. A little noise keeps
    rows distinct.

    Args:
        table: `[vocabulary_size, embedding_dim]` float32; new rows are
            ignored.
        is_new: `[vocabulary_size]` boolean.
        sequences: The training sequences, including new items.
        seed: Seed of the noise.

    Returns:
        `[vocabulary_size, embedding_dim]` float32, with old rows unchanged.
    """
    counts = sequences.item_counts(len(table))
    new = np.flatnonzero(is_new)
    old = np.flatnonzero(~is_new)[FIRST_ITEM_INDEX:]
    rare = old[counts[old] <= np.quantile(counts[old], _RARE_SHARE)]
    means = _neighbor_means(table, is_new, sequences)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    means = np.divide(means, lengths, where=lengths > 0, out=means)
    means *= _usual_lengths(table, counts, old, new)[:, np.newaxis]
    n = counts[new, np.newaxis]
    share = n / (n + 1) * (lengths > 0)
    rows = share * means + (1 - share) * table[rare].mean(axis=0)
    rng = np.random.default_rng(seed)
    rows += _NOISE * rng.standard_normal(rows.shape)
    grown = table.copy()
    grown[new] = rows
    return grown


def _neighbor_means(
    table: np.ndarray, is_new: np.ndarray, sequences: Sequences
) -> np.ndarray:
    """`[num_new, dim]`, the mean of each item's old neighbors; zero if none."""
    items, others = [], []
    for _, earlier, later in sequences.near_pairs(_WINDOW):
        for item, other in ((earlier, later), (later, earlier)):
            chosen = is_new[item] & ~is_new[other]
            items.append(item[chosen])
            others.append(other[chosen])
    # The position of each new item among the new ones.
    place = np.cumsum(is_new) - 1
    rows, columns = place[np.concatenate(items)], np.concatenate(others)
    near = scipy.sparse.coo_array(
        (np.ones(len(rows)), (rows, columns)),
        shape=(np.count_nonzero(is_new), len(table)),
    ).tocsr()
    return (near @ table) / np.maximum(near.sum(axis=1), 1)[:, np.newaxis]


def _usual_lengths(
    table: np.ndarray, counts: np.ndarray, old: np.ndarray, new: np.ndarray
) -> np.ndarray:
    """`[num_new]`, the mean length of old rows at the same frequency."""
    levels, level = np.unique(counts[old], return_inverse=True)
    lengths = np.linalg.norm(table[old], axis=1)
    means = np.bincount(level, lengths) / np.bincount(level)
    return np.interp(counts[new], levels, means)
