"""Baselines that count: popularity, first-order Markov, item neighbors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse

from recsys.data.sequences import Sequences
from recsys.evaluation.ranking import top_lists
from recsys.ids import FIRST_ITEM_INDEX, UNKNOWN_INDEX


def binary_matrix(
    items: np.ndarray, offsets: np.ndarray, vocabulary_size: int
) -> scipy.sparse.csr_array:
    """Says which items occur in which history.

    Args:
        items: `[total]` int32 vocabulary indices, the histories one after
            the other. Padding and unknown items are left out.
        offsets: `[num_histories + 1]` int64, where each history begins.
        vocabulary_size: Number of columns.

    Returns:
        `[num_histories, vocabulary_size]` float32, 1 where the item is in the
        history once or more.
    """
    num_histories = len(offsets) - 1
    rows = np.repeat(np.arange(num_histories), np.diff(offsets))
    real = items >= FIRST_ITEM_INDEX
    matrix = scipy.sparse.coo_array(
        (
            np.ones(np.count_nonzero(real), np.float32),
            (rows[real], items[real]),
        ),
        shape=(num_histories, vocabulary_size),
    ).tocsr()
    # The conversion has summed repeated items.
    matrix.data[:] = 1
    return matrix


def last_items(items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns each history's newest item.

    Args:
        items: `[total]` int32 vocabulary indices, oldest first.
        offsets: `[num_histories + 1]` int64, where each history begins.

    Returns:
        `[num_histories]` int32; the unknown item where a history is empty.
    """
    padded = np.append(np.int32(UNKNOWN_INDEX), items)
    return np.where(
        offsets[1:] > offsets[:-1], padded[offsets[1:]], UNKNOWN_INDEX
    )


# Counts of one block take at most this much memory (bytes).
_BLOCK_BYTES = 64 * 2**20


