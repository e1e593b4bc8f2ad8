"""Chooses a baseline's settings on validation queries."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from recsys.baselines.counting import ItemKNN, RecentPopularity
from recsys.baselines.ease import EASE
from recsys.baselines.implicit import ALS, BPR
from recsys.data.sequences import Sequences
from recsys.data.splits import Queries
from recsys.evaluation.ranking import Recommender, evaluate
from recsys.metrics import parse_metric


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A baseline with the settings that did best.

    Attributes:
        recommender: Fitted with them.
        options: The settings, by the names of the arguments of `fit`.
        value: The metric on the validation queries.
        num_tried: How many settings there were.
    """

    recommender: Recommender
    options: dict[str, Any]
    value: float
    num_tried: int


def _product(**choices: Iterable[Any]) -> list[dict[str, Any]]:
    """Returns all combinations of the choices."""
    return [
        dict(zip(choices, values, strict=True))
        for values in itertools.product(*choices.values())
    ]


# What is tried for each baseline. Popularity has no settings, and the one of
# Markov hardly changes an order.
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


def tune(
    fit: Callable[..., Recommender],
    train: Sequences,
    vocabulary_size: int,
    validation: Queries,
    grid: Iterable[Mapping[str, Any]],
    *,
    protocol: str,
    metric: str = "ndcg@10",
    exclude_history: bool = True,
) -> Tuned:
    """Fits with each of some settings and keeps the best.

    Args:
        fit: Makes a recommender: `fit(train, vocabulary_size, **options)`.
        train: The training sequences.
        vocabulary_size: Number of items, padding and unknown included.
        validation: The queries that decide; never those of the test.
        grid: The settings, such as those of `GRIDS`; the first of equally
            good ones wins.
        protocol: The name of the split.
        metric: What decides, higher is better.
        exclude_history: Whether items of a query's history are left out.

    Returns:
        The best recommender and its settings.

    Raises:
        ValueError: `grid` is empty or there is no such metric.
    """
    parsed = parse_metric(metric)
    best = None
    num_tried = 0
    for num_tried, options in enumerate(grid, start=1):
        recommender = fit(train, vocabulary_size, **options)
        result = evaluate(
            recommender,
            validation,
            protocol=protocol,
            ks=(parsed.k or 1,),
            exclude_history=exclude_history,
            lists=False,
        )
        value = result.metrics([parsed])[metric]
        if best is None or value > best.value:
            best = Tuned(recommender, dict(options), value, num_tried)
    if best is None:
        raise ValueError("`grid` must hold settings. Received: none")
    return dataclasses.replace(best, num_tried=num_tried)
