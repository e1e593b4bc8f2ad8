"""Figures of items: how popular they are, and how long their vectors."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from recsys.ids import FIRST_ITEM_INDEX
from recsys.report.data import K, ReportData
from recsys.report.figure_style import (
    HALF_WIDTH,
    INK,
    LEGEND_BELOW,
    MODEL_COLOUR,
    OTHER_COLOURS,
    new_figure,
    picture,
    quiet_grid,
    render,
    style,
)
from recsys.report.markup import Markup, signed

if TYPE_CHECKING:
    pass


def popularity(data: ReportData) -> Markup:
    """Draws how popular the recommended and the relevant items are."""
    listed = data.top_items[data.top_items >= FIRST_ITEM_INDEX]
    counts = data.item_counts
    top = int(counts.max(initial=0))
    edges = [0, *(2**power for power in range(top.bit_length() + 1))]
    names = [
        f"{low}" if high - low < 2 else f"{low}–{high - 1}"
        for low, high in itertools.pairwise(edges)
    ]
    places = np.arange(len(names))
    with style():
        figure = new_figure(HALF_WIDTH, 340)
        axes = figure.add_subplot()
        axes.bar(
            places,
            _shares(counts[FIRST_ITEM_INDEX:], edges),
            width=0.9,
            color="#dfe4ea",
            label="catalogue",
        )
        for values, colour, marker, label in (
            (counts[data.targets], OTHER_COLOURS[0], "s", "relevant"),
            (counts[listed], MODEL_COLOUR, "o", "recommended"),
        ):
            axes.plot(
                places,
                _shares(values, edges),
                color=colour,
                marker=marker,
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                linewidth=2,
                label=label,
                clip_on=False,
            )
        axes.set_xticks(places, names, rotation=45, ha="right")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("training interactions of the item")
        axes.set_title("Share of the items")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        quiet_grid(axes, "y")
        figure.legend(**{**LEGEND_BELOW, "ncols": 3})
        image = render(figure)
    medians = [_median(counts[data.targets]), _median(counts[listed])]
    return picture(
        image,
        "Chart of the popularity of relevant, recommended and all items. "
        f"A relevant item has {medians[0]} training interactions in the "
        f"median, a recommended one {medians[1]}.",
        f"Popularity of what was recommended (first {K} of each list) against "
        "what was relevant; bars: the catalogue.",
    )


def _shares(values: np.ndarray, edges: list[int]) -> np.ndarray:
    """Returns the share of integer values from each edge to the next."""
    counts, _ = np.histogram(values, [*edges[:-1], edges[-1] + 1])
    return counts / max(1, len(values))


def _median(values: np.ndarray) -> str:
    return f"{np.median(values):,.0f}" if len(values) else "no"


def norms(data: ReportData, correlation: float | None) -> Markup | None:
    """Draws the norms of the item vectors against popularity.

    Args:
        data: The results; without vectors there is no figure.
        correlation: Spearman's.
    """
    seen = data.item_counts > 0
    seen[:FIRST_ITEM_INDEX] = False
    if data.item_vectors is None or not seen.any():
        return None
    counts = data.item_counts[seen]
    sizes = np.linalg.norm(data.item_vectors[seen], axis=1)
    with style():
        figure = new_figure(HALF_WIDTH, 300)
        axes = figure.add_subplot()
        axes.scatter(
            counts,
            sizes,
            s=9,
            color=MODEL_COLOUR,
            alpha=0.25,
            linewidths=0,
            rasterized=True,
        )
        groups = np.floor(np.log2(counts)).astype(int)
        middles = [
            (2.0**group * 2**0.5, np.median(sizes[groups == group]))
            for group in np.unique(groups)
        ]
        axes.plot(
            *zip(*middles, strict=True),
            color=INK,
            linewidth=1.8,
            # Where all are equally popular, a point is all there is.
            marker="o",
            markersize=3.5,
            label="median",
        )
        axes.set_xscale("log")
        ticks = [10**p for p in range(len(str(counts.max())))]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("training interactions of the item")
        axes.set_title("Norm of the item vector")
        axes.legend(loc="lower right")
        quiet_grid(axes, "y")
        image = render(figure)
    told = "not defined" if correlation is None else signed(correlation, 2)
    return picture(
        image,
        f"Scatter plot of item norm against popularity, {len(counts):,} "
        f"items. Spearman's correlation is {told}.",
        f"Norm against popularity; rank correlation {told}.",
    )
