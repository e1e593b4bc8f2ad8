"""Results as plain text, aligned, the protocol above them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from recsys.evaluation.results import Evaluation
from recsys.evaluation.uncertainty import bootstrap_interval
from recsys.metrics import Metric, parse_metric

PROTOCOL_NOTES = {
    "leave_last_out": (
        "Leave-last-out leaks across users' time lines: the training set "
        "holds interactions of other users that happened after a query. The "
        "temporal split does not."
    ),
    "validation_only": (
        "These are validation queries: what was chosen by them looks better "
        "than it is. As in leave-last-out, the training set holds "
        "interactions of other users that happened after a query."
    ),
    "temporal": (
        "Nothing in training happened at or after the time of any query."
    ),
    "held_out_items": (
        "No interaction with any item asked for was in training; who ranks by "
        "interactions alone cannot find it."
    ),
    "held_out_users": "No user of these queries was in training.",
}


def results_table(
    evaluations: Sequence[Evaluation],
    metrics: Sequence[str] = ("recall@10", "ndcg@10"),
    *,
    intervals: bool = False,
    level: float = 0.95,
) -> str:
    """Renders one row per recommender and one column per metric.

    The best value of each column is marked with `*`.

    Args:
        evaluations: Results on the same queries, in the order of the rows.
        metrics: Names of the columns, such as `ndcg@10`.
        intervals: Whether each value is followed by ± half of its bootstrap
            interval.
        level: The level of the intervals.

    Returns:
        The caption, a blank line, the table, and notes; no trailing newline.

    Raises:
        ValueError: There is no evaluation, they differ in protocol or
            queries, or a metric is unknown.
    """
    caption = _caption(evaluations)
    columns = [
        _column(evaluations, parse_metric(name), intervals, level)
        for name in metrics
    ]
    rows = [
        [result.name, *(column[row] for column in columns)]
        for row, result in enumerate(evaluations)
    ]
    notes = [PROTOCOL_NOTES.get(evaluations[0].protocol, "")]
    if intervals:
        notes.insert(
            0, f"±: half of the {level:.0%} bootstrap interval over queries."
        )
    if len(evaluations) > 1:
        notes.insert(0, "*: best of its column.")
    text = "\n".join(textwrap.fill(note, 79) for note in notes if note)
    # A blank holds the place of the mark.
    header = ["recommender", *(f"{name} " for name in metrics)]
    return "\n\n".join([caption, aligned(header, rows), text]).rstrip()


def _column(
    evaluations: Sequence[Evaluation],
    metric: Metric,
    intervals: bool,
    level: float,
) -> list[str]:
    """Formats one metric of each evaluation and marks the best."""
    values = [result.per_query([metric])[str(metric)] for result in evaluations]
    means = [float(each.mean()) for each in values]
    cells = [f"{mean:.4f}" for mean in means]
    if intervals:
        widths = [
            bootstrap_interval(each, level=level).half_width for each in values
        ]
        cells = [
            f"{cell} ± {width:.4f}"
            for cell, width in zip(cells, widths, strict=True)
        ]
    best = max(means) if len(means) > 1 else None
    return [
        cell + ("*" if mean == best else " ")
        for cell, mean in zip(cells, means, strict=True)
    ]


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines cells up in columns: the first to the left, others to the right.

    Args:
        header: The titles of the columns.
        rows: As many cells each.

    Returns:
        The lines, a rule below the header, without trailing blanks.
    """
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def _caption(evaluations: Sequence[Evaluation]) -> str:
    """Says what was evaluated, after checking that it was the same."""
    captions = {
        f"Protocol {result.protocol}: {result.num_queries:,} queries, all "
        f"{result.num_items:,} items ranked, "
        f"history {'excluded' if result.exclude_history else 'included'}"
        for result in evaluations
    }
    if len(captions) != 1:
        raise ValueError(
            "`evaluations` must be of the same queries. Received: "
            f"{sorted(captions)}"
        )
    return captions.pop()
