"""Where the rows of items start that a trained table does not have yet."""

from __future__ import annotations

import numpy as np
import scipy.sparse

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
    counts = sequences.item_counts(len(table))
    new = np.flatnonzero(is_new)
    old = np.flatnonzero(~is_new)[FIRST_ITEM_INDEX:]
    rare = old[counts[old] <= np.quantile(counts[old], _RARE_SHARE)]
    means = _neighbour_means(table, is_new, sequences)
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


def _neighbour_means(
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
