"""What a recommender shows, and whether it has collapsed to a few items."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc
import scipy.sparse

from recsys import metrics
from recsys.data.splits import Queries
from recsys.data.vocabulary import Vocabulary
from recsys.evaluation.results import Evaluation
from recsys.ids import FIRST_ITEM_INDEX


@dataclasses.dataclass(frozen=True)
class Health:
    """Signs of a recommender that works, or of one that does not.

    Attributes:
        k: How much of each list was looked at.
        num_distinct_items: Items that are on any list.
        catalogue_share: Their share of the catalog.
        effective_num_items: The exponential of the entropy of how often items
            are listed: how many items, all listed equally often, would be as
            varied.
        norm_popularity_correlation: Spearman's correlation between the norm
            of an item's vector and its training interactions, over the items
            that have any; None without vectors, or where either is the same
            for all.
        warning: What is wrong, for the user; None when nothing is.
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
    """Looks at what is recommended to all queries together.

    Recommendations count as collapsed when their effective number of items
    is below 5 k, or, where that is less, a quarter of the catalog or of the
    places on all lists. For comparison, at k = 10 recommending the most
    popular films that a user has not seen comes to about 30 on MovieLens,
    EASE to 250 and more.

    Args:
        evaluation: Results with lists.
        item_counts: `[vocabulary_size]` int, training interactions of items.
        item_vectors: `[vocabulary_size, embedding_dim]` float, what the
            candidates are scored by; or None.
        k: How much of each list is looked at.

    Returns:
        The findings.

    Raises:
        ValueError: The evaluation has no lists, or shorter ones than k.
    """
    # Takes a second to import, which commands that need no health spare.
    import scipy.stats

    top_items = _lists(evaluation, k)
    listed = metrics.times_listed(top_items, evaluation.num_items)
    num_distinct = int(np.count_nonzero(listed))
    effective = float(np.exp(scipy.stats.entropy(listed[listed > 0])))
    least = min(5 * k, evaluation.num_items / 4, listed.sum() / 4)
    warning = None
    if effective < least:
        warning = (
            f"the recommendations of {evaluation.name!r} have collapsed to "
            f"few items: {num_distinct:,} different ones on "
            f"{evaluation.num_queries:,} lists of {k}, as varied as "
            f"{effective:.0f} items listed equally often (expected at least "
            f"{least:.0f})"
        )
    correlation = None
    if item_vectors is not None:
        seen = item_counts > 0
        seen[:FIRST_ITEM_INDEX] = False
        norms = np.linalg.norm(item_vectors[seen], axis=1)
        counts = item_counts[seen]
        # Constant counts have no ranks; one user's training set has no others.
        if len(counts) and np.ptp(norms) and np.ptp(counts):
            correlation = float(scipy.stats.spearmanr(norms, counts).statistic)
    return Health(
        k=k,
        num_distinct_items=num_distinct,
        catalogue_share=num_distinct / evaluation.num_items,
        effective_num_items=effective,
        norm_popularity_correlation=correlation,
        warning=warning,
    )


def list_summary(
    evaluation: Evaluation,
    queries: Queries,
    item_counts: np.ndarray,
    num_users: int,
    item_genres: scipy.sparse.csr_array | None = None,
    k: int = 10,
) -> dict[str, float]:
    """Returns the metrics of the lists, averaged, by name.

    Args:
        evaluation: Results with lists.
        queries: The queries of the evaluation, in the same order.
        item_counts: `[vocabulary_size]` int, training interactions of items.
        num_users: Users of the training set.
        item_genres: See `genre_matrix`; None leaves out the diversity.
        k: How much of each list is looked at.

    Returns:
        `coverage@k`, `gini@k`, `novelty@k`, `popularity@k`,
        `history_popularity` and `diversity@k`; see `recsys.metrics`.

    Raises:
        ValueError: The evaluation has no lists, or shorter ones than k.
    """
    top_items = _lists(evaluation, k)
    num_items = evaluation.num_items
    values = {
        f"coverage@{k}": metrics.catalogue_coverage(top_items, num_items),
        f"gini@{k}": metrics.gini(top_items, num_items),
        f"novelty@{k}": _mean(
            metrics.novelty(top_items, item_counts, num_users)
        ),
        f"popularity@{k}": _mean(
            metrics.average_popularity(top_items, item_counts)
        ),
        "history_popularity": _mean(
            metrics.history_popularity(
                *queries.histories(np.arange(len(queries))), item_counts
            )
        ),
    }
    if item_genres is not None:
        values[f"diversity@{k}"] = _mean(
            metrics.intra_list_diversity(top_items, item_genres)
        )
    return values


def describe_lists(found: Health, metrics: Mapping[str, float | None]) -> str:
    """Says in some lines what the lists are like.

    Args:
        found: The health of the same lists.
        metrics: What `list_summary` returned for them; None where a value is
            not defined.

    Returns:
        Aligned lines without a trailing newline.
    """
    k = found.k
    correlation = found.norm_popularity_correlation
    told = {
        f"coverage@{k}": f"{found.num_distinct_items:,} items on any list, "
        f"as varied as {found.effective_num_items:,.0f} listed equally often",
        f"gini@{k}": "0: all items listed alike; 1: one alone",
        f"novelty@{k}": "bits of self-information of a listed item",
        f"popularity@{k}": "training interactions of a listed item",
        "history_popularity": "training interactions of an item in a history",
        f"diversity@{k}": "1 - cosine between the genres of two listed items",
    }
    lines = [f"The model's lists of {k}:", ""]
    for name, value in metrics.items():
        number = "–" if value is None else f"{value:,.4g}"
        lines.append(f"{name:<19} {number:>7}  {told[name]}")
    if correlation is not None:
        lines.append(
            f"{'norm_popularity':<19} {correlation:>7.3f}  rank correlation "
            "of items' vector lengths and interactions"
        )
    return "\n".join(lines)


def genre_matrix(vocabulary: Vocabulary) -> scipy.sparse.csr_array | None:
    """Returns which item has which genre.

    Args:
        vocabulary: The items; their genres are in the column `genres`.

    Returns:
        `[vocabulary_size, num_genres]` float32, genres in order of first
        appearance; None when there is no such column or no genre in it.
    """
    items = vocabulary.items
    if items is None or "genres" not in items.column_names:
        return None
    # Neither function counts a list that is null.
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
    """Returns the `[num_queries, k]` int32 beginnings of the lists."""
    top_items = evaluation.top_items
    width = 0 if top_items is None else top_items.shape[1]
    if top_items is None or width < k:
        raise ValueError(
            f"`evaluation` must have lists of {k} items or more. Received: "
            f"{width}"
        )
    return top_items[:, :k]


def _mean(values: np.ndarray) -> float:
    """The mean where defined; NaN when it is nowhere."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
