"""How far a difference or an average can be trusted.

Both the bootstrap and the sign-flip test see queries only through their
values, and most metrics have few different ones (with one relevant item,
recall@10 has two and NDCG@10 has eleven). So instead of drawing queries or
signs, the functions draw how many queries of each value, or how many positive
signs, there are. That has exactly the same distribution and takes the time of
the different values rather than of the queries.

Queries are taken as independent. Where one user has several, intervals are
therefore somewhat too narrow.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from recsys.evaluation.results import Evaluation
from recsys.metrics import Metric, all_metrics

# Resamples are drawn in groups of about so many counts, to bound memory.
_GROUP_COUNTS = 2**22


@dataclasses.dataclass(frozen=True)
class Interval:
    """An average with its confidence interval.

    Attributes:
        mean: The average over the queries.
        low: Lower end.
        high: Upper end.
        level: The share of such intervals that hold the true mean.
    """

    mean: float
    low: float
    high: float
    level: float

    @property
    def half_width(self) -> float:
        """Half of the length of the interval: what stands after a `±`."""
        return (self.high - self.low) / 2


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The difference of two recommenders on the same queries.

    Attributes:
        first: Average of the first recommender.
        second: Average of the second recommender.
        difference: Interval of `first - second`.
        p_value: Two-sided; how often random signs give a difference at least
            as far from zero.
    """

    first: float
    second: float
    difference: Interval
    p_value: float


