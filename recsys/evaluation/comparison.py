"""A model beside its baselines on one split: the table and metrics.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from recsys import baselines as baselines_lib
from recsys.data.sequences import TrainingSequences
from recsys.data.splits import Split
from recsys.errors import InputError, need_packages
from recsys.evaluation import Evaluation, Scorer, evaluate, results_table

BASELINES: dict[str, Any] = baselines_lib.BASELINES
DEFAULT_BASELINES = ("popularity", "markov", "ease")
# The package `implicit` fits them. They depend on their settings so much that
# these are always chosen on the validation queries.
IMPLICIT_BASELINES = ("als", "bpr")
# EASE's dense matrix then has 1.6 GB, and solving for it takes minutes.
MAX_EASE_ITEMS = 20_000
TABLE_METRICS = ("recall@10", "ndcg@10")


@dataclasses.dataclass(frozen=True)
class Results:
    """A model and its baselines on the same queries.

    Attributes:
        model: The model's evaluation.
        baselines: The baselines' evaluations, by their names in `BASELINES`.
        skipped: Why a baseline was left out, by its name.
        tuned: The baselines whose settings were chosen on the validation
            queries, by their names.
        part: Which queries they are: "test", or "validation" where the split
            tests nothing.
        others: Further evaluations for the table, such as rankings files.
    """

    model: Evaluation
    baselines: dict[str, Evaluation]
    skipped: dict[str, str]
    part: str
    others: tuple[Evaluation, ...] = ()
    tuned: dict[str, baselines_lib.Tuned] = dataclasses.field(
        default_factory=dict
    )

    def table(self, *, intervals: bool = False) -> str:
        """Returns the results table, notes included."""
        parts = [
            results_table(
                [*self.baselines.values(), *self.others, self.model],
                TABLE_METRICS,
                intervals=intervals,
            )
        ]
        parts += self.tuning_notes()
        parts += [f"{name}: {why}" for name, why in self.skipped.items()]
        if self.part == "validation":
            parts.insert(0, "Validation queries, as this split tests nothing.")
        return "\n".join(parts)

    def tuning_notes(self) -> list[str]:
        """Says which settings were chosen, one line per tuned baseline."""
        return [
            f"{self.baselines[name].name}: "
            + ", ".join(
                f"{key}={value:g}" for key, value in tuned.options.items()
            )
            + f", the best of {tuned.num_tried} on the validation queries"
            for name, tuned in self.tuned.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns what metrics.json holds."""
        return {
            **self.model.summary(),
            "queries": self.part,
            "baselines": {
                name: evaluation.metrics()
                for name, evaluation in self.baselines.items()
            },
            "tuned_baselines": {
                name: {
                    "options": tuned.options,
                    "validation_ndcg@10": tuned.value,
                    "num_tried": tuned.num_tried,
                }
                for name, tuned in self.tuned.items()
            },
            "skipped_baselines": self.skipped,
        }


def compare_with_baselines(
    model: Scorer,
    split: Split,
    vocabulary_size: int,
    *,
    baselines: Collection[str] = DEFAULT_BASELINES,
    tune_all: bool = False,
    exclude_history: bool = True,
    lists: bool = False,
) -> Results:
    """Evaluates a model and baselines fitted to the same training set.

    Args:
        model: The model.
        split: The test queries are used, or the validation queries where the
            split has no test queries.
        vocabulary_size: Rows of the item table.
        baselines: Names in `BASELINES`.
        tune_all: Whether to choose the settings of every baseline that has a
            grid in `recsys.baselines.GRIDS` on the validation queries, not
            only those of `IMPLICIT_BASELINES`.
        exclude_history: Whether items of a query's history are excluded from
            its candidates.
        lists: Whether the model's evaluation holds its lists.

    Returns:
        The results.

    Raises:
        InputError: A baseline has another name, or needs a package that is
            not installed.
    """
    check_baselines(baselines)
    queries, part = split.reported
    options: dict[str, Any] = {
        "protocol": split.protocol,
        "exclude_history": exclude_history,
    }
    measured = {}
    skipped = {}
    tuned = {}
    for name in baselines:
        reason = _reason_to_skip(name, split.train)
        if reason is not None:
            skipped[name] = reason
            continue
        found = None
        if tune_all or name in IMPLICIT_BASELINES:
            found = _tune(name, split, vocabulary_size, options)
        if found is None:
            fitted = BASELINES[name].fit(split.train, vocabulary_size)
        else:
            tuned[name], fitted = found, found.recommender
        measured[name] = evaluate(fitted, queries, lists=False, **options)
    evaluation = evaluate(model, queries, lists=lists, **options)
    return Results(evaluation, measured, skipped, part, tuned=tuned)


def _tune(
    name: str, split: Split, vocabulary_size: int, options: dict[str, Any]
) -> baselines_lib.Tuned | None:
    """Tunes a baseline on the validation queries; None if it has no grid."""
    baseline = BASELINES[name]
    grid = baselines_lib.GRIDS.get(baseline)
    if not grid:
        return None
    return baselines_lib.tune(
        baseline.fit,
        split.train.read_all(),
        vocabulary_size,
        split.validation,
        grid,
        **options,
    )


def check_baselines(names: Collection[str]) -> None:
    """Checks the names of baselines.

    Raises:
        InputError: There is none, one is unknown, or one needs a package that
            is not installed.
    """
    unknown = [name for name in names if name not in BASELINES]
    if unknown or not names:
        raise InputError(
            f"--baselines must be one or more of {', '.join(BASELINES)}. "
            f"Received: {', '.join(unknown) or 'none'}"
        )
    for name in names:
        if name in IMPLICIT_BASELINES:
            need_packages(f"--baselines={name}", "baselines", "implicit")


def _reason_to_skip(name: str, train: TrainingSequences) -> str | None:
    if not train.in_memory:
        if name == "popularity":
            return None
        return "left out, it is fitted in memory and the log is in shards"
    if name != "ease":
        return None
    num_seen = len(np.unique(train.read_all().items))
    if num_seen <= MAX_EASE_ITEMS:
        return None
    return (
        f"left out, its matrix of {num_seen:,} x {num_seen:,} items would take "
        f"{4 * num_seen**2 / 2**30:,.1f} GB (it is fitted up to "
        f"{MAX_EASE_ITEMS:,} items)"
    )
