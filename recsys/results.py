"""A model beside its baselines on one split: the table and metrics.json."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from recsys import baselines as baselines_lib
from recsys.data.sequences import Sequences
from recsys.data.splits import Queries, Split
from recsys.errors import InputError
from recsys.evaluation import (
    Evaluation,
    Recommender,
    evaluate,
    results_table,
)
from recsys.training import files

BASELINES: dict[str, Callable[[Sequences, int], Recommender]] = {
    "popularity": baselines_lib.Popularity.fit,
    "recent_popularity": baselines_lib.RecentPopularity.fit,
    "markov": baselines_lib.Markov.fit,
    "item_knn": baselines_lib.ItemKNN.fit,
    "ease": baselines_lib.EASE.fit,
}
DEFAULT_BASELINES = ("popularity", "markov", "ease")
# EASE's dense matrix then has 1.6 GB, and solving for it takes minutes.
MAX_EASE_ITEMS = 20_000
_METRICS = ("recall@10", "ndcg@10")


@dataclasses.dataclass(frozen=True)
class Results:
    """A model and its baselines on the same queries.

    Attributes:
        model: The model's evaluation.
        baselines: The baselines' evaluations, by their names in `BASELINES`.
        skipped: Why a baseline was left out, by its name.
        part: Which queries they are: "test", or "validation" where the split
            tests nothing.
        others: Further evaluations for the table, such as rankings files.
    """

    model: Evaluation
    baselines: dict[str, Evaluation]
    skipped: dict[str, str]
    part: str
    others: tuple[Evaluation, ...] = ()

    def table(self, *, intervals: bool = False) -> str:
        """Returns the results table, notes included."""
        parts = [
            results_table(
                [*self.baselines.values(), *self.others, self.model],
                _METRICS,
                intervals=intervals,
            )
        ]
        parts += [f"{name}: {why}" for name, why in self.skipped.items()]
        if self.part == "validation":
            parts.insert(0, "Validation queries, as this split tests nothing.")
        return "\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Returns what metrics.json holds."""
        return {
            **self.model.summary(),
            "queries": self.part,
            "baselines": {
                name: evaluation.metrics()
                for name, evaluation in self.baselines.items()
            },
            "skipped_baselines": self.skipped,
        }


def compare_with_baselines(
    recommender: Recommender,
    split: Split,
    vocabulary_size: int,
    *,
    baselines: Collection[str] = DEFAULT_BASELINES,
    exclude_history: bool = True,
    lists: bool = False,
) -> Results:
    """Evaluates a model and baselines fitted to the same training set.

    Args:
        recommender: The model.
        split: The test queries are asked, or the validation queries where
            nothing is tested.
        vocabulary_size: Rows of the item table.
        baselines: Names in `BASELINES`.
        exclude_history: Whether items of a query's history are left out of
            its candidates.
        lists: Whether the model's evaluation holds its lists.

    Returns:
        The results.

    Raises:
        InputError: A baseline has another name.
    """
    check_baselines(baselines)
    queries, part = asked_queries(split)

    def measure(one: Recommender, with_lists: bool) -> Evaluation:
        return evaluate(
            one,
            queries,
            protocol=split.protocol,
            exclude_history=exclude_history,
            lists=with_lists,
        )

    measured = {}
    skipped = {}
    for name in baselines:
        reason = _reason_to_skip(name, split.train)
        if reason is None:
            fitted = BASELINES[name](split.train, vocabulary_size)
            measured[name] = measure(fitted, with_lists=False)
        else:
            skipped[name] = reason
    model = measure(recommender, with_lists=lists)
    return Results(model, measured, skipped, part)


def asked_queries(split: Split) -> tuple[Queries, str]:
    """Returns the test queries, or else validation's, and which they are."""
    if split.test is None:
        return split.validation, "validation"
    return split.test, "test"


def check_baselines(names: Collection[str]) -> None:
    """Raises InputError for a name that is no baseline, or no name at all."""
    unknown = [name for name in names if name not in BASELINES]
    if unknown or not names:
        raise InputError(
            f"--baselines must be one or more of {', '.join(BASELINES)}. "
            f"Received: {', '.join(unknown) or 'none'}"
        )


def write_metrics(path: pathlib.Path, results: Results, **more: Any) -> None:
    """Writes metrics.json.

    Args:
        path: The file.
        results: The results.
        **more: Further entries.
    """
    files.write_json(path, {**results.to_dict(), **more})


def _reason_to_skip(name: str, train: Sequences) -> str | None:
    if name != "ease":
        return None
    num_seen = len(np.unique(train.items))
    if num_seen <= MAX_EASE_ITEMS:
        return None
    return (
        f"left out, its matrix of {num_seen:,} x {num_seen:,} items would take "
        f"{4 * num_seen**2 / 2**30:,.1f} GB (it is fitted up to "
        f"{MAX_EASE_ITEMS:,} items)"
    )