def co_occurrence_blocks(
    matrix: scipy.sparse.csr_array,
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields the rows of `X^T X`, some at a time.

    The whole product as a sparse matrix would take several times the memory
    of the dense one, because most popular items meet.

    Args:
        matrix: `[num_users, num_items]` float32, the matrix X.

    Yields:
        The rows, and `[num_rows, num_items]` float32, which may be changed.
    """
    num_items = matrix.shape[1]
    by_item = matrix.T.tocsr()
    step = max(1, _BLOCK_BYTES // (4 * max(1, num_items)))
    for start in range(0, num_items, step):
        rows = slice(start, min(start + step, num_items))
        yield rows, (by_item[rows] @ matrix).toarray()


class Popularity:
    """Scores an item by its number of training interactions.

    Args:
        item_scores: `[vocabulary_size]` float32, given to every query.
        name: Stands in results tables.
    """

    def __init__(
        self, item_scores: np.ndarray, name: str = "popularity"
    ) -> None:
        self.name = name
        self._item_scores = item_scores

    @classmethod
    def fit(cls, train: Sequences, vocabulary_size: int) -> Popularity:
        """Counts the training interactions with each item.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, padding and unknown included.

        Returns:
            The recommender.
        """
        counts = train.item_counts(vocabulary_size)
        return cls(counts.astype(np.float32))

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns the same `[num_queries, vocabulary_size]` row for all.

        Args:
            items: `[total]` int32 histories; they do not matter here.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, vocabulary_size]` float32, read-only.
        """
        shape = (len(offsets) - 1, len(self._item_scores))
        return np.broadcast_to(self._item_scores, shape)


class RecentPopularity(Popularity):
    """Scores an item by its training interactions, recent ones more.

    An interaction of age a weighs `0.5 ** (a / half_life)`. Ages end at the
    last training interaction, so this is the popularity of one moment: what
    was popular when training ended.
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
        """Sums the weights of the training interactions with each item.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, padding and unknown included.
            half_life: The age at which an interaction weighs one half, in
                `unit`.
            unit: "interactions": an age is the share of all training
                interactions with a later timestamp, from 0 to 1, which makes
                sense for any log that has an order, also where timestamps
                are only positions; "time": an age is a difference of
                timestamps, in the log's own unit.

        Returns:
            The recommender.

        Raises:
            ValueError: `half_life` is not positive or `unit` is neither.
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
        totals = np.bincount(train.items, weights, minlength=vocabulary_size)
        return cls(totals.astype(np.float32), "recent popularity")


class Markov:
    """Scores an item by how often it directly followed the last item.

    The probability of item j after item i is smoothed by popularity:

        (count(i, j) + smoothing * p(j)) / (count(i) + smoothing)

    with p(j) the item's share of the training interactions (a Dirichlet
    prior; Zhai and Lafferty 2001, https://doi.org/10.1145/383952.384019).
    Items that never followed i are thereby ordered by popularity, and so is
    everything when i was never followed or the history is empty.

    Args:
        transitions: `[vocabulary_size, vocabulary_size]` float32, how often
            the column followed the row.
        popularity: `[vocabulary_size]` float32 shares, summing to 1.
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
        """Counts which item directly follows which.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, padding and unknown included.
            smoothing: Weight of the popularity prior, in interactions.

        Returns:
            The recommender.

        Raises:
            ValueError: `smoothing` is not positive.
        """
        is_last = np.zeros(len(train.items), bool)
        lengths = np.diff(train.offsets)
        is_last[train.offsets[1:][lengths > 0] - 1] = True
        before = np.flatnonzero(~is_last)
        transitions = scipy.sparse.coo_array(
            (
                np.ones(len(before), np.float32),
                (train.items[before], train.items[before + 1]),
            ),
            shape=(vocabulary_size, vocabulary_size),
        ).tocsr()
        counts = train.item_counts(vocabulary_size)
        return cls(transitions, counts / max(1, counts.sum()), smoothing)

    def scores(self, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Returns the probability of each next item.

        Args:
            items: `[total]` int32 histories, oldest first.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, vocabulary_size]` float32.
        """
        last = last_items(items, offsets)
        scores = self._transitions[last].toarray()
        scores += self._prior
        scores /= (self._totals[last] + self._smoothing)[:, np.newaxis]
        return scores


class ItemKNN:
    """Scores an item by its similarity to the items of the history.

    The similarity of items i and j is the cosine of their columns of the
    binary matrix of users and items, shrunk where it rests on few users:

        users(i and j) / (sqrt(users(i) * users(j)) + shrinkage)

    (Sarwar et al. 2001, https://doi.org/10.1145/371920.372071; the shrinkage
    as in Ferrari Dacrema et al. 2019,
    https://doi.org/10.1145/3298689.3347058). The score of j is the sum over
    those items of the history that are among the neighbors of j.

    Args:
        neighbors: `[vocabulary_size, vocabulary_size]` float32, in row j the
            similarities of the neighbors of j.
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
        """Finds the neighbors of every item.

        Args:
            train: The training sequences.
            vocabulary_size: Number of items, padding and unknown included.
            num_neighbours: How many neighbors of each item are kept. This
                and `shrinkage` were chosen on the validation queries of the
                bundled data, leave-last-out.
            shrinkage: Added to the denominator; larger trusts frequent pairs
                only.

        Returns:
            The recommender.

        Raises:
            ValueError: `num_neighbours` is not positive or `shrinkage` is
                negative.
        """
        if num_neighbours < 1 or shrinkage < 0:
            raise ValueError(
                "`num_neighbours` must be positive and `shrinkage` not "
                f"negative. Received: {num_neighbours} and {shrinkage}"
            )
        matrix = binary_matrix(train.items, train.offsets, vocabulary_size)
        norms = np.sqrt(matrix.sum(axis=0))
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
        """Sums the similarities to the items of each history.

        Args:
            items: `[total]` int32 histories; their order does not matter.
            offsets: `[num_queries + 1]` int64.

        Returns:
            `[num_queries, vocabulary_size]` float32.
        """
        matrix = binary_matrix(items, offsets, self._weights.shape[0])
        return (matrix @ self._weights).toarray()


def _nearest(similarity: np.ndarray, k: int) -> scipy.sparse.csr_array:
    """Keeps the k highest positive values of each row."""
    columns, values = top_lists(similarity, min(k, similarity.shape[1]))
    rows, places = np.nonzero(values > 0)
    return scipy.sparse.coo_array(
        (values[rows, places], (rows, columns[rows, places])),
        shape=similarity.shape,
    ).tocsr()
