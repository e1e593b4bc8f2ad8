"""What an item table starts from: co-occurrences, item features, neighbors."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from recsys.data.sequences import Sequences
from recsys.ids import FIRST_ITEM_INDEX
from recsys.models.item_features import ItemFeatures

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


# Of the squared length of the coefficients. A value of so few items as this
# explains half of what they have in common.
_PENALTY = 3.0
_NUM_STEPS = 30


def feature_matrix(features: ItemFeatures) -> scipy.sparse.csr_array:
    """Returns `[vocabulary_size, num_values + vector_dim]`.

    Times `[E; W]` and the layer's scale it gives the vectors of all items.
    """
    parts = []
    if features.values_per_item:
        values = features.values.numpy()
        weights = features.value_weights.numpy()
        # Items with fewer values than others are filled up with zeros.
        there = np.nonzero(weights)
        parts.append(
            scipy.sparse.coo_array(
                (weights[there], (there[0], values[there])),
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

    By conjugate gradients on the normal equations (Hestenes and Stiefel 1952),
    which needs products with the sparse X only.

    Args:
        matrix: `[num_items, num_features]`, X.
        targets: `[num_items, dim]`, Y.

    Returns:
        `[num_features, dim]` float64; near enough after a few steps.
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
    """Moves what the features explain from the rows into the features.

    Their sum stays what the rows were, for the trained items.

    Args:
        features: The layer; its E and W are set.
        rows: `[vocabulary_size, dim]` float32, what the table starts from.
        trained: `[num_trained]` int, the items with training interactions.

    Returns:
        `[vocabulary_size, dim]` float32, what is left for the table; zero for
        all other items.
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


# Items at most so many places apart in a history are neighbors.
_WINDOW = 5
_NOISE = 0.02
_RARE_SHARE = 0.1


def neighbor_rows(
    table: np.ndarray, is_new: np.ndarray, sequences: Sequences, seed: int
) -> np.ndarray:
    """Returns a table with rows for new items, as if they had been trained.

    The candidates that follow a history are trained to lie near its vector,
    so an item belongs in the direction of those that are consumed just before
    and after it: the mean of these neighbors' rows, made as long as the rows
    of old items that are as frequent. Rare items are trained to score low; the
    fewer interactions n an item has, the nearer it starts to their mean, of
    which its row has the share 1 / (n + 1). A little noise tells apart what
    would be equal.

    Args:
        table: `[vocabulary_size, embedding_dim]` float32; new rows may hold
            anything.
        is_new: `[vocabulary_size]` boolean.
        sequences: The training sequences, new items among them.
        seed: Of the noise.

    Returns:
        `[vocabulary_size, embedding_dim]` float32; rows that are not new stay
        as they are.
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
    """`[num_new, dim]`, the mean of the old rows near each; zero if none."""
    items, others = [], []
    for _, earlier, later in sequences.near_pairs(_WINDOW):
        for item, other in ((earlier, later), (later, earlier)):
            chosen = is_new[item] & ~is_new[other]
            items.append(item[chosen])
            others.append(other[chosen])
    # The place of each new item among the new ones.
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
    """`[num_new]`, how long rows of old items are that are as frequent."""
    levels, level = np.unique(counts[old], return_inverse=True)
    lengths = np.linalg.norm(table[old], axis=1)
    means = np.bincount(level, lengths) / np.bincount(level)
    return np.interp(counts[new], levels, means)
