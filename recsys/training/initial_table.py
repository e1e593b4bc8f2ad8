"""Initial item tables: from co-occurrences, item features and neighbors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse

from recsys.data.features import ItemEncoder
from recsys.data.prepare import train_counts
from recsys.data.sequences import Sequences
from recsys.data.vocabulary import Vocabulary
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
    one_way = _pair_counts(
        sequences, vocabulary_size, window, lambda distance: 1 / distance
    )
    return one_way + one_way.T


def _pair_counts(
    sequences: Sequences,
    vocabulary_size: int,
    window: int,
    weigh: Callable[[int], float],
) -> scipy.sparse.csr_array:
    """Sums the weights of the distances at which items follow each other."""
    rows, columns, counts = [], [], []
    for distance, earlier, later in sequences.near_pairs(window):
        rows.append(earlier)
        columns.append(later)
        counts.append(np.full(len(earlier), weigh(distance)))
    return scipy.sparse.coo_array(
        (
            np.concatenate(counts),
            (np.concatenate(rows), np.concatenate(columns)),
        ),
        shape=(vocabulary_size, vocabulary_size),
    ).tocsr()


# How many interactions are added to those of an item, so that what happened
# once or twice to a rare item counts for little.
_TRANSITION_PRIOR = 20


def transition_keys(
    vocabulary_size: int, dim: int, seed: int = 0
) -> np.ndarray:
    """Draws a key for each item: `dim` entries of ±1 / √dim.

    Args:
        vocabulary_size: Number of rows.
        dim: Number of columns.
        seed: Draws the signs.

    Returns:
        `[vocabulary_size, dim]` float32; zero for padding and unknown.
    """
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 2, (vocabulary_size, dim), np.int8) * 2 - 1
    keys = keys.astype(np.float32) / np.float32(np.sqrt(dim))
    keys[:FIRST_ITEM_INDEX] = 0
    return keys


def transition_values(
    sequences: Sequences,
    keys: np.ndarray,
    *,
    decay: float = 0.8,
    window: int = 5,
) -> np.ndarray:
    """Sketches how strongly items follow each other.

    An item that comes d positions after another one, up to `window`, counts
    decayᵈ⁻¹. With n the items' interactions, the strength of the transition
    from i to j is its count / √((nᵢ + 20) (nⱼ + 20)), after the sequential
    rules of Ludewig and Jannach 2018 (https://arxiv.org/abs/1803.09587). With
    the keys kᵢ the values are vⱼ = Σᵢ strength(i, j) kᵢ, so that kᵢ·vⱼ is the
    strength and some noise: its standard deviation is √(Σ strength² / dim) over
    the other transitions to j (Achlioptas 2003,
    https://doi.org/10.1016/S0022-0000(03)00025-4). Unlike a factorization of
    the same dim, it keeps single strong transitions.

    Args:
        sequences: The training sequences.
        keys: `[vocabulary_size, dim]` float32, as of `transition_keys`.
        decay: By which each further position counts less.
        window: Largest distance, in positions.

    Returns:
        `[vocabulary_size, dim]` float32.
    """
    size = len(keys)
    counts = _pair_counts(
        sequences, size, window, lambda distance: decay ** (distance - 1)
    ).astype(np.float32)
    totals = sequences.item_counts(size) + _TRANSITION_PRIOR
    scale = (1 / np.sqrt(totals)).astype(np.float32)[:, np.newaxis]
    return (scale * (counts.T @ (scale * keys))).astype(np.float32)


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
# Columns of one matrix: sparse for values, dense for vectors.
Blocks = list[Any]


def feature_matrix(
    values: Any, weights: Any, vectors: Any, num_values: int
) -> Blocks:
    """Returns `[num_items, num_values]`, then `[num_items, vector_dim]`.

    Their product with `[E; W]`, times the scale of an `ItemFeatures`, is every
    item's vector. A block without columns is left out.

    Args:
        values: As in `EncodedItems`, or None; so are the others.
        weights: `[num_items, width]` float.
        vectors: `[num_items, vector_dim]` float.
        num_values: Number of values, 0 for none included.
    """
    blocks: Blocks = []
    if values is not None and np.size(values):
        # Items with fewer values than others are padded with zeros.
        present = np.nonzero(weights)
        blocks.append(
            scipy.sparse.coo_array(
                (weights[present], (present[0], values[present])),
                shape=(len(values), num_values),
            ).tocsr()
        )
    if vectors is not None and np.size(vectors):
        blocks.append(vectors)
    return blocks


def _product(blocks: Blocks, coefficients: np.ndarray) -> np.ndarray:
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    parts = np.split(coefficients, ends)
    return sum(b @ p for b, p in zip(blocks, parts, strict=True))


def ridge_coefficients(
    blocks: Blocks, targets: np.ndarray, penalty: float = _PENALTY
) -> np.ndarray:
    """Returns the B that minimizes ‖X B − Y‖² + penalty ‖B‖².

    Uses conjugate gradients on the normal equations (Hestenes and Stiefel
    1952), which need only products with X.

    Args:
        blocks: `[num_items, …]` each, the columns of X.
        targets: `[num_items, dim]`, Y.
        penalty: Above 0.

    Returns:
        `[num_features, dim]` float64, approximate.
    """

    def transposed(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([block.T @ rows for block in blocks])

    residual = transposed(targets).astype(np.float64)
    solution = np.zeros_like(residual)
    direction = residual.copy()
    first = length = np.sum(residual**2, axis=0)
    for _ in range(_NUM_STEPS):
        if (length <= 1e-14 * first).all():
            break
        product = transposed(_product(blocks, direction)) + penalty * direction
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
    values, weights, vectors = (
        None if table is None else table.numpy()[trained]
        for table in (features.values, features.value_weights, features.vectors)
    )
    blocks = feature_matrix(values, weights, vectors, features.num_values)
    coefficients = ridge_coefficients(blocks, rows[trained]) / features.scale
    if features.values_per_item:
        features.embeddings.assign(coefficients[: features.num_values])
        coefficients = coefficients[features.num_values :]
    if features.vector_dim:
        features.projection.assign(coefficients)
    left = np.zeros_like(rows)
    left[trained] = rows[trained] - features(trained).numpy()
    return left


# Strongest first. docs/item_features.md has what is behind the numbers.
_PENALTIES = (300.0, 100.0, 30.0, 10.0, 3.0, 1.0)
_NEARLY = 1.03
_MOST_TO_CHOOSE_BY = 20_000
# Regression predicts rows so near their mean that a new item would never be
# recommended. This share of the known rows' distance costs known items nothing.
_DISTANCE = 0.7
# An item with this many interactions starts halfway between the row that its
# interactions give and the one that its features do.
_HALF_COUNT = 3.0


class FeatureRegression:
    """Predicts rows of the item table from the items' features.

    With the rows R of known items, their mean m, the mean p over their
    interactions, and the ridge regression B of R - m on the features X, an
    item's prediction is m + (p - m) / 2 + s X B. The scale s gives known items
    0.7 of the mean length of R - m.

    Args:
        encoder: Encodes the features.
        vocabulary: The items, with their `train_count`.
    """

    def __init__(self, encoder: ItemEncoder, vocabulary: Vocabulary) -> None:
        found = encoder.encode(vocabulary.items)
        self._blocks = feature_matrix(
            found.values, found.weights, found.vectors, encoder.num_values
        )
        self._counts = train_counts(vocabulary)[FIRST_ITEM_INDEX:, np.newaxis]

    def blended(
        self, table: np.ndarray, known: np.ndarray | None = None
    ) -> np.ndarray:
        """Moves each row toward its prediction, the rarer the item the more.

        With n interactions, the row keeps the share n / (n + 3): nothing of a
        new item's, almost all of a frequent one's.

        Args:
            table: `[vocabulary_size, embedding_dim]` float32.
            known: `[vocabulary_size]` boolean, the items to learn from.
                Default: those with training interactions.

        Returns:
            `[vocabulary_size, embedding_dim]` float32; padding and unknown
            are unchanged.
        """
        rows = table[FIRST_ITEM_INDEX:]
        is_known = self._counts[:, 0] > 0
        if known is not None:
            is_known &= known[FIRST_ITEM_INDEX:]
        predicted = self._predicted(rows, np.flatnonzero(is_known))
        own = self._counts / (self._counts + _HALF_COUNT)
        blended = table.copy()
        blended[FIRST_ITEM_INDEX:] = own * rows + (1 - own) * predicted
        return blended

    def filled(self, table: np.ndarray) -> np.ndarray:
        """As `blended`, for items without training interactions alone."""
        filled = table.copy()
        new = FIRST_ITEM_INDEX + np.flatnonzero(self._counts == 0)
        if len(new):
            filled[new] = self.blended(table)[new]
        return filled

    def _predicted(self, rows: np.ndarray, known: np.ndarray) -> np.ndarray:
        """`[num_items, dim]`, learned from the rows of the known items."""
        mean = rows[known].mean(axis=0)
        targets, blocks = rows[known] - mean, [b[known] for b in self._blocks]
        popular = np.average(targets, axis=0, weights=self._counts[known, 0])
        found = ridge_coefficients(blocks, targets, _penalty(blocks, targets))
        explained = _product(self._blocks, found)
        is_, would_be = (
            np.linalg.norm(each, axis=1).mean()
            for each in (targets, explained[known])
        )
        scale = _DISTANCE * is_ / max(would_be, 1e-12)
        return mean + popular / 2 + scale * explained


def _penalty(blocks: Blocks, targets: np.ndarray) -> float:
    """Returns the strongest penalty nearly as good as any on each fifth row."""
    step = -(-len(targets) // _MOST_TO_CHOOSE_BY)
    held = np.arange(4 * step, len(targets), 5 * step)
    kept = np.setdiff1d(np.arange(0, len(targets), step), held)
    errors = []
    for penalty in _PENALTIES:
        found = ridge_coefficients(
            [block[kept] for block in blocks], targets[kept], penalty
        )
        guess = _product([block[held] for block in blocks], found)
        errors.append(np.sum((targets[held] - guess) ** 2))
    nearly = np.array(errors) <= _NEARLY * min(errors)
    return _PENALTIES[int(np.argmax(nearly))]


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
