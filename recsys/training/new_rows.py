"""Where the rows of items start that a trained table does not have yet."""

from __future__ import annotations

import numpy as np

from recsys.data.sequences import Sequences
from recsys.data.vocabulary import FIRST_ITEM_INDEX

# Items at most so many places apart in a history are neighbours.
_WINDOW = 5
_NOISE = 0.02
_RARE_SHARE = 0.1


def neighbour_rows(
    table: np.ndarray, is_new: np.ndarray, sequences: Sequences, seed: int
) -> np.ndarray:
    """Returns a table whose new rows are the mean of their neighbours'.

    The candidates that follow a history are trained to lie near its vector,
    so an item belongs where those are that are consumed just before and after
    it. One without any known neighbour starts from the mean of the rarest
    items' rows, which are trained to score low. A little noise tells items of
    equal neighbours apart.

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
    total = np.zeros(table.shape, np.float64)
    count = np.zeros(len(table), np.int64)
    items = sequences.items
    users = np.repeat(np.arange(sequences.num_users), sequences.lengths)
    for distance in range(1, _WINDOW + 1):
        same_user = users[distance:] == users[:-distance]
        earlier = items[:-distance][same_user]
        later = items[distance:][same_user]
        for item, other in ((earlier, later), (later, earlier)):
            chosen = is_new[item] & ~is_new[other]
            np.add.at(total, item[chosen], table[other[chosen]])
            np.add.at(count, item[chosen], 1)
    rare = _rarest(np.bincount(items, minlength=len(table)), ~is_new)
    rows = np.tile(table[rare].mean(axis=0, dtype=np.float64), (len(table), 1))
    has_any = count > 0
    rows[has_any] = total[has_any] / count[has_any, np.newaxis]
    rng = np.random.default_rng(seed)
    rows += _NOISE * rng.standard_normal(rows.shape)
    return np.where(is_new[:, np.newaxis], rows, table).astype(np.float32)


def _rarest(counts: np.ndarray, is_old: np.ndarray) -> np.ndarray:
    """Returns the old items with the fewest interactions, a tenth or more."""
    old = np.flatnonzero(is_old)[FIRST_ITEM_INDEX:]
    return old[counts[old] <= np.quantile(counts[old], _RARE_SHARE)]
