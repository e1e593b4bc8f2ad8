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
    """Returns a table with rows for new items, as if they had been trained.

    The candidates that follow a history are trained to lie near its vector,
    so an item belongs in the direction of those that are consumed just before
    and after it: the mean of these neighbours' rows, made as long as the rows
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
    counts = np.bincount(sequences.items, minlength=len(table))
    old = np.flatnonzero(~is_new)[FIRST_ITEM_INDEX:]
    rare = old[counts[old] <= np.quantile(counts[old], _RARE_SHARE)]
    means = _neighbour_means(table, is_new, sequences)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    means = np.divide(means, lengths, where=lengths > 0, out=means)
    means *= _usual_lengths(table, counts, old)[:, np.newaxis]
    share = (counts[:, np.newaxis] / (counts[:, np.newaxis] + 1)) * (
        lengths > 0
    )
    rows = share * means + (1 - share) * table[rare].mean(axis=0)
    rng = np.random.default_rng(seed)
    rows += _NOISE * rng.standard_normal(rows.shape)
    return np.where(is_new[:, np.newaxis], rows, table).astype(np.float32)


def _neighbour_means(
    table: np.ndarray, is_new: np.ndarray, sequences: Sequences
) -> np.ndarray:
    """Returns the mean of the old rows near each new item; zero if none."""
    total = np.zeros(table.shape, np.float64)
    count = np.zeros((len(table), 1), np.int64)
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
    return total / np.maximum(count, 1)


def _usual_lengths(
    table: np.ndarray, counts: np.ndarray, old: np.ndarray
) -> np.ndarray:
    """Returns for each item how long rows of old items as frequent are."""
    levels, level = np.unique(counts[old], return_inverse=True)
    lengths = np.linalg.norm(table[old], axis=1)
    means = np.bincount(level, lengths) / np.bincount(level)
    return np.interp(counts, levels, means)
