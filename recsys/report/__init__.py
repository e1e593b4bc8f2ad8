"""The HTML report of an evaluation: its data here, `figures` and the `page`.

Drawing needs the extra [report]; the data alone do not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recsys.data.splits import Queries
from recsys.data.vocabulary import Vocabulary
from recsys.evaluation.recommendation_health import Health
from recsys.evaluation.results import Comparison, Evaluation
from recsys.evaluation.slices import (
    Slice,
    by_history_length,
    by_item_popularity,
)
from recsys.metrics import Metric

# How much of each list the report looks at.
K = 10


@dataclasses.dataclass(frozen=True)
class ReportData:
    """A model's evaluation, and everything it is shown beside.

    Attributes:
        model: The model's results, with lists of `K` items or more.
        others: Baselines and other systems with results on the same queries.
        queries: The queries, in the order of the results.
        part: Which queries they are, "test" or "validation".
        vocabulary: The items.
        item_counts: `[vocabulary_size]` int, training interactions per item.
        num_users: Users of the training set.
        data_name: The name of the log.
        health: What `recsys.evaluation.health` found.
        list_metrics: What `recsys.evaluation.list_summary` returned, NaN or
            None where a metric is not defined.
        item_vectors: `[vocabulary_size, dim]` float; None leaves out
            the map.
        history: Measures of each epoch, by name; empty leaves out the curves.
        best_epoch: The epoch whose weights are evaluated, from 0.
        notes: Caveats for the reader.
        skipped: Why a baseline was left out, by its name.
        rival: What the model is compared with query by query, or None.
        comparison: That comparison, by metric.

    Raises:
        ValueError: The model's results have no lists, or are of other
            queries.
    """

    model: Evaluation
    others: Sequence[Evaluation]
    queries: Queries
    part: str
    vocabulary: Vocabulary
    item_counts: np.ndarray
    num_users: int
    data_name: str
    health: Health
    list_metrics: dict[str, float | None]
    item_vectors: np.ndarray | None = None
    history: Sequence[dict[str, float]] = ()
    best_epoch: int | None = None
    notes: Sequence[str] = ()
    skipped: dict[str, str] = dataclasses.field(default_factory=dict)
    rival: str | None = None
    comparison: dict[str, Comparison] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        width = 0 if self.model.top_items is None else self.model.ks[-1]
        if width < K or K not in self.model.ks:
            raise ValueError(
                f"`model` must have lists of {K} items or more and a cut at "
                f"{K}. Received: {width} and cuts {self.model.ks}"
            )
        if len(self.queries) != self.model.num_queries:
            raise ValueError(
                f"`queries` must be the {self.model.num_queries} of `model`. "
                f"Received: {len(self.queries)}"
            )

    @property
    def top_items(self) -> np.ndarray:
        """`[num_queries, K]` int32, the model's lists, padded with 0."""
        assert self.model.top_items is not None  # Checked when made.
        return self.model.top_items[:, :K]

    @property
    def recommenders(self) -> list[Evaluation]:
        """The model, then all others."""
        return [self.model, *self.others]

    @property
    def targets(self) -> np.ndarray:
        """`[num_relevant]` int32, the relevant items of all queries."""
        return self.queries.targets(np.arange(len(self.queries)))[0]

    def slices(self) -> dict[str, list[dict[str, Any]]]:
        """Returns recall at `K` of every recommender in parts of the queries.

        By what the parts differ in; each part has a `name`, `num_queries`, its
        `share` of the relevant items, and `values`, one per recommender.
        """
        lengths = self.queries.history_ends - self.queries.history_starts
        ways: dict[str, Callable[[Evaluation], list[Slice]]] = {
            "popularity of the relevant item": lambda each: by_item_popularity(
                each, self.item_counts
            ),
            "length of the history": lambda each: by_history_length(
                each, lengths
            ),
        }
        recall = Metric("recall", K)
        return {
            by: [
                {
                    "name": parts[0].name,
                    "num_queries": parts[0].evaluation.num_queries,
                    "share": parts[0].share,
                    "values": [average(p.evaluation, recall) for p in parts],
                }
                for parts in zip(*map(way, self.recommenders), strict=True)
            ]
            for by, way in ways.items()
        }


def average(evaluation: Evaluation, metric: Metric) -> float:
    """Returns the mean of a metric; NaN where the lists end before its k."""
    if metric.k is not None and metric.k > evaluation.ks[-1]:
        return math.nan
    return evaluation.metrics([metric])[str(metric)]


def map_points(vectors: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Projects item vectors onto their two principal components.

    The vectors get unit length first and lose what a parabola in the logarithm
    of their popularity explains: otherwise popularity would be most of what
    one sees.

    Args:
        vectors: `[n, dim]` float.
        counts: `[n]` int, positive: how popular each item is.

    Returns:
        `[n, 2]` float64. The position furthest from 0 on each axis is positive.
    """
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(norms > 0, norms, 1)
    powers = np.log(counts)[:, np.newaxis] ** np.arange(3)
    vectors -= powers @ np.linalg.lstsq(powers, vectors)[0]
    left, sizes, _ = np.linalg.svd(
        vectors - vectors.mean(axis=0), full_matrices=False
    )
    points = np.zeros((len(vectors), 2))
    found = min(2, len(sizes))
    points[:, :found] = (left * sizes)[:, :found]
    furthest = points[np.abs(points).argmax(axis=0), [0, 1]]
    return points * np.where(furthest < 0, -1, 1)


def validation_measures(data: ReportData) -> list[str]:
    """Returns the names of what was measured after each epoch."""
    last = data.history[-1] if data.history else {}
    return [name for name in last if name.startswith("validation_")]
