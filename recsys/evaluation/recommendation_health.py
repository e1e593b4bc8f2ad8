"""What a recommender lists, and whether it has collapsed to a few items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc
import scipy
import scipy.sparse

from recsys import metrics as metrics_lib
from recsys.data.splits import Queries
from recsys.data.vocabulary import Vocabulary
from recsys.evaluation.results import Evaluation
from recsys.ids import FIRST_ITEM_INDEX


@dataclasses.dataclass(frozen=True)
class Health:
    """Signs of whether a recommender works.

    Attributes:
        k: Length of the lists.
        num_distinct_items: Number of items on any list.
        catalogue_share: Their share of the catalog.
        effective_num_items: The exponential of the entropy of how often items
            are listed: the number of equally frequent items that would be
            as varied.
        norm_popularity_correlation: Spearman's correlation between the norm
            of an item's vector and its number of training interactions, over
            the items that have any; None without vectors or if either is
            constant.
        warning: A description of the problem, or None.
    """

    k: int
    num_distinct_items: int
    catalogue_share: float
    effective_num_items: float
    norm_popularity_correlation: float | None
    warning: str | None


def health(
    evaluation: Evaluation,
    item_counts: np.ndarray,
    item_vectors: np.ndarray | None = None,
    k: int = 10,
) -> Health:
    """Examines the recommendations for all queries together.

    They count as collapsed if their effective number of items is below the
    least of 5 k, a quarter of the catalog and a quarter of the places on all
    lists. For comparison, at k = 10 it is about 30 for the most popular
    movies that a user has not seen on MovieLens, and 250 or more for EASE.

    Args:
        evaluation: Results with lists.
        item_counts: `[vocabulary_size]` int, training interactions per item.
        item_vectors: `[vocabulary_size, dim]` float, by which the
            candidates are scored; or None.
        k: Length of the lists to examine.

    Returns:
        The findings.

    Raises:
        ValueError: The evaluation has no lists of length k.
    """
    top_items = _lists(evaluation, k)
    listed = metrics_lib.times_listed(top_items, evaluation.num_items)
    num_distinct = int(np.count_nonzero(listed))
    # SciPy imports its statistics on first use, which takes a second.
    effective = float(np.exp(scipy.stats.entropy(listed[listed > 0])))
    least = min(5 * k, evaluation.num_items / 4, listed.sum() / 4)
    warning = None
    if effective < least:
        warning = (
            f"the recommendations of {evaluation.name!r} have collapsed to "
            f"few items: {num_distinct:,} distinct items on "
            f"{evaluation.num_queries:,} lists of {k}, as varied as "
            f"{effective:.0f} equally frequent items (expected at least "
            f"{least:.0f})"
        )
    return Health(
        k=k,
        num_distinct_items=num_distinct,
        catalogue_share=num_distinct / evaluation.num_items,
        effective_num_items=effective,
        norm_popularity_correlation=_correlation(item_counts, item_vectors),
        warning=warning,
    )


def _correlation(
    item_counts: np.ndarray, item_vectors: np.ndarray | None
) -> float | None:
    """Correlates the norms of the items' vectors with their popularity."""
    if item_vectors is None:
        return None
    seen = item_counts > 0
    seen[:FIRST_ITEM_INDEX] = False
    norms = np.linalg.norm(item_vectors[seen], axis=1)
    counts = item_counts[seen]
    # Undefined for constants, such as the counts of a single user's items.
    if not len(counts) or not np.ptp(norms) or not np.ptp(counts):
        return None
    return float(scipy.stats.spearmanr(norms, counts).statistic)


