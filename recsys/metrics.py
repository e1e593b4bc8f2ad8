"""Ranking metrics and list metrics: pure functions of arrays.

Ranking metrics take `ranks`, `[num_queries, max_relevant]` float64: the
1-based ranks of each query's relevant items, ascending, padded with NaN. An
unranked relevant item has an infinite rank: it counts as relevant and is never
found. They take `k`, the cutoff of the ranking, and return `[num_queries]`
float64 in [0, 1], which the caller averages. They raise ValueError if `ranks`
has another shape or a query without a relevant item, or `k` is not positive.

Ranks may be fractional. When scores are tied, the order in which tied items
would be shown is undefined, so the i-th relevant item of a group of t tied
items, r of them relevant, behind g strictly better items, has the expected rank

    g + i (t + 1) / (r + 1)

(the mean of the i-th smallest of r numbers drawn from 1..t without
replacement). Metrics use that rank as it is: recall@k counts the item if its
expected rank is at most k, and NDCG discounts by log2(1 + rank). A recommender
that gives all items the same score therefore ranks them in the middle of the
catalog, not at its top. Without ties the ranks are integers and every
definition is the usual one.

List metrics describe what is shown, not whether it is right. They take
`top_items`, `[num_queries, k]` int32 vocabulary indices, best first, padded
with 0 if a list is shorter than k, and `item_counts`, `[vocabulary_size]` int,
the number of training interactions of each item.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np
import scipy.sparse

from recsys.ids import FIRST_ITEM_INDEX, PADDING_INDEX

_NAME = re.compile(r"([a-z_]+?)(?:@([1-9][0-9]*))?")


def recall_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Share of the relevant items that are among the first k.

    `|{j : rank_j <= k}| / num_relevant` (Manning, Raghavan, Schütze 2008,
    Introduction to Information Retrieval, section 8.3).
    """
    num_relevant = _num_relevant(ranks, k)
    return np.count_nonzero(ranks <= k, axis=1) / num_relevant


def hit_rate_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 if any relevant item is among the first k, otherwise 0.

    The average is also called success@k. With one relevant item per query it
    equals recall@k.
    """
    _num_relevant(ranks, k)
    return np.any(ranks <= k, axis=1).astype(np.float64)


def precision_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Share of the first k items that are relevant.

    `|{j : rank_j <= k}| / k`; a shorter list is still divided by k (Manning,
    Raghavan, Schütze 2008, section 8.3).
    """
    _num_relevant(ranks, k)
    return np.count_nonzero(ranks <= k, axis=1) / k


def ndcg_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Normalized discounted cumulative gain with binary relevance.

    `sum_{rank_j <= k} 1 / log2(1 + rank_j)`, divided by the same sum of an
    ideal ranking, `sum_{i = 1}^{min(k, num_relevant)} 1 / log2(1 + i)`
    (Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418,
    with the discount that has become usual since).
    """
    num_relevant = _num_relevant(ranks, k)
    gains = np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)
    depth = min(k, ranks.shape[1])
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, depth + 2)))
    return gains.sum(axis=1) / ideal[np.minimum(num_relevant, depth) - 1]


def mrr(ranks: np.ndarray, k: int | None = None) -> np.ndarray:
    """Reciprocal rank of the first relevant item.

    `1 / min_j rank_j`, or 0 if that rank is beyond k (Voorhees 1999, The
    TREC-8 Question Answering Track Report). The average is the MRR. Without
    `k`, the whole ranking counts.
    """
    _num_relevant(ranks, 1 if k is None else k)
    first = np.nanmin(ranks, axis=1)
    return np.where(first <= (np.inf if k is None else k), 1.0 / first, 0.0)


def map_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Average precision.

    `1 / num_relevant * sum_{rank_j <= k} j / rank_j`, where j counts the
    relevant items, best first (Buckley and Voorhees 2000,
    https://doi.org/10.1145/345508.345577). As in trec_eval, the divisor is
    the number of relevant items even if it is above k. The average is the MAP.
    """
    num_relevant = _num_relevant(ranks, k)
    found = np.arange(1, ranks.shape[1] + 1)
    precisions = np.where(ranks <= k, found / ranks, 0.0)
    return precisions.sum(axis=1) / num_relevant


def _num_relevant(ranks: np.ndarray, k: int) -> np.ndarray:
    """Checks the arguments; returns `[num_queries]` numbers of items."""
    if k < 1:
        raise ValueError(f"`k` must be positive. Received: {k}")
    if ranks.ndim != 2:
        raise ValueError(
            "`ranks` must have the shape [num_queries, max_relevant]. "
            f"Received: {ranks.shape}"
        )
    num_relevant = np.count_nonzero(~np.isnan(ranks), axis=1)
    if not num_relevant.all():
        raise ValueError(
            "`ranks` must have a relevant item for every query. Received: "
            f"none for query {int(np.argmin(num_relevant))}"
        )
    return num_relevant


