"""Metrics of recommended lists: what is shown, not whether it is right.

`top_items` is `[num_queries, k]` int32 vocabulary indices, best first, padded
with 0 behind a list that is shorter than k. `item_counts` is
`[vocabulary_size]` int, how many training interactions each item has.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from recsys.data.vocabulary import FIRST_ITEM_INDEX, PADDING_INDEX


def catalogue_coverage(top_items: np.ndarray, num_items: int) -> float:
    """Share of the catalogue that is on at least one list.

    `|union of all lists| / num_items` (Ge, Delgado-Battenfeld, Jannach 2010,
    https://doi.org/10.1145/1864708.1864761).

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        num_items: Items of the catalogue.

    Returns:
        From 0 to 1.
    """
    listed = np.count_nonzero(times_listed(top_items, num_items))
    return float(listed / num_items)


def gini(top_items: np.ndarray, num_items: int) -> float:
    """How unequally the items of the catalogue are listed.

    With `x_1 <= ... <= x_n` how often each of the n items is on a list,
    `sum_i (2 i - n - 1) x_i / (n sum_i x_i)`: 0 when all are listed equally
    often, near 1 when few are listed all the time (Fleder and Hosanagar 2009,
    https://doi.org/10.1287/mnsc.1080.0974).

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        num_items: Items of the catalogue; those never listed count.

    Returns:
        From 0 to 1; NaN when every list is empty.
    """
    listed = np.sort(times_listed(top_items, num_items)).astype(np.float64)
    if not listed.any():
        return float("nan")
    weights = 2 * np.arange(1, num_items + 1) - num_items - 1
    return float(weights @ listed / (num_items * listed.sum()))


def novelty(
    top_items: np.ndarray, item_counts: np.ndarray, num_users: int
) -> np.ndarray:
    """Mean self-information of the listed items, in bits.

    `mean of -log2(count / num_users)` over the list (Zhou et al. 2010,
    https://doi.org/10.1073/pnas.1000488107). An item without training
    interactions counts as one with a single one, which bounds it.

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        item_counts: `[vocabulary_size]` int, see the module.
        num_users: Users of the training set.

    Returns:
        `[num_queries]` float64; NaN for an empty list.
    """
    shares = np.maximum(item_counts, 1) / num_users
    return _list_means(-np.log2(shares), top_items)


def average_popularity(
    top_items: np.ndarray, item_counts: np.ndarray
) -> np.ndarray:
    """Mean number of training interactions of the listed items.

    The ARP of Yin et al. 2012 (https://doi.org/10.14778/2311906.2311916), to
    be read beside `history_popularity`.

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        item_counts: `[vocabulary_size]` int, see the module.

    Returns:
        `[num_queries]` float64; NaN for an empty list.
    """
    return _list_means(item_counts, top_items)


def history_popularity(
    items: np.ndarray, offsets: np.ndarray, item_counts: np.ndarray
) -> np.ndarray:
    """Mean number of training interactions of the items in each history.

    What the users chose themselves: the yardstick of `average_popularity`
    (Abdollahpouri et al. 2019, https://arxiv.org/abs/1907.13286).

    Args:
        items: `[total]` int32, the histories one after the other.
        offsets: `[num_queries + 1]` int64, where each begins.
        item_counts: `[vocabulary_size]` int, see the module.

    Returns:
        `[num_queries]` float64; NaN for a history without a known item.
    """
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    known = items >= FIRST_ITEM_INDEX
    sums = np.bincount(
        rows[known], item_counts[items[known]], minlength=len(offsets) - 1
    )
    counts = np.bincount(rows[known], minlength=len(offsets) - 1)
    return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def intra_list_diversity(
    top_items: np.ndarray, item_features: scipy.sparse.csr_array
) -> np.ndarray:
    """Mean distance between the items of a list.

    The mean over all pairs of `1 - cosine` of the items' features (Ziegler et
    al. 2005, https://doi.org/10.1145/1060745.1060754, whose similarity sums
    over the same pairs). Items without features are left out.

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        item_features: `[vocabulary_size, num_features]` float, such as the
            genres of each item.

    Returns:
        `[num_queries]` float64 in [0, 1] for features that are not negative;
        NaN for a list with fewer than two items that have features.
    """
    features = item_features.astype(np.float64).toarray()
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    features /= np.where(norms > 0, norms, 1)
    has_features = (norms[:, 0] > 0).astype(np.float64)
    has_features[:FIRST_ITEM_INDEX] = 0
    features *= has_features[:, np.newaxis]
    # |sum of unit vectors|^2 = number + 2 * sum of cosines over the pairs,
    # which spares the k^2 pairs.
    sums = np.zeros((len(top_items), features.shape[1]))
    counts = np.zeros(len(top_items))
    for column in top_items.T:
        sums += features[column]
        counts += has_features[column]
    pairs = counts * (counts - 1)
    cosines = np.einsum("qf,qf->q", sums, sums) - counts
    return np.where(pairs > 0, 1 - cosines / np.maximum(pairs, 1), np.nan)


def times_listed(top_items: np.ndarray, num_items: int) -> np.ndarray:
    """Counts how many lists hold each item.

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        num_items: Items of the catalogue.

    Returns:
        `[num_items]` int64; place 0 is the item of index 2.
    """
    counts = np.bincount(
        top_items.ravel(), minlength=num_items + FIRST_ITEM_INDEX
    )
    return counts[FIRST_ITEM_INDEX:]


def _list_means(values: np.ndarray, top_items: np.ndarray) -> np.ndarray:
    """Averages `[vocabulary_size]` values over each list."""
    is_item = top_items != PADDING_INDEX
    counts = np.count_nonzero(is_item, axis=1)
    sums = np.where(is_item, values[top_items], 0).sum(axis=1)
    return np.where(counts, sums / np.maximum(counts, 1), np.nan)
