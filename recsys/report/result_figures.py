"""Figures of results: recall over k, parts of the queries, training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recsys.evaluation.results import bootstrap_interval
from recsys.metrics import Metric
from recsys.report.data import K, ReportData, SlicedRow, average
from recsys.report.figure_style import (
    FAINT,
    HALF_WIDTH,
    INK,
    LEGEND_BELOW,
    mark,
    new_figure,
    picture,
    quiet_grid,
    render,
    shorten,
    style,
)
from recsys.report.markup import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NAME_LENGTH = 22


def recall_over_k(data: ReportData) -> Markup:
    """Draws recall at every k, the model against the others."""
    with style():
        figure = new_figure(HALF_WIDTH, 340)
        axes = figure.add_subplot()
        for place in reversed(range(len(data.recommenders))):
            _recall_line(axes, data, place)
        axes.set_xscale("log")
        ks = data.model.ks
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("k, length of the list")
        axes.set_ylim(bottom=0)
        axes.set_title("Recall@k")
        quiet_grid(axes, "y")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], **LEGEND_BELOW)
        image = render(figure)
    recall = Metric("recall", K)
    values = ", ".join(
        f"{each.name} {average(each, recall):.3f}" for each in data.recommenders
    )
    return picture(
        image,
        f"Line chart of recall against the length of the list, k from "
        f"{ks[0]} to {ks[-1]}. At k = {K}: {values}.",
        "Recall over k, the share of the relevant items among the first k. "
        "Band: 95 % bootstrap interval of the model.",
    )


def _recall_line(axes: Axes, data: ReportData, place: int) -> None:
    """Draws one recommender, the model with its interval."""
    evaluation = data.recommenders[place]
    recalls = list(
        evaluation.per_query(
            [Metric("recall", k) for k in evaluation.ks]
        ).values()
    )
    colour, marker = mark(place)
    axes.plot(
        evaluation.ks,
        [float(each.mean()) for each in recalls],
        color=colour,
        marker=marker,
        markersize=5.5 if place == 0 else 4.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=2.4 if place == 0 else 1.4,
        label=shorten(evaluation.name, _NAME_LENGTH),
        clip_on=False,
        zorder=3 if place == 0 else 2,
    )
    if place == 0:
        bounds = [bootstrap_interval(each) for each in recalls]
        axes.fill_between(
            evaluation.ks,
            [each.low for each in bounds],
            [each.high for each in bounds],
            color=colour,
            alpha=0.16,
            linewidth=0,
        )


def slices(data: ReportData, rows: Sequence[SlicedRow], by: str) -> Markup:
    """Draws recall in parts of the queries, a row for each part.

    Args:
        data: The results.
        rows: The parts.
        by: What the parts differ in.
    """
    num_rows = len(rows)
    with style():
        figure = new_figure(HALF_WIDTH, 120 + 38 * num_rows)
        axes = figure.add_subplot()
        places = np.arange(num_rows)
        axes.hlines(places, 0, 1, color=FAINT, linewidth=0.8, alpha=0.8)
        for place in reversed(range(len(data.recommenders))):
            colour, marker = mark(place)
            axes.plot(
                [row.values[place] for row in rows],
                places,
                linestyle="none",
                color=colour,
                marker=marker,
                markersize=8.5 if place == 0 else 6,
                markeredgecolor="white",
                markeredgewidth=0.8,
                label=shorten(data.recommenders[place].name, _NAME_LENGTH),
                clip_on=False,
                zorder=4 if place == 0 else 3,
            )
        axes.set_yticks(places, [row.name for row in rows])
        # The marker of a zero must not touch the name of its row.
        axes.tick_params(axis="y", labelcolor=INK, length=0, pad=9)
        axes.set_ylim(num_rows - 0.5, -0.5)
        highest = np.nanmax([row.values for row in rows])
        axes.set_xlim(0, max(1.08 * float(highest), 0.01))
        axes.spines["left"].set_visible(False)
        axes.set_title(f"Recall@{K}")
        axes.tick_params(axis="x", length=0)
        axes.locator_params(axis="x", nbins=5)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles[::-1], labels[::-1], handlelength=1, **LEGEND_BELOW
        )
        image = render(figure)
    values = ", ".join(f"{row.name} {row.values[0]:.3f}" for row in rows)
    return picture(
        image,
        f"Dot chart of recall at {K} by {by}. {data.model.name}: {values}.",
        f"Recall@{K} by {by}; further right is better.",
    )
