"""The five figures of a report, drawn by matplotlib as SVG."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import io
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from recsys.evaluation.results import bootstrap_interval
from recsys.ids import FIRST_ITEM_INDEX
from recsys.metrics import Metric
from recsys.report import (
    K,
    ReportData,
    average,
    map_points,
    validation_measures,
)

# Colors of Okabe and Ito, which color-blind readers tell apart; the first is
# the model's.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MARKERS = "os^Dvp"
_GRAY = "#dfe4ea"
_INK = "#1c2430"
_PIXELS_PER_INCH = 100
_STYLE = {
    # Text stays text, and the same data give the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "recsys",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": "#a9b2bf",
    "axes.labelcolor": "#566070",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid.axis": "y",
    "axes.grid": True,
    "grid.color": "#eceff3",
    "xtick.color": "#566070",
    "ytick.color": "#566070",
    "text.color": _INK,
    "text.parse_math": False,
    "legend.frameon": False,
    "lines.markeredgecolor": "white",
    "lines.markeredgewidth": 0.6,
}
# The page's own font, with fallbacks for titles in any script.
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
_NAME_LENGTH = 24
# More points than that hide each other.
_MAX_MAP_ITEMS = 1200
_NUM_MAP_GENRES = 5
_NUM_MAP_TITLES = 16


@dataclasses.dataclass(frozen=True)
class DrawnFigure:
    """A figure as the page shows it.

    Attributes:
        url: The image, as a data URL.
        width: Its width in pixels.
        height: Its height in pixels.
        alt: What it shows, in words and numbers.
        caption: What stands under it.
    """

    url: str
    width: int
    height: int
    alt: str
    caption: str


@contextlib.contextmanager
def _drawing(width: int, height: int) -> Iterator[Figure]:
    """Gives an empty figure of so many pixels, and our style to draw it in."""
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(
            (width / _PIXELS_PER_INCH, height / _PIXELS_PER_INCH),
            layout="constrained",
        )
        FigureCanvasAgg(figure)
        yield figure


def _drawn(figure: Figure, alt: str, caption: str) -> DrawnFigure:
    stream = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the text, in fonts of its own.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        warnings.filterwarnings("ignore", ".* does not support .* natively")
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue().replace("sans-serif", _FONTS)
    width, height = figure.get_size_inches() * _PIXELS_PER_INCH
    encoded = base64.b64encode(text.encode()).decode()
    return DrawnFigure(
        f"data:image/svg+xml;base64,{encoded}",
        round(width),
        round(height),
        alt,
        caption,
    )


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2)


def _look(place: int) -> dict[str, Any]:
    """Returns the look of a recommender's marks, 0 being the model."""
    return {
        "color": COLORS[place % len(COLORS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "zorder": 4 if place == 0 else 3,
        "clip_on": False,
    }


def _short(name: str) -> str:
    if len(name) <= _NAME_LENGTH:
        return name
    return name[: _NAME_LENGTH - 1] + "…"


def recall_over_k(data: ReportData) -> DrawnFigure:
    """Draws recall at every k, the model with its interval."""
    ks = data.model.ks
    with _drawing(480, 340) as figure:
        axes = figure.add_subplot()
        for place, each in enumerate(data.recommenders):
            metrics = [Metric("recall", k) for k in each.ks]
            values = [average(each, metric) for metric in metrics]
            axes.plot(each.ks, values, label=_short(each.name), **_look(place))
        bounds = [
            bootstrap_interval(recalls)
            for recalls in data.model.per_query(
                [Metric("recall", k) for k in ks]
            ).values()
        ]
        axes.fill_between(
            ks,
            [each.low for each in bounds],
            [each.high for each in bounds],
            color=COLORS[0],
            alpha=0.16,
            linewidth=0,
        )
        axes.set_xscale("log")
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("k, length of the list")
        axes.set_title("Recall@k")
        _legend_below(figure, axes)
        recall = Metric("recall", K)
        found = ", ".join(
            f"{each.name} {average(each, recall):.3f}"
            for each in data.recommenders
        )
        return _drawn(
            figure,
            "Line chart of recall against the length of the list, k from "
            f"{ks[0]} to {ks[-1]}. At k = {K}: {found}.",
            "Recall over k, the share of the relevant items among the first "
            "k. Band: 95 % bootstrap interval of the model.",
        )


def slices(
    data: ReportData, parts: dict[str, list[dict[str, Any]]]
) -> DrawnFigure:
    """Draws recall in parts of the queries, a panel per way to divide them.

    Args:
        data: The results.
        parts: As returned by `ReportData.slices`.
    """
    sizes = [len(members) for members in parts.values()]
    with _drawing(480, 230 + 32 * sum(sizes)) as figure:
        panels = figure.subplots(len(parts), sharex=True, height_ratios=sizes)
        for axes, (by, members) in zip(panels, parts.items(), strict=True):
            for place, each in enumerate(data.recommenders):
                axes.plot(
                    [part["values"][place] for part in members],
                    range(len(members)),
                    linestyle="none",
                    markersize=9 if place == 0 else 6.5,
                    label=_short(each.name),
                    **_look(place),
                )
            names = [str(part["name"]) for part in members]
            axes.set_yticks(range(len(members)), names)
            axes.set_ylim(len(members) - 0.5, -0.5)
            axes.set_title(f"Recall@{K} by {by}")
        highest = max(
            float(np.nanmax([part["values"] for part in members]))
            for members in parts.values()
        )
        panels[0].set_xlim(0, max(1.08 * highest, 0.01))
        _legend_below(figure, panels[0])
        found = "; ".join(
            f"by {by}: "
            + ", ".join(f"{p['name']} {p['values'][0]:.3f}" for p in members)
            for by, members in parts.items()
        )
        return _drawn(
            figure,
            f"Dot charts of recall at {K}. {data.model.name}, {found}.",
            f"Recall@{K} in parts of the queries; further right is better.",
        )


def training(data: ReportData) -> DrawnFigure | None:
    """Draws loss and validation measures over the epochs."""
    if not data.history:
        return None
    epochs = np.arange(1, len(data.history) + 1)
    losses = [epoch["loss"] for epoch in data.history]
    marker = "o" if len(epochs) <= 40 else ""
    with _drawing(480, 380) as figure:
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[2, 3])
        upper.plot(epochs, losses, color=_INK, marker=marker)
        upper.set_title("Training loss, per interaction")
        for place, name in enumerate(validation_measures(data)):
            values = [epoch[name] for epoch in data.history]
            label = name.removeprefix("validation_")
            color = COLORS[place % len(COLORS)]
            lower.plot(epochs, values, color=color, marker=marker, label=label)
        lower.set_ylim(bottom=0)
        lower.set_title("Validation")
        lower.set_xlabel("epoch")
        lower.locator_params(axis="x", integer=True)
        caption = f"{len(epochs)} epochs."
        best = ""
        if data.best_epoch is not None:
            for axes in (upper, lower):
                axes.axvline(data.best_epoch + 1, color="#566070", ls=":", lw=1)
            caption += (
                f" Dotted: epoch {data.best_epoch + 1}, whose weights were "
                "kept."
            )
            chosen = data.history[data.best_epoch]
            best = f" Best epoch {data.best_epoch + 1}: " + ", ".join(
                f"{name.removeprefix('validation_')} {chosen[name]:.3f}"
                for name in validation_measures(data)
            )
        _legend_below(figure, lower)
        return _drawn(
            figure,
            f"Training curves over {len(epochs)} epochs. The loss goes from "
            f"{losses[0]:.2f} to {losses[-1]:.2f}.{best}",
            caption,
        )


def popularity(data: ReportData) -> DrawnFigure:
    """Draws how popular recommended, relevant and all items are."""
    counts = data.item_counts
    listed = counts[data.top_items[data.top_items >= FIRST_ITEM_INDEX]]
    relevant = counts[data.targets]
    powers = int(counts.max(initial=0)).bit_length() + 1
    edges = [0, *(2**power for power in range(powers))]
    names = [
        f"{low}" if high - low < 2 else f"{low}–{high - 1}"
        for low, high in itertools.pairwise(edges)
    ]

    def shares(values: np.ndarray) -> np.ndarray:
        found, _ = np.histogram(values, [*edges[:-1], edges[-1] + 1])
        return found / max(1, len(values))

    with _drawing(480, 360) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(names))
        axes.bar(
            places,
            shares(counts[FIRST_ITEM_INDEX:]),
            width=0.9,
            color=_GRAY,
            label="catalog",
        )
        axes.plot(places, shares(relevant), label="relevant", **_look(1))
        axes.plot(places, shares(listed), label="recommended", **_look(0))
        axes.set_xticks(places, names, rotation=45, ha="right")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("training interactions of the item")
        axes.set_title("Share of the items")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        _legend_below(figure, axes)
        medians = [
            f"{np.median(values):,.0f}" if len(values) else "no"
            for values in (relevant, listed)
        ]
        return _drawn(
            figure,
            "Chart of the popularity of relevant, recommended and all items. "
            f"The median relevant item has {medians[0]} training "
            f"interactions, the median recommended one {medians[1]}.",
            f"Popularity of what was recommended (first {K} of each list) "
            "and of what was relevant; bars: the catalog.",
        )


