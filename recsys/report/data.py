"""What a report is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from recsys.data.splits import Queries
from recsys.data.vocabulary import Vocabulary
from recsys.evaluation.results import Comparison, Evaluation
from recsys.evaluation.slices import Slice
from recsys.metrics import Metric

# How much of the lists the report looks at.
K = 10


@dataclasses.dataclass(frozen=True)
class ReportData:
    """A model's evaluation, and everything it is shown beside.

    Attributes:
        model: The model's results, with lists of `K` items or more.
        others: Baselines and whatever else was asked the same queries.
        queries: What was asked, in the order of the results.
        part: Which queries they are, "test" or "validation".
        vocabulary: The items.
        item_counts: `[vocabulary_size]` int, training interactions of items.
        num_users: Users of the training set.
        data_name: The name of the log.
        item_vectors: `[vocabulary_size, embedding_dim]` float, what the
            candidates are scored by; None leaves out the map.
        history: Measures of each epoch, by name; empty leaves out the curves.
        best_epoch: The epoch whose weights are evaluated, from 0.
        notes: What the reader has to know.
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
    def has_one_relevant(self) -> bool:
        """Whether every query has a single relevant item."""
        return self.model.ranks.shape[1] == 1

    @property
    def targets(self) -> np.ndarray:
        """`[num_relevant]` int32, the relevant items of all queries."""
        return self.queries.targets(np.arange(len(self.queries)))[0]


@dataclasses.dataclass(frozen=True)
class SlicedRow:
    """One part of the queries, for every recommender.

    Attributes:
        name: The part.
        num_queries: Queries in it.
        share: Its share of all relevant items.
        values: `[num_recommenders]` recall at `K`; NaN where not defined.
    """

    name: str
    num_queries: int
    share: float
    values: list[float]


def average(evaluation: Evaluation, metric: Metric) -> float:
    """Returns the mean of a metric; NaN where the lists end before its k."""
    if metric.k is not None and metric.k > evaluation.ks[-1]:
        return float("nan")
    return evaluation.metrics([metric])[str(metric)]


def sliced_rows(
    data: ReportData, slice_by: Callable[[Evaluation], list[Slice]]
) -> list[SlicedRow]:
    """Cuts the results of every recommender into the same parts.

    Args:
        data: The results.
        slice_by: Cuts one of them; the queries and their relevant items
            alone may decide into what.

    Returns:
        One row per part.
    """
    every = [slice_by(each) for each in data.recommenders]
    recall = Metric("recall", K)
    return [
        SlicedRow(
            name=parts[0].name,
            num_queries=parts[0].evaluation.num_queries,
            share=parts[0].share,
            values=[average(part.evaluation, recall) for part in parts],
        )
        for parts in zip(*every, strict=True)
    ]