def list_summary(
    evaluation: Evaluation,
    queries: Queries,
    item_counts: np.ndarray,
    num_users: int,
    item_genres: scipy.sparse.csr_array | None = None,
    k: int = 10,
) -> dict[str, float]:
    """Returns the list metrics by name, averaged over the lists.

    Args:
        evaluation: Results with lists.
        queries: The queries of the evaluation, in the same order.
        item_counts: `[vocabulary_size]` int, training interactions per item.
        num_users: Number of users in the training set.
        item_genres: See `genre_matrix`; without it there is no diversity.
        k: Length of the lists.

    Returns:
        `coverage@k`, `gini@k`, `novelty@k`, `popularity@k`,
        `history_popularity` and `diversity@k`; see `recsys.metrics`. NaN if
        undefined for every list.

    Raises:
        ValueError: The evaluation has no lists of length k.
    """
    top_items = _lists(evaluation, k)
    num_items = evaluation.num_items
    histories = queries.histories(np.arange(len(queries)))
    values: dict[str, float | np.ndarray] = {
        f"coverage@{k}": metrics_lib.catalogue_coverage(top_items, num_items),
        f"gini@{k}": metrics_lib.gini(top_items, num_items),
        f"novelty@{k}": metrics_lib.novelty(top_items, item_counts, num_users),
        f"popularity@{k}": metrics_lib.average_popularity(
            top_items, item_counts
        ),
        "history_popularity": metrics_lib.history_popularity(
            *histories, item_counts
        ),
    }
    if item_genres is not None:
        values[f"diversity@{k}"] = metrics_lib.intra_list_diversity(
            top_items, item_genres
        )
    return {name: _mean(value) for name, value in values.items()}


def describe_lists(found: Health, metrics: Mapping[str, float | None]) -> str:
    """Describes the lists, one metric per line.

    Args:
        found: The health of the lists.
        metrics: The result of `list_summary`, with None for undefined values.

    Returns:
        Aligned lines without a trailing newline.
    """
    k = found.k
    meanings = {
        f"coverage@{k}": f"{found.num_distinct_items:,} items on any list, as "
        f"varied as {found.effective_num_items:,.0f} equally frequent ones",
        f"gini@{k}": "0: all items are listed equally often; 1: only one is",
        f"novelty@{k}": "bits of self-information of a listed item",
        f"popularity@{k}": "training interactions of a listed item",
        "history_popularity": "training interactions of an item in a history",
        f"diversity@{k}": "1 - cosine between the genres of two listed items",
    }
    lines = [f"The model's lists of {k}:", ""]
    for name, value in metrics.items():
        number = "–" if value is None else f"{value:,.4g}"
        lines.append(f"{name:<19} {number:>7}  {meanings[name]}")
    if found.norm_popularity_correlation is not None:
        lines.append(
            f"{'norm_popularity':<19} {found.norm_popularity_correlation:>7.3f}"
            "  rank correlation of item vectors' norms and interactions"
        )
    return "\n".join(lines)


def genre_matrix(vocabulary: Vocabulary) -> scipy.sparse.csr_array | None:
    """Returns the genres of each item.

    Args:
        vocabulary: The items, with the genres in the column `genres`.

    Returns:
        `[vocabulary_size, num_genres]` float32, 1 where the item has the
        genre, genres in order of first appearance; None without genres.
    """
    items = vocabulary.items
    if items is None or "genres" not in items.column_names:
        return None
    # Both Arrow functions skip lists that are null.
    lists = items["genres"].combine_chunks()
    codes = pc.list_flatten(lists).dictionary_encode()
    if not len(codes.dictionary):
        return None
    rows = pc.list_parent_indices(lists).to_numpy()
    columns = codes.indices.to_numpy()
    return scipy.sparse.coo_array(
        (np.ones(len(rows), np.float32), (rows + FIRST_ITEM_INDEX, columns)),
        shape=(vocabulary.size, len(codes.dictionary)),
    ).tocsr()


def _lists(evaluation: Evaluation, k: int) -> np.ndarray:
    """Returns the first k items of each list, `[num_queries, k]` int32."""
    top_items = evaluation.top_items
    width = 0 if top_items is None else top_items.shape[1]
    if top_items is None or width < k:
        raise ValueError(
            f"`evaluation` must have lists of {k} items or more. Received: "
            f"{width}"
        )
    return top_items[:, :k]


def _mean(values: float | np.ndarray) -> float:
    """Averages the defined values; NaN if there are none."""
    values = np.atleast_1d(values)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
