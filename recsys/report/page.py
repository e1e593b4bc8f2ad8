"""The page of a report, from its data and a template."""

from __future__ import annotations

import importlib.resources
import math
from typing import Any

import jinja2
import numpy as np

from recsys.evaluation.results import (
    PROTOCOL_NOTES,
    bootstrap_interval,
    compare,
)
from recsys.metrics import Metric
from recsys.report import K, ReportData, average, figures, validation_measures

_COLUMNS = (
    Metric("recall", K),
    Metric("ndcg", K),
    Metric("mrr", K),
    Metric("recall", 100),
)
_NUM_EXAMPLES = 10
# Items of an example's history, and relevant items, that are shown.
_NUM_HISTORY = 6
_NUM_TARGETS = 8


def render_page(data: ReportData) -> str:
    """Returns an HTML page that needs nothing besides itself.

    Args:
        data: What it shows.

    Returns:
        The text of an HTML file; the same data give the same text.
    """
    resources = importlib.resources.files("recsys.report")
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = _number
    environment.filters["signed"] = _signed
    environment.filters["title"] = _metric_title
    template = (resources / "template.html.j2").read_text("utf-8")
    slices = data.slices()
    return environment.from_string(template).render(
        data=data,
        k=K,
        css=(resources / "page.css").read_text("utf-8"),
        notes=[
            note
            for note in (PROTOCOL_NOTES.get(data.model.protocol), *data.notes)
            if note
        ],
        table=_results_table(data),
        rival=_against_best(data),
        recall_table=_recall_table(data),
        slices=slices,
        epochs=_epochs(data),
        measures=validation_measures(data),
        examples=_examples(data),
        figures={
            "recall": figures.recall_over_k(data),
            "slices": figures.slices(data, slices),
            "training": figures.training(data),
            "popularity": figures.popularity(data),
            "map": figures.item_map(data),
        },
    )


def _results_table(data: ReportData) -> dict[str, Any]:
    """Returns metrics, and per recommender its cells (None beyond its ks)."""
    metrics = [m for m in _COLUMNS if m.k is None or m.k <= data.model.ks[-1]]
    rows: list[dict[str, Any]] = []
    for each in [*data.others, data.model]:
        cells: list[Any] = []
        for metric in metrics:
            found = None
            if metric.k is None or metric.k <= each.ks[-1]:
                values = each.per_query([metric])[str(metric)]
                found = bootstrap_interval(values)
            cells.append(found)
        rows.append({"name": each.name, "cells": cells})
    best = [
        max(row["cells"][column].mean for row in rows if row["cells"][column])
        for column in range(len(metrics))
    ]
    return {"metrics": [str(m) for m in metrics], "rows": rows, "best": best}


def _recall_table(data: ReportData) -> dict[str, Any]:
    ks = [k for k in (1, K, 50, 100) if k in data.model.ks]
    return {
        "ks": ks,
        "rows": [
            (each.name, [average(each, Metric("recall", k)) for k in ks])
            for each in [*data.others, data.model]
        ],
    }


def _against_best(data: ReportData) -> dict[str, Any] | None:
    """Compares the model with the best other by NDCG at `K`."""
    metric = Metric("ndcg", K)
    rivals = [each for each in data.others if K in each.ks]
    if not rivals:
        return None
    best = max(rivals, key=lambda each: average(each, metric))
    found = compare(data.model, best, [metric])[str(metric)]
    return {"name": best.name, "metric": str(metric), "found": found}


def _epochs(data: ReportData) -> list[tuple[int, dict[str, float]]]:
    """Returns the first, best and last epoch, numbered from 0."""
    numbers = {0, len(data.history) - 1, data.best_epoch}
    return [
        (number, data.history[number])
        for number in sorted(n for n in numbers if n is not None and n >= 0)
        if number < len(data.history)
    ]


def _examples(data: ReportData) -> list[dict[str, Any]]:
    """Returns queries at equal distances, whatever their results are."""
    num_queries = len(data.queries)
    num_examples = min(_NUM_EXAMPLES, num_queries)
    rows = (np.arange(num_examples) + 0.5) * num_queries / num_examples
    return [_example(data, int(row)) for row in rows]


def _example(data: ReportData, row: int) -> dict[str, Any]:
    title = data.vocabulary.describe
    history, _ = data.queries.histories(np.array([row]))
    listed = data.top_items[row]
    relevant = data.model.relevant_items[row]
    relevant = relevant[relevant > 0]
    hits = np.isin(relevant, listed)
    ranks = data.model.ranks[row, : len(relevant)]
    return {
        "name": str(data.model.query_ids[row]),
        "history": [title(int(item)) for item in history[::-1][:_NUM_HISTORY]],
        "earlier": max(0, len(history) - _NUM_HISTORY),
        "recommended": [
            (title(int(item)), bool(item in relevant))
            for item in listed[listed > 0]
        ],
        "relevant": [
            (title(int(item)), _rank(float(rank)), bool(is_hit))
            for item, rank, is_hit in zip(relevant, ranks, hits, strict=True)
        ][:_NUM_TARGETS],
        "more": max(0, len(relevant) - _NUM_TARGETS),
        "num_hits": int(np.count_nonzero(hits)),
    }


def _rank(rank: float) -> str:
    """Writes an expected rank, which ties make a fraction."""
    if math.isinf(rank):
        return "beyond the list"
    return f"{rank:,.0f}" if rank == int(rank) else f"{rank:,.1f}"


def _number(value: float | None, digits: int = 4) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:,.{digits}f}"


def _signed(value: float | None, digits: int = 4) -> str:
    """Writes a number with its sign, a minus as wide as a plus."""
    if value is None:
        return "not defined"
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _metric_title(name: str) -> str:
    """Writes a metric as people do: `ndcg@10` as NDCG@10."""
    stem, at, k = name.removeprefix("validation_").partition("@")
    is_short = stem in ("ndcg", "mrr", "map")
    return (stem.upper() if is_short else stem.capitalize()) + at + k
