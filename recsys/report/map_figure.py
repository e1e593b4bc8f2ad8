"""The map of the item table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recsys.report.data import ReportData
from recsys.report.figure_style import (
    FULL_WIDTH,
    HALF_WIDTH,
    INK,
    MODEL_COLOUR,
    Image,
    new_figure,
    picture,
    render,
    shorten,
    style,
)
from recsys.report.item_map import OTHER_GENRE, ItemMap
from recsys.report.markup import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox

_GENRE_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)
_GENRE_MARKERS = ("o", "s", "^", "D", "v", "P")
_NO_GENRE_COLOUR = "#b4bcc7"
# Labels beside points: offset in points, then how they are aligned.
_LABEL_PLACES: tuple[
    tuple[
        int,
        int,
        Literal["left", "right", "center"],
        Literal["center", "bottom", "top"],
    ],
    ...,
] = (
    (6, 0, "left", "center"),
    (-6, 0, "right", "center"),
    (0, 6, "center", "bottom"),
    (0, -6, "center", "top"),
)
_RING_RADIUS = 4
_MOST_TRIED = 400
_YEAR = re.compile(r"\s*\(\d{4}\)$")


def item_map(data: ReportData, placed: ItemMap) -> Markup:
    """Draws the map: wide, and once more for narrow pages."""
    wide = _draw_map(
        data, placed, (FULL_WIDTH, 600), num_labels=30, legend_columns=7
    )
    narrow = _draw_map(
        data, placed, (HALF_WIDTH, 500), num_labels=10, legend_columns=3
    )
    share = placed.explained.sum()
    coloured = (
        f"Coloured by genre: {', '.join(placed.genres)}."
        if placed.genres
        else "The items have no genres, so there is no colour by genre."
    )
    return picture(
        wide,
        f"Map of {len(placed.items):,} items on the two principal axes of "
        f"their vectors, which hold {share:.0%} of the variance. {coloured}",
        f"The {len(placed.items):,} most popular items; larger points have "
        f"more training interactions. The two axes hold {share:.0%} of the "
        "variance.",
        narrow,
    )


def _draw_map(
    data: ReportData,
    placed: ItemMap,
    size: tuple[int, int],
    num_labels: int,
    legend_columns: int,
) -> Image:
    """Draws the map in one size, with at most so many titles."""
    with style():
        figure = new_figure(*size)
        axes = figure.add_subplot()
        handles = [
            _draw_genre(axes, data, placed, place)
            for place in range(OTHER_GENRE, len(placed.genres))
        ]
        axes.set_xticks([])
        axes.set_yticks([])
        axes.margins(0.03)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if placed.genres:
            figure.legend(
                [*handles[1:], handles[0]],
                [*placed.genres, "other"],
                loc="outside upper left",
                ncols=legend_columns,
                handletextpad=0.2,
                columnspacing=1,
            )
        _label_items(figure, axes, data, placed, num_labels)
        return render(figure, halo=True)


def _draw_genre(
    axes: Axes, data: ReportData, placed: ItemMap, place: int
) -> Line2D:
    """Draws the items of one genre and returns their entry in the legend."""
    colour = _NO_GENRE_COLOUR if placed.genres else MODEL_COLOUR
    marker = "o"
    if place != OTHER_GENRE:
        colour, marker = _GENRE_COLOURS[place], _GENRE_MARKERS[place]
    look: dict[str, Any] = {
        "color": colour,
        "marker": marker,
        "linestyle": "none",
        "markeredgewidth": 0,
    }
    counts = data.item_counts[placed.items]
    # Few different sizes: each is written once, and then only referred to.
    sizes = np.ceil(4 * np.sqrt(counts / counts.max()))
    for size in np.unique(sizes):
        rows = (placed.genre_of == place) & (sizes == size)
        axes.plot(
            *placed.points[rows].T,
            **look,
            markersize=2 + 1.5 * size,
            alpha=0.5 if place == OTHER_GENRE else 0.8,
        )
    return axes.plot([], [], **look, markersize=6)[0]


def _label_items(
    figure: Figure,
    axes: Axes,
    data: ReportData,
    placed: ItemMap,
    num_labels: int,
) -> None:
    """Names the most popular items whose names have room."""
    figure.draw_without_rendering()
    # From here on nothing moves, so that what fits now fits later.
    figure.set_layout_engine("none")
    taken: list[Bbox] = []
    num_placed = 0
    for row, item in enumerate(placed.items[:_MOST_TRIED]):
        if num_placed == num_labels:
            return
        title = _YEAR.sub("", data.vocabulary.describe(int(item)))
        boxes = _place_label(
            axes, shorten(title, 28), placed.points[row], taken
        )
        taken += boxes
        num_placed += bool(boxes)


def _place_label(
    axes: Axes, text: str, point: np.ndarray, taken: Sequence[Bbox]
) -> list[Bbox]:
    """Writes beside a point, where there is room, and rings it.

    Args:
        axes: Where.
        text: What is written.
        point: `[2]` float64.
        taken: Where other labels and rings are, in pixels of the figure.

    Returns:
        Where the label and the ring are; empty when there was no room.
    """
    frame = axes.get_window_extent()
    (ring,) = axes.plot(
        *point,
        marker="o",
        markersize=5,
        markerfacecolor="none",
        markeredgecolor=INK,
        zorder=4,
    )
    ring_box = ring.get_window_extent().padded(_RING_RADIUS)
    if not any(ring_box.overlaps(other) for other in taken):
        for dx, dy, horizontal, vertical in _LABEL_PLACES:
            label = axes.annotate(
                text,
                (float(point[0]), float(point[1])),
                (dx, dy),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                fontsize=8.5,
                color=INK,
                zorder=5,
            )
            box = label.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside &= frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                return [box, ring_box]
            label.remove()
    ring.remove()
    return []
