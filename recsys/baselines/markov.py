"""First-order Markov chain: the next item given the last one."""

from __future__ import annotations

import numpy as np
import scipy.sparse

from recsys.baselines.histories import last_items
from recsys.data.sequences import Sequences


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