def bootstrap_interval(
    values: np.ndarray,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a mean.

    Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Args:
        values: `[num_queries]` float, one value of a metric per query; NaN
            (a metric that is not defined for a query) is left out.
        level: The confidence level.
        num_resamples: How many resamples of all queries are drawn.
        seed: The same seed gives the same interval.

    Returns:
        The mean and its interval.

    Raises:
        ValueError: There is no value, or an argument is out of range.
    """
    _check(level, num_resamples)
    values = values[~np.isnan(values)]
    if not len(values):
        raise ValueError("`values` must hold a number. Received: none")
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    shares = counts / len(values)
    means = np.concatenate(
        [
            rng.multinomial(len(values), shares, size) @ distinct
            for size in _groups(num_resamples, len(distinct))
        ]
    )
    tail = (1 - level) / 2
    low, high = np.quantile(means / len(values), (tail, 1 - tail))
    return Interval(float(values.mean()), float(low), float(high), level)


def sign_flip_p_value(
    differences: np.ndarray, *, num_flips: int = 10_000, seed: int = 0
) -> float:
    """Two-sided paired randomisation test of a mean difference of zero.

    Under the null hypothesis the two values of a query could be exchanged,
    which flips the sign of their difference. The p-value is the share of
    random flips, the observed one included, whose mean is at least as far
    from zero (Smucker, Allan, Carterette 2007,
    https://doi.org/10.1145/1321440.1321528).

    Args:
        differences: `[num_queries]` float, first minus second.
        num_flips: How many times all signs are drawn.
        seed: The same seed gives the same value.

    Returns:
        The p-value, in (0, 1].
    """
    if num_flips < 1:
        raise ValueError(f"`num_flips` must be positive. Received: {num_flips}")
    sizes = np.abs(differences[differences != 0])
    distinct, counts = np.unique(sizes, return_counts=True)
    # One random word decides up to 64 signs of the same size.
    num_words = -(-counts // 64)
    distinct = np.repeat(distinct, num_words)
    num_signs = np.full(len(distinct), 64)
    num_signs[np.cumsum(num_words) - 1] = counts - 64 * (num_words - 1)
    observed = abs(differences.sum())
    # Sums that are equal in exact arithmetic must not differ by rounding.
    observed -= 1e-9 * sizes.sum()
    rng = np.random.default_rng(seed)
    as_far = 0
    for size in _groups(num_flips, len(distinct)):
        words = rng.integers(0, 2**64, (size, len(distinct)), dtype=np.uint64)
        words >>= (64 - num_signs).astype(np.uint64)
        positive = np.bitwise_count(words).astype(np.float64)
        sums = (2 * positive - num_signs) @ distinct
        as_far += int(np.count_nonzero(np.abs(sums) >= observed))
    return (as_far + 1) / (num_flips + 1)


def intervals(
    evaluation: Evaluation,
    metrics: list[Metric] | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Returns the bootstrap interval of each metric of an evaluation.

    Args:
        evaluation: The results.
        metrics: Which; None means all at the evaluation's `ks`.
        level: The confidence level.
        num_resamples: How many resamples of all queries are drawn.
        seed: The same seed gives the same intervals.
    """
    return {
        name: bootstrap_interval(
            values, level=level, num_resamples=num_resamples, seed=seed
        )
        for name, values in evaluation.per_query(metrics).items()
    }


def compare(
    first: Evaluation,
    second: Evaluation,
    metrics: list[Metric] | None = None,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    num_flips: int = 10_000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Compares two recommenders query by query.

    Queries are matched by their ids and may come in different orders.

    Args:
        first: Results of one recommender.
        second: Results of another, on the same queries.
        metrics: Which; None means all at the `ks` that both have.
        level: The level of the interval of the difference.
        num_resamples: How many resamples are drawn for the interval.
        num_flips: How many times all signs are drawn for the p-value.
        seed: The same seed gives the same result.

    Returns:
        The comparison of each metric.

    Raises:
        ValueError: The queries, the relevant items, the protocol or the
            candidates differ.
    """
    second_rows = _matching_rows(first, second)
    if metrics is None:
        metrics = all_metrics(sorted(set(first.ks) & set(second.ks)))
    first_values = first.per_query(metrics)
    second_values = second.per_query(metrics)
    result = {}
    for name, values in first_values.items():
        others = second_values[name][second_rows]
        differences = values - others
        result[name] = Comparison(
            first=float(values.mean()),
            second=float(others.mean()),
            difference=bootstrap_interval(
                differences,
                level=level,
                num_resamples=num_resamples,
                seed=seed,
            ),
            p_value=sign_flip_p_value(
                differences, num_flips=num_flips, seed=seed
            ),
        )
    return result


def _matching_rows(first: Evaluation, second: Evaluation) -> np.ndarray:
    """Returns the row of `second` for each query of `first`."""
    for what in ("protocol", "exclude_history", "num_items", "num_queries"):
        values = getattr(first, what), getattr(second, what)
        if values[0] != values[1]:
            raise ValueError(
                f"`first` and `second` must have the same {what}. Received: "
                f"{values[0]} and {values[1]}"
            )
    first_order = np.argsort(first.query_ids)
    second_order = np.argsort(second.query_ids)
    differs = first.query_ids[first_order] != second.query_ids[second_order]
    if differs.any():
        row = first_order[np.argmax(differs)]
        raise ValueError(
            "`first` and `second` must have the same queries. Received: "
            f"query {first.query_ids[row]!r} in one of them only"
        )
    rows = np.empty(len(first_order), np.int64)
    rows[first_order] = second_order
    relevant = np.sort(first.relevant_items, axis=1)
    others = np.sort(second.relevant_items, axis=1)[rows]
    if relevant.shape != others.shape or (relevant != others).any():
        raise ValueError(
            "`first` and `second` must have the same relevant items. "
            "Received: different ones"
        )
    return rows


def _check(level: float, num_resamples: int) -> None:
    if not 0 < level < 1:
        raise ValueError(f"`level` must be in (0, 1). Received: {level}")
    if num_resamples < 1:
        raise ValueError(
            f"`num_resamples` must be positive. Received: {num_resamples}"
        )


def _groups(num_resamples: int, num_distinct: int) -> list[int]:
    """Splits the resamples into groups that fit in memory."""
    size = max(1, _GROUP_COUNTS // max(1, num_distinct))
    whole, rest = divmod(num_resamples, size)
    return [size] * whole + [rest] * (rest > 0)