METRICS: dict[str, Callable[..., np.ndarray]] = {
    "recall": recall_at_k,
    "ndcg": ndcg_at_k,
    "hit_rate": hit_rate_at_k,
    "precision": precision_at_k,
    "mrr": mrr,
    "map": map_at_k,
}


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric by name and cutoff, written like `recall@10`.

    Attributes:
        name: A key of `METRICS`.
        k: The cutoff; None means the whole ranking, for `mrr` only.
    """

    name: str
    k: int | None

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name}@{self.k}"

    def __call__(self, ranks: np.ndarray) -> np.ndarray:
        """Returns `[num_queries]` float64 from `ranks`; see the module."""
        return METRICS[self.name](ranks, self.k)


def parse_metric(text: str) -> Metric:
    """Parses the name of a metric, such as `ndcg@10` or `mrr`.

    Args:
        text: The name; only `mrr` needs no cutoff.

    Returns:
        The metric, whose `str` is the text.

    Raises:
        ValueError: There is no such metric.
    """
    match = _NAME.fullmatch(text)
    name, k = match.groups() if match else (text, None)
    if name not in METRICS or (k is None and name != "mrr"):
        names = ", ".join(f"{name}@k" for name in METRICS)
        raise ValueError(
            f"`metric` must be one of {names} (k from 1) or mrr. Received: "
            f"{text!r}"
        )
    return Metric(name, None if k is None else int(k))


def all_metrics(ks: Iterable[int]) -> list[Metric]:
    """Returns every metric at every k, in the order of results tables."""
    ks = tuple(ks)
    return [Metric(name, k) for name in METRICS for k in ks]


def times_listed(top_items: np.ndarray, num_items: int) -> np.ndarray:
    """Counts the lists that contain each item.

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        num_items: Number of items in the catalog.

    Returns:
        `[num_items]` int64; the first entry is the item with index 2.
    """
    counts = np.bincount(
        top_items.ravel(), minlength=num_items + FIRST_ITEM_INDEX
    )
    return counts[FIRST_ITEM_INDEX:]


def catalogue_coverage(top_items: np.ndarray, num_items: int) -> float:
    """Share of the catalog that is on at least one list.

    `|union of all lists| / num_items` (Ge, Delgado-Battenfeld, Jannach 2010,
    https://doi.org/10.1145/1864708.1864761).

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        num_items: Number of items in the catalog.

    Returns:
        From 0 to 1.
    """
    listed = np.count_nonzero(times_listed(top_items, num_items))
    return float(listed / num_items)


def gini(top_items: np.ndarray, num_items: int) -> float:
    """Inequality of how often the items of the catalog are listed.

    With `x_1 <= ... <= x_n` the number of lists that contain each of the n
    items, `sum_i (2 i - n - 1) x_i / (n sum_i x_i)`: 0 if all items are listed
    equally often, near 1 if few are listed all the time (Fleder and Hosanagar
    2009, https://doi.org/10.1287/mnsc.1080.0974).

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        num_items: Number of items in the catalog, including unlisted ones.

    Returns:
        From 0 to 1; NaN if every list is empty.
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

    The mean of `-log2(count / num_users)` over the list (Zhou et al. 2010,
    https://doi.org/10.1073/pnas.1000488107). An item without training
    interactions counts as having one, which bounds the value.

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        item_counts: `[vocabulary_size]` int, see the module.
        num_users: Number of users in the training set.

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
    be compared with `history_popularity`.

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        item_counts: `[vocabulary_size]` int, see the module.

    Returns:
        `[num_queries]` float64; NaN for an empty list.
    """
    return _list_means(item_counts, top_items)


def _list_means(values: np.ndarray, top_items: np.ndarray) -> np.ndarray:
    """Averages `[vocabulary_size]` values over each list."""
    is_item = top_items != PADDING_INDEX
    counts = np.count_nonzero(is_item, axis=1)
    sums = np.where(is_item, values[top_items], 0).sum(axis=1)
    return np.where(counts, sums / np.maximum(counts, 1), np.nan)


def history_popularity(
    items: np.ndarray, offsets: np.ndarray, item_counts: np.ndarray
) -> np.ndarray:
    """Mean number of training interactions of the items in each history.

    What the users chose themselves, as the yardstick of `average_popularity`
    (Abdollahpouri et al. 2019, https://arxiv.org/abs/1907.13286).

    Args:
        items: `[total]` int32 vocabulary indices of all histories.
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
    over the same pairs). Items without features are ignored.

    Args:
        top_items: `[num_queries, k]` int32, see the module.
        item_features: `[vocabulary_size, num_features]` float, such as the
            genres of each item.

    Returns:
        `[num_queries]` float64, in [0, 1] for nonnegative features; NaN for a
        list with fewer than two items that have features.
    """
    features = item_features.astype(np.float64).toarray()
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    features /= np.where(norms > 0, norms, 1)
    has_features = (norms[:, 0] > 0).astype(np.float64)
    has_features[:FIRST_ITEM_INDEX] = 0
    features *= has_features[:, np.newaxis]
    # |sum of unit vectors|^2 = number + 2 * sum of cosines over the pairs,
    # which avoids the k^2 pairs.
    sums = np.zeros((len(top_items), features.shape[1]))
    counts = np.zeros(len(top_items))
    for column in top_items.T:
        sums += features[column]
        counts += has_features[column]
    pairs = counts * (counts - 1)
    cosines = np.einsum("qf,qf->q", sums, sums) - counts
    return np.where(pairs > 0, 1 - cosines / np.maximum(pairs, 1), np.nan)
