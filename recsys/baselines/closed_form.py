"""Baselines without iterations: popularity, Markov, item kNN, EASE."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.linalg
import scipy.sparse

from recsys.data.sequences import Sequences
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX
from recsys.retrieval import top_columns

# Memory of one block of co-occurrence counts.
_BLOCK_BYTES = 64 * 2**20


def binary_matrix(
    items: np.ndarray,
    offsets: np.ndarray,
    vocabulary_size: int,
    weights: np.ndarray | None = None,
) -> scipy.sparse.csr_array:
    """Marks the items of each history.

    Args:
        items: `[total]` int32 vocabulary indices of all histories. Padding
            and unknown items are dropped.
        offsets: `[num_histories + 1]` int64, where each history begins.
        vocabulary_size: Number of columns.
        weights: `[total]` float, positive; ones by default.

    Returns:
        `[num_histories, vocabulary_size]` float32: the largest weight of the
        item in the history, 0 where the history does not contain it.
    """
    is_item = items >= FIRST_ITEM_INDEX
    columns = items[is_item]
    matrix = scipy.sparse.csr_array(
        (
            np.ones(len(columns), np.float32),
            columns,
            np.append(0, np.cumsum(is_item))[offsets],
        ),
        shape=(len(offsets) - 1, vocabulary_size),
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1
    if weights is not None:
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        keys = rows[is_item].astype(np.int64) * vocabulary_size + columns
        # In the order of the matrix: by row, then by column.
        _, place = np.unique(keys, return_inverse=True)
        matrix.data[:] = 0
        np.maximum.at(matrix.data, place, weights[is_item])
    return matrix


def training_matrix(
    train: Sequences, vocabulary_size: int
) -> scipy.sparse.csr_array:
    """Marks the items of each user so that products count them.

    Where there are kinds of events, an interaction of weight w is √w: an item
    then counts w in the diagonal of X^T X, and two items the geometric mean of
    their weights.
    """
    weights = train.event_weights
    return binary_matrix(
        train.items,
        train.offsets,
        vocabulary_size,
        None if weights is None else np.sqrt(weights),
    )


def co_occurrence_blocks(
    matrix: scipy.sparse.csr_array,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields `X^T X` in blocks of rows.

    The whole product as a sparse matrix would take several times the memory
    of a dense one, because most popular items co-occur.

    Args:
        matrix: `[num_users, num_items]` float32, the matrix X.

    Yields:
        The rows, and `[num_rows, num_items]` float32, which may be modified.
    """
    num_items = matrix.shape[1]
    by_item = matrix.T.tocsr()
    step = max(1, _BLOCK_BYTES // (4 * max(1, num_items)))
    for start in range(0, num_items, step):
        rows = slice(start, min(start + step, num_items))
        yield rows, (by_item[rows] @ matrix).toarray()


class Popularity:
    """Scores an item by its number of training interactions.

    Where there are kinds of events, by the weights of those that are targets.

    Args:
        item_scores: `[vocabulary_size]` float32, the scores of every query.
        name: The name in results tables.
    """

    def __init__(
        self, item_scores: np.ndarray, name: str = "popularity"
    ) -> None:
        self.name = name
        self._item_scores = item_scores

    @classmethod
    def fit(cls, train: Sequences, vocabulary_size: int) -> Popularity:
        """Counts the training interactions of each item."""
        counts = train.target_weights_by_item(vocabulary_size)
        return cls(counts.astype(np.float32))

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns the same scores for every history, read-only."""
        shape = (len(offsets) - 1, len(self._item_scores))
        return np.broadcast_to(self._item_scores, shape)


class RecentPopularity(Popularity):
    """Scores an item by its training interactions, weighted by recency.

    An interaction of age a has the weight `0.5 ** (a / half_life)`. Ages are
    relative to the last training interaction, so the scores are the
    popularity at the end of training.
    """

    @classmethod
    def fit(
        cls,
        train: Sequences,
        vocabulary_size: int,
        *,
        half_life: float = 0.1,
        unit: str = "interactions",
    ) -> RecentPopularity:
        """Sums the weights of each item's training interactions.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, including padding and unknown.
            half_life: The age at which the weight is one half, in `unit`.
            unit: "interactions" defines the age as the fraction of all
                training interactions with a later timestamp, from 0 to 1,
                which needs nothing but an order. "time" defines it as a
                difference of timestamps, in the log's own unit.

        Raises:
            ValueError: `half_life` is not positive or `unit` is unknown.
        """
        if not half_life > 0:
            raise ValueError(
                f"`half_life` must be positive. Received: {half_life}"
            )
        times = train.timestamps
        if unit == "interactions":
            up_to_then = np.searchsorted(np.sort(times), times, "right")
            ages = 1 - up_to_then / max(1, len(times))
        elif unit == "time":
            ages = times.max(initial=times.min(initial=0)) - times
        else:
            raise ValueError(
                f'`unit` must be "interactions" or "time". Received: {unit!r}'
            )
        weights = np.exp2(-ages / half_life)
        if train.kinds is not None:
            weights *= train.target_weights
        totals = np.bincount(train.items, weights, minlength=vocabulary_size)
        return cls(totals.astype(np.float32), "recent popularity")


class Markov:
    """Scores an item by how often it directly followed the last item.

    The probability of item j after item i is smoothed by popularity:

        (count(i, j) + smoothing * p(j)) / (count(i) + smoothing)

    where p(j) is the item's share of the training interactions (a Dirichlet
    prior; Zhai and Lafferty 2001, https://doi.org/10.1145/383952.384019).
    Items that never followed i are therefore ordered by popularity, as are
    all items if nothing followed i or the history is empty. Where there are
    kinds of events, an interaction counts its weight, or 0 if it is history
    only.

    Args:
        transitions: `[vocabulary_size, vocabulary_size]` float32, how often
            the column followed the row.
        popularity: `[vocabulary_size]` float32 shares that sum to 1.
        smoothing: Weight of the prior, in interactions; positive.
    """

    name = "markov"

    def __init__(
        self,
        transitions: scipy.sparse.csr_array,
        popularity: np.ndarray,
        smoothing: float,
    ) -> None:
        if not smoothing > 0:
            raise ValueError(
                f"`smoothing` must be positive. Received: {smoothing}"
            )
        self._transitions = transitions
        self._totals = np.asarray(transitions.sum(axis=1), np.float32)
        self._prior = (smoothing * popularity).astype(np.float32)
        self._smoothing = np.float32(smoothing)

    @classmethod
    def fit(
        cls,
        train: Sequences,
        vocabulary_size: int,
        *,
        smoothing: float = 1.0,
    ) -> Markov:
        """Counts how often each item directly follows each other item.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, including padding and unknown.
            smoothing: Weight of the popularity prior, in interactions.

        Raises:
            ValueError: `smoothing` is not positive.
        """
        last = train.offsets[1:][train.lengths > 0] - 1
        before = np.delete(np.arange(len(train.items)), last)
        weights = train.target_weights
        if weights is None:
            weights = np.ones(len(train.items), np.float32)
        transitions = scipy.sparse.coo_array(
            (
                weights[before + 1],
                (train.items[before], train.items[before + 1]),
            ),
            shape=(vocabulary_size, vocabulary_size),
        ).tocsr()
        counts = train.target_weights_by_item(vocabulary_size)
        return cls(transitions, counts / max(1, counts.sum()), smoothing)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns the probability of each item being next; see `Scorer`."""
        # An empty history is scored like one that ends in an unknown item.
        padded = np.append(np.int32(UNKNOWN_INDEX), items)
        is_empty = offsets[1:] == offsets[:-1]
        last = np.where(is_empty, UNKNOWN_INDEX, padded[offsets[1:]])
        scores = self._transitions[last].toarray()
        scores += self._prior
        scores /= (self._totals[last] + self._smoothing)[:, np.newaxis]
        return scores


class ItemKNN:
    """Scores an item by its similarity to the items of the history.

    The similarity of items i and j is the cosine of their columns in the
    binary user-item matrix, shrunk if few users support it:

        users(i and j) / (sqrt(users(i) * users(j)) + shrinkage)

    (Sarwar et al. 2001, https://doi.org/10.1145/371920.372071; shrinkage as
    in Ferrari Dacrema et al. 2019, https://doi.org/10.1145/3298689.3347058).
    The score of j is the sum over the items of the history that are among
    the nearest neighbors of j.

    Args:
        neighbors: `[vocabulary_size, vocabulary_size]` float32; row j holds
            the similarities of the neighbors of j.
    """

    name = "item kNN"

    def __init__(self, neighbors: scipy.sparse.csr_array) -> None:
        self._weights = neighbors.T.tocsr()

    @classmethod
    def fit(
        cls,
        train: Sequences,
        vocabulary_size: int,
        *,
        num_neighbours: int = 100,
        shrinkage: float = 10.0,
    ) -> ItemKNN:
        """Finds the nearest neighbors of every item.

        The defaults were tuned on the leave-last-out validation queries of
        the bundled data.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, including padding and unknown.
            num_neighbours: Number of neighbors to keep per item.
            shrinkage: Added to the denominator; larger values trust only
                frequent pairs.

        Raises:
            ValueError: `num_neighbours` is not positive or `shrinkage` is
                negative.
        """
        if num_neighbours < 1 or shrinkage < 0:
            raise ValueError(
                "`num_neighbours` must be positive and `shrinkage` must not "
                f"be negative. Received: {num_neighbours} and {shrinkage}"
            )
        matrix = training_matrix(train, vocabulary_size)
        norms = np.sqrt(matrix.power(2).sum(axis=0))
        blocks = []
        for rows, similarity in co_occurrence_blocks(matrix):
            similarity /= np.maximum(
                np.outer(norms[rows], norms) + shrinkage, 1e-9
            )
            own = np.arange(rows.start, rows.stop)
            similarity[own - rows.start, own] = 0
            blocks.append(_nearest(similarity, num_neighbours))
        return cls(scipy.sparse.vstack(blocks, format="csr"))

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Sums the similarities to the items of each history; see `Scorer`."""
        matrix = binary_matrix(items, offsets, self._weights.shape[0])
        return (matrix @ self._weights).toarray()


def _nearest(similarity: np.ndarray, k: int) -> scipy.sparse.csr_array:
    """Keeps the k highest positive values of each row."""
    columns, values = top_columns(similarity, min(k, similarity.shape[1]))
    rows, places = np.nonzero(values > 0)
    return scipy.sparse.coo_array(
        (values[rows, places], (rows, columns[rows, places])),
        shape=similarity.shape,
    ).tocsr()


class EASE:
    """Scores an item by a linear model of the items in the history.

    For the binary user-item matrix X, EASE minimizes
    `|X - X B|^2 + regularization * |B|^2` subject to a zero diagonal of B.
    With `P = (X^T X + regularization * I)^-1` the solution is
    `B_ij = -P_ij / P_jj` off the diagonal (Steck 2019,
    https://doi.org/10.1145/3308558.3313710). The scores of a history are the
    sum of the rows of B for its items.

    B is dense: 4 bytes times the square of the number of items that occur in
    training, 330 MB for 9,066 items. All other items have the score 0.

    Args:
        weights: `[num_seen, num_seen]` float32, the matrix B of the items
            that occur in training.
        seen_items: `[num_seen]` int, their vocabulary indices, increasing.
        vocabulary_size: Number of items, including padding and unknown.
    """

    name = "EASE"

    def __init__(
        self, weights: np.ndarray, seen_items: np.ndarray, vocabulary_size: int
    ) -> None:
        self._weights = weights
        self._seen_items = seen_items
        self._vocabulary_size = vocabulary_size

    @classmethod
    def fit(
        cls,
        train: Sequences,
        vocabulary_size: int,
        *,
        regularization: float = 250.0,
    ) -> EASE:
        """Solves for B.

        The time grows with the cube of the number of users or of items,
        whichever is smaller.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, including padding and unknown.
            regularization: Weight of the squared norm of B; larger values
                trust only frequent pairs. The default is the best of 30 to
                1000 on the leave-last-out validation queries of the bundled
                data, and no worse than the others on those of MovieLens-1M.

        Raises:
            ValueError: `regularization` is not positive.
        """
        if not regularization > 0:
            raise ValueError(
                f"`regularization` must be positive. Received: {regularization}"
            )
        matrix = training_matrix(train, vocabulary_size)
        seen_items = np.flatnonzero(matrix.sum(axis=0))
        matrix = matrix[matrix.sum(axis=1) > 0][:, seen_items]
        if matrix.shape[0] < matrix.shape[1]:
            inverse = _inverse_by_users(matrix, regularization)
        else:
            inverse = _inverse_by_items(matrix, regularization)
        # Every column j of P is divided by P_jj; B replaces P in place.
        inverse /= -np.diagonal(inverse).copy()
        np.fill_diagonal(inverse, 0)
        return cls(inverse, seen_items, vocabulary_size)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Sums the rows of B for the items of each history; see `Scorer`."""
        matrix = binary_matrix(items, offsets, self._vocabulary_size)
        scores = np.zeros(matrix.shape, np.float32)
        scores[:, self._seen_items] = (
            matrix[:, self._seen_items] @ self._weights
        )
        return scores


def _inverse_by_items(
    matrix: scipy.sparse.csr_array, regularization: float
) -> np.ndarray:
    """Inverts `X^T X + regularization * I` by Cholesky, in place."""
    num_items = matrix.shape[1]
    gram = np.empty((num_items, num_items), np.float32, order="F")
    for rows, counts in co_occurrence_blocks(matrix):
        # The product is symmetric, and columns are contiguous here.
        gram[:, rows] = counts.T
    gram[np.diag_indices_from(gram)] += np.float32(regularization)
    factor, _ = scipy.linalg.lapack.spotrf(gram, lower=1, overwrite_a=1)
    inverse, _ = scipy.linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    # LAPACK fills the lower triangle; the upper one is mirrored in blocks.
    step = 512
    for start in range(0, num_items, step):
        block = slice(start, start + step)
        corner = np.tril(inverse[block, block])
        inverse[block, block] = corner + np.tril(corner, -1).T
        inverse[block, start + step :] = inverse[start + step :, block].T
    # Transposed to row-major order, which a sparse product reads uncopied.
    return inverse.T


def _inverse_by_users(
    matrix: scipy.sparse.csr_array, regularization: float
) -> np.ndarray:
    """The same for few users: `(I - X^T (X X^T + r I)^-1 X) / r` (Woodbury)."""
    gram = (matrix @ matrix.T).toarray().astype(np.float64)
    gram[np.diag_indices_from(gram)] += regularization
    solved = scipy.linalg.solve(gram, matrix.toarray(), assume_a="pos")
    inverse = matrix.T @ solved.astype(np.float32)
    inverse /= -np.float32(regularization)
    inverse[np.diag_indices_from(inverse)] += np.float32(1 / regularization)
    return inverse
