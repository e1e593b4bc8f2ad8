"""Measures how time and memory of a training step grow.

Run it from the checkout, on an otherwise idle machine:

    python scripts/benchmark_scale.py --json=scale.json --plot=scale.png

Sections: `catalog` (items in the table), `history` (items in a history),
`batch` (positions in a batch). Every point is measured in a process of its
own, so that its peak memory is its own. A step is the one of `recsys.train`
with the sampled softmax: forward, backward and update of the self-attention
encoder and the item table, on batches that are made beforehand. Items follow
Zipf's law. `other memory` is the peak of the process less the table and the
optimizer's variables: TensorFlow itself, activations, the sampler.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
from json_flag import add_json_flag, check_output_file, write_if_asked
from measuring import machine, peak_memory

from recsys.command_line import Command, load_tensorflow
from recsys.config import TABLE_OPTIMIZERS, TrainConfig
from recsys.errors import InputError, missing_extra

COMMAND = Command(
    "benchmark_scale",
    "Times the training step against catalog, history and batch, as a "
    "table, as JSON and as a plot.",
    [
        "scripts/benchmark_scale.py --json=scale.json --plot=scale.png",
        "scripts/benchmark_scale.py --sections=catalog --items=10000,1000000",
    ],
)
COMMAND.add_flag(
    str,
    "sections",
    "What to measure, with commas between.",
    group="Run",
    default="catalog,history,batch",
)
COMMAND.add_flag(
    str,
    "items",
    "Catalog sizes.",
    group="Sizes",
    default="10000,100000,1000000,10000000",
)
COMMAND.add_flag(
    str,
    "history_lengths",
    "Lengths of histories.",
    group="Sizes",
    default="25,50,100,200,400",
)
COMMAND.add_flag(
    str,
    "batches",
    "Positions in a batch.",
    group="Sizes",
    default="1600,3200,6400,12800,25600",
)
COMMAND.add_flag(
    str,
    "optimizers",
    f"Which of {', '.join(TABLE_OPTIMIZERS[1:])}, for the catalog.",
    group="Run",
    default="rowwise_adagrad,lazy_adam",
)
COMMAND.add_flag(int, "steps", "Steps to time.", group="Run", default=20)
add_json_flag(COMMAND)
COMMAND.add_flag(
    str, "plot", "Write a plot (PNG, SVG, …) to this file.", group="Run"
)
COMMAND.add_flag(
    str, "point", "For this script itself: measure one point.", group="Run"
)

_WARM_UP_STEPS = 3
_NUM_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement.

    Attributes:
        section: What it belongs to, and which of the sizes varies.
        items: Items in the catalog.
        history_length: Items in each history.
        positions: Positions in a batch.
        table_optimizer: As in the training configuration.
        steps: Steps to time.
    """

    section: str
    items: int = 100_000
    history_length: int = 50
    positions: int = 6_400
    table_optimizer: str = "rowwise_adagrad"
    steps: int = 20


# Which field of a point each section varies, and the flag with its values.
_VARIES = {
    "catalog": ("items", "items"),
    "history": ("history_length", "history_lengths"),
    "batch": ("positions", "batches"),
}


def main(values: dict[str, Any]) -> int:
    """Measures and prints.

    Args:
        values: The value of every flag.

    Returns:
        The exit code.
    """
    if values["point"]:
        load_tensorflow()
        point = Point(**json.loads(values["point"]))
        print(json.dumps(_measure(point)))
        return 0
    for name in ("json", "plot"):
        check_output_file(values, name)
    points = _points(values)
    if values["plot"]:
        _check_matplotlib()
    rows = []
    print(_line(_HEADINGS))
    for point in points:
        rows.append(_in_own_process(point))
        print(_line(_cells(rows[-1])), flush=True)
    write_if_asked(values, {"machine": machine(), "points": rows})
    if values["plot"]:
        _plot(rows, values["plot"])
    return 0


def _points(values: dict[str, Any]) -> list[Point]:
    """Returns what the flags ask for."""
    points = []
    for section in values["sections"].split(","):
        if section not in _VARIES:
            raise InputError(
                f"--sections must be of {', '.join(_VARIES)}. "
                f"Received: {section!r}"
            )
        field, flag = _VARIES[section]
        names = values["optimizers"].split(",")
        for name in names if section == "catalog" else names[:1]:
            if name not in TABLE_OPTIMIZERS[1:]:
                raise InputError(
                    f"--optimizers must be of {', '.join(TABLE_OPTIMIZERS[1:])}"
                    f". Received: {name!r}"
                )
            points += [
                Point(
                    section=section,
                    table_optimizer=name,
                    steps=values["steps"],
                    **{field: size},
                )
                for size in _sizes(values[flag], flag)
            ]
    return points


