"""Sections of the page about results: the table, recall, slices, training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recsys.evaluation.results import (
    Comparison,
    Evaluation,
    bootstrap_interval,
    compare,
)
from recsys.evaluation.slices import by_history_length, by_item_popularity
from recsys.metrics import Metric
from recsys.report import result_figures
from recsys.report.data import K, ReportData, SlicedRow, average, sliced_rows
from recsys.report.markup import (
    Markup,
    element,
    join,
    metric_head,
    metric_title,
    signed,
    table,
)

_COLUMNS = (
    Metric("recall", K),
    Metric("ndcg", K),
    Metric("mrr", K),
    Metric("recall", 100),
)


def results(data: ReportData) -> Markup:
    """The table with intervals, and the model against the best other."""
    metrics = [m for m in _COLUMNS if m.k is None or m.k <= data.model.ks[-1]]
    best = {
        metric: np.nanmax([average(each, metric) for each in data.recommenders])
        for metric in metrics
    }
    rows = [
        [each.name, *(_cell(each, metric, best[metric]) for metric in metrics)]
        for each in [*data.others, data.model]
    ]
    return join(
        [
            _against_best(data),
            table(
                "Mean over all queries, ± half of the 95 % bootstrap "
                "interval. Bold: best of its column.",
                [
                    "Recommender",
                    *(metric_head(str(metric)) for metric in metrics),
                ],
                rows,
                [*(None for _ in data.others), "model"],
            ),
            *(
                element("p", f"{name}: {why}.", class_="muted")
                for name, why in data.skipped.items()
            ),
            _rival(data),
        ]
    )


def recall(data: ReportData) -> Markup:
    """Recall over k."""
    what = (
        "With one relevant item per query, recall is the share of queries "
        "whose item is found."
        if data.has_one_relevant
        else "Queries have several relevant items; recall is the mean share "
        f"that is found, of at most k. On average a query has "
        f"{data.model.num_relevant.mean():.1f}."
    )
    ks = [k for k in (1, K, 50, 100) if k in data.model.ks]
    rows = [
        [
            each.name,
            *(_number(average(each, Metric("recall", k))) for k in ks),
        ]
        for each in [*data.others, data.model]
    ]
    return element(
        "div",
        result_figures.recall_over_k(data),
        element(
            "div",
            element(
                "p",
                "A retrieval model hands its first items to whatever ranks "
                "them next, so long lists matter as much as short ones. ",
                what,
            ),
            table(
                "Recall at some list lengths",
                ["Recommender", *(f"k = {k}" for k in ks)],
                rows,
                [*(None for _ in data.others), "model"],
            ),
        ),
        class_="pair",
    )


def slices(data: ReportData) -> Markup:
    """Results by popularity of the relevant item and history length."""
    lengths = data.queries.history_ends - data.queries.history_starts
    by_popularity = sliced_rows(
        data, lambda each: by_item_popularity(each, data.item_counts)
    )
    by_length = sliced_rows(data, lambda each: by_history_length(each, lengths))
    unseen = [row for row in by_popularity if row.name == "unseen"]
    return join(
        [
            element("h3", "By popularity of the relevant item"),
            element(
                "p",
                "Head: the most popular items, which share the first half of "
                "all training interactions; mid: those up to 80 %; tail: the "
                "rest; unseen: items without a training interaction. ",
                f"{unseen[0].share:.1%} of the relevant items are unseen."
                if unseen
                else "Every relevant item was seen in training.",
            ),
            _slice_pair(data, by_popularity, "popularity", "Items"),
            element("h3", "By length of the history"),
            _slice_pair(data, by_length, "history length", "Length"),
        ]
    )


def _slice_pair(
    data: ReportData, rows: Sequence[SlicedRow], by: str, head: str
) -> Markup:
    """The figure and the table of one way to slice."""
    names = [each.name for each in data.recommenders]
    return element(
        "div",
        result_figures.slices(data, rows, by),
        table(
            f"Recall@{K} by {by}; small: share of the relevant items",
            [head, "Queries", *names],
            [
                [
                    row.name,
                    join(
                        [
                            f"{row.num_queries:,}",
                            element("small", f"{row.share:.0%}"),
                        ]
                    ),
                    *(_number(value, 3) for value in row.values),
                ]
                for row in rows
            ],
        ),
        class_="pair",
    )


def _against_best(data: ReportData) -> Markup | None:
    """Says in a sentence how the model does against the best other."""
    metric = Metric("ndcg", K)
    title = metric_title(str(metric))
    rivals = [each for each in data.others if K in each.ks]
    if not rivals:
        return None
    best = max(rivals, key=lambda each: average(each, metric))
    found = compare(data.model, best, [metric])[str(metric)]
    gap = found.difference.mean
    where = f"{abs(gap):.4f} {'above' if gap > 0 else 'below'}"
    if not gap:
        where = "equal to"
    clear = (
        "which chance does not explain"
        if found.difference.low > 0 or found.difference.high < 0
        else "which may be chance"
    )
    return element(
        "p",
        f"{title} of {data.model.name} is {found.first:.4f}, "
        f"{where} the best of the others, "
        f"{best.name} (95 % interval of the difference {_span(found)}), "
        f"{clear}.",
        class_="lead",
    )


def _rival(data: ReportData) -> Markup | None:
    """The comparison that was asked for, query by query."""
    if not data.comparison:
        return None
    return table(
        f"Query by query against {data.rival}",
        ["Metric", "Model", "Other", "Difference", "p"],
        [
            [
                metric_title(name),
                _number(each.first),
                _number(each.second),
                join(
                    [
                        signed(each.difference.mean, 4),
                        element("small", _span(each)),
                    ]
                ),
                f"{each.p_value:.4f}",
            ]
            for name, each in data.comparison.items()
        ],
    )


def _span(comparison: Comparison) -> str:
    difference = comparison.difference
    return f"{signed(difference.low, 4)} … {signed(difference.high, 4)}"


def _cell(evaluation: Evaluation, metric: Metric, best: float) -> Markup:
    if metric.k is not None and metric.k > evaluation.ks[-1]:
        return join(["–"])
    values = evaluation.per_query([metric])[str(metric)]
    found = bootstrap_interval(values)
    value = f"{found.mean:.4f}"
    return join(
        [
            element("strong", value) if found.mean == best else value,
            element("small", f"± {found.half_width:.4f}"),
        ]
    )


def _number(value: float, digits: int = 4) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
