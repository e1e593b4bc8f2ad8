"""Ranking metrics: pure functions that return one value per query.

Every function takes `ranks`, `[num_queries, max_relevant]` float64: the
1-based ranks of each query's relevant items, ascending, padded with NaN. A
relevant item that was not ranked at all has rank infinity: it counts as
relevant and is never found.

Ranks may be fractional. Where scores are tied, nobody knows which of the
tied items would have been shown first, so the i-th relevant item of a group
of t tied items with r relevant ones among them, behind g strictly better
items, stands at its expected rank

    g + i (t + 1) / (r + 1)

(the mean of the i-th smallest of r numbers drawn from 1..t without
replacement). A metric takes that rank as it is: recall@k counts the item
when its expected rank is at most k, and NDCG discounts by log2(1 + rank). A
recommender that gives all items one score is therefore in the middle of the
catalogue, not at its top. Without ties the ranks are whole numbers and every
definition is the usual one.

The averages over queries are taken by the caller.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

import numpy as np

_NAME = re.compile(r"([a-z_]+?)(?:@([1-9][0-9]*))?")


def recall_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Share of the relevant items that are among the first k.

    `|{j : rank_j <= k}| / num_relevant` (Manning, Raghavan, Schütze 2008,
    Introduction to Information Retrieval, section 8.3).

    Args:
        ranks: `[num_queries, max_relevant]` float64, see the module.
        k: How many items of the ranking are looked at.

    Returns:
        `[num_queries]` float64 in [0, 1].

    Raises:
        ValueError: `ranks` has the wrong shape or a query without a relevant
            item, or `k` is not positive. All metrics raise this.
    """
    num_relevant = _num_relevant(ranks, k)
    return np.count_nonzero(ranks <= k, axis=1) / num_relevant


def hit_rate_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """1 where any relevant item is among the first k, otherwise 0.

    The average is also called success@k. With one relevant item per query it
    equals recall@k.

    Args:
        ranks: `[num_queries, max_relevant]` float64, see the module.
        k: How many items of the ranking are looked at.

    Returns:
        `[num_queries]` float64, 0 or 1.
    """
    _num_relevant(ranks, k)
    return np.any(ranks <= k, axis=1).astype(np.float64)


def precision_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Share of the first k items that are relevant.

    `|{j : rank_j <= k}| / k`; a shorter list is still divided by k (Manning,
    Raghavan, Schütze 2008, section 8.3).

    Args:
        ranks: `[num_queries, max_relevant]` float64, see the module.
        k: How many items of the ranking are looked at.

    Returns:
        `[num_queries]` float64 in [0, 1].
    """
    _num_relevant(ranks, k)
    return np.count_nonzero(ranks <= k, axis=1) / k


def ndcg_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Normalised discounted cumulative gain with binary relevance.

    `sum_{rank_j <= k} 1 / log2(1 + rank_j)`, divided by the same sum of an
    ideal ranking, `sum_{i = 1}^{min(k, num_relevant)} 1 / log2(1 + i)`
    (Järvelin and Kekäläinen 2002, https://doi.org/10.1145/582415.582418,
    with the discount that has become usual since).

    Args:
        ranks: `[num_queries, max_relevant]` float64, see the module.
        k: How many items of the ranking are looked at.

    Returns:
        `[num_queries]` float64 in [0, 1].
    """
    num_relevant = _num_relevant(ranks, k)
    gains = np.where(ranks <= k, 1.0 / np.log2(1.0 + ranks), 0.0)
    depth = min(k, ranks.shape[1])
    ideal = np.cumsum(1.0 / np.log2(np.arange(2, depth + 2)))
    return gains.sum(axis=1) / ideal[np.minimum(num_relevant, depth) - 1]


def mrr(ranks: np.ndarray, k: int | None = None) -> np.ndarray:
    """Reciprocal rank of the first relevant item.

    `1 / min_j rank_j`, or 0 when that rank is beyond k (Voorhees 1999, The
    TREC-8 Question Answering Track Report). The average is the MRR.

    Args:
        ranks: `[num_queries, max_relevant]` float64, see the module.
        k: How many items of the ranking are looked at; None means all.

    Returns:
        `[num_queries]` float64 in [0, 1].
    """
    _num_relevant(ranks, 1 if k is None else k)
    first = np.nanmin(ranks, axis=1)
    return np.where(first <= (np.inf if k is None else k), 1.0 / first, 0.0)


def map_at_k(ranks: np.ndarray, k: int) -> np.ndarray:
    """Average precision.

    `1 / num_relevant * sum_{rank_j <= k} j / rank_j`, where j counts the
    relevant items from the best on (Buckley and Voorhees 2000,
    https://doi.org/10.1145/345508.345577). The divisor is the number of
    relevant items, as in trec_eval, also where it is above k. The average is
    the MAP.

    Args:
        ranks: `[num_queries, max_relevant]` float64, see the module.
        k: How many items of the ranking are looked at.

    Returns:
        `[num_queries]` float64 in [0, 1].
    """
    num_relevant = _num_relevant(ranks, k)
    found = np.arange(1, ranks.shape[1] + 1)
    precisions = np.where(ranks <= k, found / ranks, 0.0)
    return precisions.sum(axis=1) / num_relevant


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
    """A metric by name and cut, written as in `recall@10`.

    Attributes:
        name: A key of `METRICS`.
        k: The cut; None means the whole ranking, which only `mrr` has.
    """

    name: str
    k: int | None

    def __str__(self) -> str:
        return self.name if self.k is None else f"{self.name}@{self.k}"

    def __call__(self, ranks: np.ndarray) -> np.ndarray:
        """Returns `[num_queries]` float64 from `ranks`, see the module."""
        return METRICS[self.name](ranks, self.k)


def parse_metric(text: str) -> Metric:
    """Reads a metric's name, such as `ndcg@10` or `mrr`.

    Args:
        text: The name; the cut is left out only for `mrr`.

    Returns:
        The metric; `str` of it gives the text back.

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


def _num_relevant(ranks: np.ndarray, k: int) -> np.ndarray:
    """Counts the `[num_queries]` relevant items, after checking both."""
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
            "`ranks` must give every query a relevant item. Received: none "
            f"for query {int(np.argmin(num_relevant))}"
        )
    return num_relevant
