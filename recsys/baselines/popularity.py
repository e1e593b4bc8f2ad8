"""The same scores for everybody: how often an item was interacted with."""

from __future__ import annotations

import numpy as np

from recsys.data.sequences import Sequences


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
