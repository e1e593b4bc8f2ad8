"""Baselines that a model has to beat, and the choice of their settings.

`fit(train, vocabulary_size, **options)` of each class returns a fitted
`recsys.evaluation.Scorer`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from recsys.baselines.closed_form import (
    EASE,
    ItemKNN,
    Markov,
    Popularity,
    RecentPopularity,
)
from recsys.baselines.implicit import ALS, BPR
from recsys.data.sequences import Sequences
from recsys.data.splits import Queries
from recsys.evaluation import Scorer, evaluate
from recsys.metrics import parse_metric

__all__ = [
    "ALS",
    "BASELINES",
    "BPR",
    "EASE",
    "GRIDS",
    "ItemKNN",
    "Markov",
    "Popularity",
    "RecentPopularity",
    "Tuned",
    "tune",
]

# Keys are the names on the command line; als and bpr need `implicit`.
BASELINES = {
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "markov": Markov,
    "item_knn": ItemKNN,
    "ease": EASE,
    "als": ALS,
    "bpr": BPR,
}


def _product(**choices: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns all combinations of the choices."""
    return [
        dict(zip(choices, values, strict=True))
        for values in itertools.product(*choices.values())
    ]


# Popularity has no settings, and Markov's smoothing hardly changes an order.
GRIDS: dict[type, list[dict[str, Any]]] = {
    RecentPopularity: _product(half_life=(0.03, 0.1, 0.3, 1.0)),
    ItemKNN: _product(num_neighbours=(20, 100, 400), shrinkage=(0.0, 10.0)),
    EASE: _product(regularization=(50.0, 100.0, 250.0, 500.0, 1000.0)),
    ALS: _product(
        num_factors=(32, 64, 128),
        alpha=(5.0, 20.0),
        regularization=(0.1, 10.0),
    ),
    BPR: _product(num_epochs=(25, 50, 100), fold_in_regularization=(0.01, 0.1)),
}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A baseline with the best settings of a grid.

    Attributes:
        recommender: The baseline fitted with them.
        options: The settings, as arguments of `fit`.
        value: The metric on the validation queries.
        num_tried: Number of settings in the grid.
    """

    recommender: Scorer
    options: dict[str, Any]
    value: float
    num_tried: int


def tune(
    fit: Callable[..., Scorer],
    train: Sequences,
    vocabulary_size: int,
    validation: Queries,
    grid: Iterable[Mapping[str, Any]],
    *,
    protocol: str,
    metric: str = "ndcg@10",
    exclude_history: bool = True,
) -> Tuned:
    """Fits a baseline with each of several settings and keeps the best.

    Args:
        fit: Called as `fit(train, vocabulary_size, **options)`.
        train: The training sequences.
        vocabulary_size: Number of items, including padding and unknown.
        validation: The queries to choose by; never the test queries.
        grid: The settings, such as those of `GRIDS`. The first wins a tie.
        protocol: The name of the split.
        metric: The metric to maximize.
        exclude_history: Whether to exclude the items of a query's history
            from its candidates.

    Returns:
        The best baseline and its settings.

    Raises:
        ValueError: `grid` is empty or `metric` is unknown.
    """
    parsed = parse_metric(metric)
    best = None
    num_tried = 0
    for num_tried, options in enumerate(grid, start=1):
        scorer = fit(train, vocabulary_size, **options)
        result = evaluate(
            scorer,
            validation,
            protocol=protocol,
            ks=(parsed.k or 1,),
            exclude_history=exclude_history,
            lists=False,
        )
        value = result.metrics([parsed])[metric]
        if best is None or value > best.value:
            best = Tuned(scorer, dict(options), value, num_tried)
    if best is None:
        raise ValueError("`grid` must not be empty. Received: no settings")
    return dataclasses.replace(best, num_tried=num_tried)
