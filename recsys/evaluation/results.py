"""What an evaluation found, one entry per query."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.data.splits import Queries
from recsys.metrics import Metric, all_metrics


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Ranks of the relevant items of every query, and the lists.

    Attributes:
        name: The recommender's name.
        protocol: The split's protocol, such as `leave_last_out`.
        ks: The cuts of the metrics, rising.
        exclude_history: Whether items of the history were no candidates.
        num_items: Items of the catalogue (padding and unknown not counted).
        query_ids: `[num_queries]` object array of str, see `query_ids`.
        ranks: `[num_queries, max_relevant]` float64 expected ranks of the
            relevant items, ascending, padded with NaN; see `recsys.metrics`.
        relevant_items: `[num_queries, max_relevant]` int32, the item at each
            of `ranks`, padded with 0.
        num_candidates: `[num_queries]` int32, how many items were ranked.
        top_items: `[num_queries, max(ks)]` int32, best first, padded with 0
            where there were fewer candidates; None when no lists were asked.
        top_scores: The scores of `top_items`, padded with -inf; or None.
    """

    name: str
    protocol: str
    ks: tuple[int, ...]
    exclude_history: bool
    num_items: int
    query_ids: np.ndarray
    ranks: np.ndarray
    relevant_items: np.ndarray
    num_candidates: np.ndarray
    top_items: np.ndarray | None = None
    top_scores: np.ndarray | None = None

    @property
    def num_queries(self) -> int:
        """Number of queries, each of which has at least one relevant item."""
        return len(self.ranks)

    @property
    def num_relevant(self) -> np.ndarray:
        """`[num_queries]` int64, relevant items of each query."""
        return np.count_nonzero(~np.isnan(self.ranks), axis=1)

    def per_query(
        self, metrics: Iterable[Metric] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns metrics by name, `[num_queries]` float64 each.

        Args:
            metrics: Which; None means every metric at every one of `ks`.
        """
        chosen = all_metrics(self.ks) if metrics is None else metrics
        return {str(metric): metric(self.ranks) for metric in chosen}

    def metrics(
        self, metrics: Iterable[Metric] | None = None
    ) -> dict[str, float]:
        """Returns the same metrics averaged over the queries."""
        return {
            name: float(values.mean())
            for name, values in self.per_query(metrics).items()
        }

    def select(self, rows: np.ndarray) -> Evaluation:
        """Returns the results of some queries, in the order of `rows`."""
        return dataclasses.replace(
            self,
            query_ids=self.query_ids[rows],
            ranks=self.ranks[rows],
            relevant_items=self.relevant_items[rows],
            num_candidates=self.num_candidates[rows],
            top_items=None if self.top_items is None else self.top_items[rows],
            top_scores=(
                None if self.top_scores is None else self.top_scores[rows]
            ),
        )

    def summary(self) -> dict[str, object]:
        """Returns what `metrics.json` holds of an evaluation."""
        return {
            "recommender": self.name,
            "protocol": self.protocol,
            "exclude_history": self.exclude_history,
            "num_queries": self.num_queries,
            "num_candidates": self.num_items,
            "metrics": self.metrics(),
        }


def query_ids(queries: Queries) -> np.ndarray:
    """Names the queries.

    A query is named by its user's raw id. Where any user has several
    queries, every name is the user's id, a colon, and the number of
    interactions that the user had before the query.

    Args:
        queries: The queries.

    Returns:
        `[num_queries]` object array of str, all different.
    """
    users = queries.users
    user_ids = queries.sequences.user_ids[users]
    if len(np.unique(users)) == len(users):
        return user_ids
    positions = queries.history_ends - queries.sequences.offsets[users]
    names = pc.binary_join_element_wise(
        pa.array(user_ids, pa.string()), pa.array(positions).cast("string"), ":"
    )
    return names.to_numpy(zero_copy_only=False)