def _sizes(text: str, flag: str) -> list[int]:
    try:
        sizes = [int(size) for size in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InputError(
            f"--{flag} must be positive whole numbers with commas between. "
            f"Received: {text!r}"
        )
    return sizes


def _in_own_process(point: Point) -> dict[str, Any]:
    """Measures a point in a new process, whose peak memory is its own."""
    process = subprocess.run(
        [
            sys.executable,
            __file__,
            f"--point={json.dumps(dataclasses.asdict(point))}",
        ],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if process.returncode:
        raise InputError(
            f"expected {point} to be measured. Received: exit code "
            f"{process.returncode} (out of memory?)"
        )
    return json.loads(process.stdout.splitlines()[-1])


def _measure(point: Point) -> dict[str, Any]:
    """Times the steps of one point in this process."""
    import tensorflow as tf

    from recsys.training.build import (
        build_model,
        build_negative_sampler,
        build_optimizer,
    )
    from recsys.training.trainer import TrainStep

    config = TrainConfig(
        loss="sampled_softmax",
        table_optimizer=point.table_optimizer,
        max_history_length=point.history_length,
        positions_per_batch=point.positions,
    )
    rng = np.random.default_rng(0)
    batches = [_batch(point, rng) for _ in range(_NUM_BATCHES)]
    began = time.perf_counter()
    model = build_model(config, point.items + 2)
    optimizer = build_optimizer(config, 10_000, point.items)
    optimizer.build(model.trainable_variables)
    sampler = build_negative_sampler(config, _zipf_counts(point.items))
    step = tf.function(TrainStep(model, optimizer, sampler, config.seed))
    build_seconds = time.perf_counter() - began
    wall, processor = [], []
    for number in range(_WARM_UP_STEPS + point.steps):
        batch = batches[number % _NUM_BATCHES]
        clocks = time.perf_counter(), time.process_time()
        loss = float(step(batch)[0])
        wall.append(time.perf_counter() - clocks[0])
        processor.append(time.process_time() - clocks[1])
    if not np.isfinite(loss):
        raise FloatingPointError(f"expected a finite loss. Received: {loss}")
    table = 4 * (point.items + 2) * config.embedding_dim
    slots = sum(4 * int(np.prod(v.shape)) for v in optimizer.variables)
    peak = 1e9 * peak_memory()
    return {
        **dataclasses.asdict(point),
        "negatives": config.num_negatives,
        "embedding_dim": config.embedding_dim,
        "build_seconds": build_seconds,
        "step_seconds": float(np.median(wall[_WARM_UP_STEPS:])),
        "step_seconds_lowest": float(np.min(wall[_WARM_UP_STEPS:])),
        "step_processor_seconds": float(np.median(processor[_WARM_UP_STEPS:])),
        "table_gb": table / 1e9,
        "optimizer_gb": slots / 1e9,
        "peak_gb": peak / 1e9,
        "other_gb": (peak - table - slots) / 1e9,
    }


def _batch(point: Point, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Full rows of items that follow Zipf's law, popular ones first."""
    rows = max(1, point.positions // point.history_length)
    draws = rng.random((rows, point.history_length + 1))
    # Where p(rank) is in proportion to 1 / rank, log(rank) is uniform.
    items = np.floor(np.exp(draws * np.log(point.items + 1))).astype(np.int32)
    items = np.minimum(items, point.items) + 1
    return {"history_ids": items[:, :-1], "target_ids": items[:, 1:]}


def _zipf_counts(num_items: int) -> np.ndarray:
    """Returns counts of a vocabulary by Zipf's law, `[num_items + 2]` int64."""
    counts = np.zeros(num_items + 2, np.int64)
    counts[2:] = 10**9 // np.arange(1, num_items + 1)
    return counts


_HEADINGS = (
    "section",
    "items",
    "history",
    "positions",
    "table optimizer",
    "ms a step",
    "lowest",
    "peak GB",
    "table",
    "optimizer",
    "other",
)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["section"],
        f"{row['items']:,}",
        f"{row['history_length']:,}",
        f"{row['positions']:,}",
        row["table_optimizer"],
        f"{1e3 * row['step_seconds']:,.0f}",
        f"{1e3 * row['step_seconds_lowest']:,.0f}",
        *(
            f"{row[name]:.2f}"
            for name in ("peak_gb", "table_gb", "optimizer_gb", "other_gb")
        ),
    )


def _line(cells: tuple[str, ...]) -> str:
    widths = (9, 10, 7, 9, 15, 9, 7, 7, 6, 9, 6)
    return "  ".join(
        cell.ljust(width) if column in (0, 4) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )


def _check_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra("--plot", "report", error) from error


def _plot(rows: list[dict[str, Any]], path: str) -> None:
    """Draws time and memory against each size, both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    sections = list(dict.fromkeys(row["section"] for row in rows))
    figure, axes = pyplot.subplots(
        2, len(sections), figsize=(4.5 * len(sections), 7), squeeze=False
    )
    for column, section in enumerate(sections):
        field = _VARIES[section][0]
        for axis, name, label in (
            (axes[0, column], "step_seconds", "seconds a step"),
            (axes[1, column], "peak_gb", "peak memory, GB"),
        ):
            for optimizer in dict.fromkeys(r["table_optimizer"] for r in rows):
                chosen = [
                    row
                    for row in rows
                    if (row["section"], row["table_optimizer"])
                    == (section, optimizer)
                ]
                axis.loglog(
                    [row[field] for row in chosen],
                    [row[name] for row in chosen],
                    marker="o",
                    label=optimizer if chosen else None,
                )
            sizes = sorted(
                {row[field] for row in rows if row["section"] == section}
            )
            axis.set_xticks(sizes, [_short(size) for size in sizes])
            axis.set_xlabel(field.replace("_", " "))
            axis.set_ylabel(label)
            # The same range in all, so that a flat line looks flat.
            axis.set_ylim(*_decades([row[name] for row in rows]))
            for axes_of in (axis.xaxis, axis.yaxis):
                axes_of.set_minor_formatter(ticker.NullFormatter())
            axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.grid(True, which="both", alpha=0.3)
        axes[0, column].set_title(section)
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _short(size: int) -> str:
    """Writes 10,000,000 as 10M."""
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return str(size)


def _decades(values: list[float]) -> tuple[float, float]:
    """Returns the powers of ten around some values."""
    low, high = np.log10(min(values)), np.log10(max(values))
    return 10 ** np.floor(low), 10 ** np.ceil(high + 0.01)


if __name__ == "__main__":
    sys.exit(COMMAND.run(main))