def item_map(data: ReportData) -> DrawnFigure | None:
    """Draws the most popular items along their two principal components.

    Returns:
        None without item vectors or with fewer than three trained items.
    """
    counts = data.item_counts
    items = np.argsort(-counts, kind="stable")
    # Items without interactions are still where they were initialized.
    items = items[(counts[items] > 0) & (items >= FIRST_ITEM_INDEX)]
    items = items[:_MAX_MAP_ITEMS]
    if data.item_vectors is None or len(items) < 3:
        return None
    points = map_points(data.item_vectors[items], counts[items])
    title = data.vocabulary.describe
    with _drawing(640, 560) as figure:
        axes = figure.add_subplot()
        x, y = points.T
        axes.scatter(x, y, s=12, color="#c3cad4", label="other items")
        genres = _genres(data, items)
        for (name, members), color in zip(genres, COLORS, strict=False):
            axes.scatter(x[members], y[members], s=16, color=color, label=name)
        for place in range(min(_NUM_MAP_TITLES, len(items))):
            axes.annotate(
                _short(title(int(items[place]))),
                points[place],
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=9,
            )
        axes.set_xticks([])
        axes.set_yticks([])
        _legend_below(figure, axes)
        named = ", ".join(name for name, _ in genres) or "none"
        return _drawn(
            figure,
            f"Scatter plot of {len(items):,} items. Genres in color: {named}. "
            f"Named are the {min(_NUM_MAP_TITLES, len(items))} most popular.",
            f"The {len(items):,} most popular items. An item of several "
            "genres has the color of the rarest one shown.",
        )


def _genres(data: ReportData, items: np.ndarray) -> list[tuple[str, list[int]]]:
    """Returns common genres, and items by the rarest of theirs among them."""
    table = data.vocabulary.items
    if "genres" not in table.column_names:
        return []
    column = table["genres"].take(items - FIRST_ITEM_INDEX).to_pylist()
    lists = [genres or [] for genres in column]
    names, counts = np.unique(
        np.array(list(itertools.chain.from_iterable(lists)), object),
        return_counts=True,
    )
    common = names[np.argsort(-counts, kind="stable")][:_NUM_MAP_GENRES]
    members: dict[str, list[int]] = {str(name): [] for name in common}
    for place, genres in enumerate(lists):
        for name in reversed(members):
            if name in genres:
                members[name].append(place)
                break
    return list(members.items())
