"""Items' shares of the training data, and draws in proportion to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from recsys.data.vocabulary import FIRST_ITEM_INDEX


class CountedFrequencies:
    """Frequencies counted from the training data.

    An item that was never counted is taken to be counted once.

    Args:
        counts: `[vocabulary_size]`, each item's number of interactions; those
            of padding and unknown are not read.

    Raises:
        ValueError: Nothing was counted.
    """

    def __init__(self, counts: np.ndarray) -> None:
        shares = item_counts(counts)
        total = shares.sum()
        # In place: of ten million items each copy is 80 MB.
        np.maximum(shares, 1, out=shares)
        shares /= total
        self._shares = constant_table(shares)

    def __call__(self, ids: Any) -> tf.Tensor:
        """Returns each item's share, `[...]` float32."""
        return tf.gather(self._shares, ids)


class AliasTable:
    """Draws items in proportion to weights, in constant time.

    Walker's alias method: every column has the same width, of which a share
    belongs to the column's own item and the rest to one other (Vose 1991).

    Args:
        counts: `[vocabulary_size]`, of which each item's weight is one more.
        counted_only: Whether an item of count 0 has no weight.
    """

    def __init__(self, counts: np.ndarray, counted_only: bool = False) -> None:
        counts = item_counts(counts)
        weights = counts + 1
        weights[:FIRST_ITEM_INDEX] = 0
        if counted_only:
            weights[counts == 0] = 0
        own_share, alias = alias_table(weights[FIRST_ITEM_INDEX:])
        self._num_items = len(alias)
        self._shares = constant_table(weights / weights.sum())
        self._own_share = constant_table(own_share)
        self._alias = constant_table(alias)

    def draw(self, shape: list[Any], seed: tf.Tensor) -> tf.Tensor:
        """Returns int32 ids of that shape."""
        seeds = tf.random.split(seed, 2)
        columns = tf.random.stateless_uniform(
            shape, seeds[0], minval=0, maxval=self._num_items, dtype=tf.int32
        )
        is_own = tf.random.stateless_uniform(shape, seeds[1]) < tf.gather(
            self._own_share, columns
        )
        drawn = tf.where(is_own, columns, tf.gather(self._alias, columns))
        return drawn + FIRST_ITEM_INDEX

    def shares(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns the probability of each id."""
        return tf.gather(self._shares, ids)


def alias_table(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Makes the columns of the alias method, all at once.

    With weights scaled to a mean of 1, light items (below 1) are filled up in
    turn by the first heavy item; one that has given its surplus away is filled
    up by the next. Where that happens follows from the running sums of
    deficits and of surpluses, so that no loop over the items is needed.

    Args:
        weights: `[num_items]` float64, none negative, at least one positive.

    Returns:
        `own_share`, `[num_items]` float64, and `alias`, `[num_items]` int32:
        a column belongs to its own item with that probability, else to that
        other item.
    """
    scaled = weights / weights.mean()
    own_share = np.ones(len(weights))
    alias = np.arange(len(weights), dtype=np.int32)
    light, heavy = np.flatnonzero(scaled < 1), np.flatnonzero(scaled >= 1)
    if not len(light) or not len(heavy):  # All are equal, to rounding.
        return own_share, alias
    deficits = np.cumsum(1 - scaled[light])
    surpluses = np.cumsum(scaled[heavy] - 1)
    before = deficits - (1 - scaled[light])
    # The first heavy item that has not given all its surplus away.
    giver = np.searchsorted(surpluses, before, side="right")
    own_share[light] = scaled[light]
    alias[light] = heavy[np.minimum(giver, len(heavy) - 1)]
    # What a heavy item gave beyond its surplus, it gets from the next one.
    total_given = np.append(0, deficits)
    taken = np.searchsorted(total_given, surpluses, side="left")
    given = total_given[np.minimum(taken, len(light))]
    own_share[heavy[:-1]] = np.clip(1 + (surpluses - given)[:-1], 0, 1)
    alias[heavy[:-1]] = heavy[1:]
    return own_share, alias


def item_counts(counts: np.ndarray) -> np.ndarray:
    """Returns the counts as float64, those of no items 0."""
    counts = np.array(counts, np.float64)
    counts[:FIRST_ITEM_INDEX] = 0
    if not counts.sum() > 0:
        raise ValueError(
            "`counts` must hold at least one interaction. Received: none"
        )
    return counts


def constant_table(values: np.ndarray) -> tf.Variable:
    """Returns values as a variable; a constant would be in every graph."""
    if values.dtype == np.float64:
        values = values.astype(np.float32)
    return tf.Variable(values, trainable=False)
