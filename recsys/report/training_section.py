"""The section of the page about the training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recsys.report.data import ReportData
from recsys.report.figure_style import (
    HALF_WIDTH,
    INK,
    LEGEND_BELOW,
    MODEL_COLOUR,
    MODEL_MARKER,
    MUTED,
    OTHER_COLOURS,
    new_figure,
    picture,
    quiet_grid,
    render,
    style,
)
from recsys.report.markup import Markup, element, metric_head, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def training(data: ReportData) -> Markup:
    """Loss and validation measures over the epochs."""
    if not data.history:
        return element("p", "The run has left no measures of its epochs.")
    last = data.history[-1]
    seconds = sum(epoch.get("seconds", 0.0) for epoch in data.history)
    rows = [
        [
            f"{number + 1}",
            f"{epoch['loss']:.3f}",
            *(
                f"{epoch[name]:.4f}"
                for name in last
                if name.startswith("validation_")
            ),
        ]
        for number, epoch in _some_epochs(data)
    ]
    measures = [
        metric_head(name.removeprefix("validation_"))
        for name in last
        if name.startswith("validation_")
    ]
    asked = (
        "Validation asks other queries than the test does."
        if data.part == "test"
        else "The results above are of the validation queries as well."
    )
    took = f" They took {seconds:,.0f} seconds in all." if seconds else ""
    return element(
        "div",
        _curves(data),
        element(
            "div",
            element(
                "p",
                f"{len(data.history)} epochs were trained.{took} {asked}",
            ),
            table(
                "Epochs (first, best and last)",
                ["Epoch", "Loss", *measures],
                rows,
                [
                    "model" if number == data.best_epoch else None
                    for number, _ in _some_epochs(data)
                ],
            ),
        ),
        class_="pair",
    )


def _some_epochs(data: ReportData) -> list[tuple[int, dict[str, float]]]:
    numbers = {0, len(data.history) - 1}
    if data.best_epoch is not None:
        numbers.add(data.best_epoch)
    return [(number, data.history[number]) for number in sorted(numbers)]


def _curves(data: ReportData) -> Markup:
    """Draws loss and validation measures over the epochs."""
    epochs = np.arange(1, len(data.history) + 1)
    losses = [epoch["loss"] for epoch in data.history]
    measures = [
        name for name in data.history[0] if name.startswith("validation_")
    ]
    with style():
        figure = new_figure(HALF_WIDTH, 380)
        upper, lower = figure.subplots(2, sharex=True, height_ratios=[2, 3])
        _curve(upper, epochs, losses, INK, "s", "training loss")
        upper.set_title("Training loss, per interaction")
        for place, name in enumerate(measures):
            colour, marker = (
                (MODEL_COLOUR, MODEL_MARKER),
                (OTHER_COLOURS[0], "s"),
            )[place % 2]
            values = [epoch[name] for epoch in data.history]
            label = name.removeprefix("validation_")
            _curve(lower, epochs, values, colour, marker, label)
        lower.set_ylim(bottom=0)
        lower.set_title("Validation")
        lower.set_xlabel("epoch")
        _whole_ticks(lower, len(epochs))
        if data.best_epoch is not None:
            for axes in (upper, lower):
                axes.axvline(
                    data.best_epoch + 1, color=MUTED, linewidth=0.9, ls=":"
                )
        figure.legend(*lower.get_legend_handles_labels(), **LEGEND_BELOW)
        image = render(figure)
    caption = f"{len(epochs)} epochs."
    best = ""
    if data.best_epoch is not None:
        caption += f" Dotted: epoch {data.best_epoch + 1}, whose model this is."
        chosen = data.history[data.best_epoch]
        best = f" Best epoch {data.best_epoch + 1}: " + ", ".join(
            f"{name.removeprefix('validation_')} {chosen[name]:.3f}"
            for name in measures
        )
    return picture(
        image,
        f"Training curves over {len(epochs)} epochs. The loss goes from "
        f"{losses[0]:.2f} to {losses[-1]:.2f}.{best}{'.' if best else ''}",
        caption,
    )


def _curve(
    axes: Axes,
    epochs: np.ndarray,
    values: Sequence[float],
    colour: str,
    marker: str,
    label: str,
) -> None:
    axes.plot(
        epochs,
        values,
        color=colour,
        marker=marker,
        markersize=4.5 if len(epochs) <= 40 else 0,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linewidth=1.8,
        label=label,
        clip_on=False,
    )
    quiet_grid(axes, "y")


def _whole_ticks(axes: Axes, num_epochs: int) -> None:
    """Puts ticks at whole epochs only, few enough to be read."""
    step = max(1, -(-num_epochs // 10))
    axes.set_xticks(range(1, num_epochs + 1, step))
    axes.set_xlim(0.7, num_epochs + 0.3)
