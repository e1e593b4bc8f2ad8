"""Runs other libraries on our split, in an environment of their own."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from recsys.config import TrainConfig
from recsys.data.prepare import PreparedData
from recsys.data.splits import Queries
from recsys.errors import InputError
from recsys.evaluation import query_ids, read_rankings
from recsys.ids import FIRST_ITEM_INDEX
from recsys.metrics import parse_metric

METRICS = ("recall@10", "ndcg@10")
PEERS = ("sasrec", "flat_sasrec", "replay_sasrec", "replay_two_tower", "als")
_SCRIPT = pathlib.Path(__file__).with_name("benchmark_peers.py")
INSTALL = (
    "pip install torch==2.13.0 'rectools[torch]==0.19.0' "
    "'replay-rec[torch]==0.22.0'"
)


def check_peers(python: str, models: Sequence[str] = PEERS) -> None:
    """Checks that an interpreter can run the other libraries.

    Args:
        python: The interpreter.
        models: Some of `PEERS`.

    Raises:
        InputError: A model is none of them, the interpreter is none, or its
            environment lacks a package.
    """
    for model in models:
        if model not in PEERS:
            raise InputError(
                f"--peer_models must be some of {', '.join(PEERS)}, with "
                f"commas between. Received: {model!r}"
            )
        try:
            process = _run(python, "--check", f"--model={model}")
        except OSError as error:
            raise InputError(
                "--peers must be a Python interpreter in whose environment "
                f"`{INSTALL}` has run. Received: {python!r} "
                f"({error.strerror})"
            ) from error
        if process.returncode:
            raise InputError(
                "--peers must be a Python interpreter in whose environment "
                f"`{INSTALL}` has run. Received: {python!r}, which lacks "
                f"{_last_line(process.stderr)}"
            )


def run_peers(
    python: str,
    data: PreparedData,
    config: TrainConfig,
    *,
    epochs: int,
    models: Sequence[str] = PEERS,
    folder: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
    """Trains each of the other libraries' models and scores its lists.

    Each is a process of its own, so that memory is its own too.

    Args:
        python: An interpreter that `check_peers` accepts.
        data: The log and its split, with test queries.
        config: Has the sizes that the models share with ours.
        epochs: Epochs of the models that are trained by epochs.
        models: Some of `PEERS`.
        folder: Keeps the lists and what was measured. A model that is there
            is not trained again. Default: a temporary one.

    Returns:
        What was measured of each model; `curve` has, for each epoch, its
        `seconds` of training and the metrics after it, named as in
        `quality_curve.QualityCurve`.

    Raises:
        InputError: A run failed, or the folder is of another split or other
            settings.
    """
    sizes = {
        "epochs": epochs,
        "dim": config.embedding_dim,
        "blocks": config.num_blocks,
        "heads": config.num_heads,
        "length": config.max_history_length,
    }
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    with contextlib.ExitStack() as stack:
        if folder is None:
            temporary = tempfile.TemporaryDirectory()
            folder = pathlib.Path(stack.enter_context(temporary))
        _claim(folder, data, sizes)
        return [
            _run_peer(python, model, folder, data, flags) for model in models
        ]


def _claim(
    folder: pathlib.Path, data: PreparedData, sizes: dict[str, int]
) -> None:
    """Writes split and sizes, or checks that they are those of the folder."""
    split, path = folder / "split.npz", folder / "sizes.json"
    arrays = split_arrays(data)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(split, **arrays)
        path.write_text(json.dumps(sizes) + "\n", "utf-8")
        return
    found = json.loads(path.read_text("utf-8"))
    if found != sizes:
        raise InputError(
            f"--peer_folder must be new, or have results for {sizes}. "
            f"Received: {str(folder)!r}, for {found}"
        )
    with np.load(split) as before:
        is_same = all(
            np.array_equal(before[name], array)
            for name, array in arrays.items()
        )
    if not is_same:
        raise InputError(
            "--peer_folder must be new, or have results for the same log and "
            f"split. Received: {str(folder)!r}, for other ones"
        )


def _run_peer(
    python: str,
    model: str,
    folder: pathlib.Path,
    data: PreparedData,
    flags: list[str],
) -> dict[str, Any]:
    """Trains a model, unless the folder has what was measured of it."""
    path = folder / f"{model}.json"
    if not path.is_file():
        process = _run(python, f"--model={model}", f"--folder={folder}", *flags)
        if process.returncode:
            raise InputError(
                f"--peers={python}: {model} failed. Received: "
                f"{_last_line(process.stderr)}"
            )
    measured = json.loads(path.read_text("utf-8"))
    curve = [
        {"seconds": seconds, **_metrics(data, folder, model, epoch)}
        for epoch, seconds in enumerate(measured.pop("seconds"), 1)
    ]
    return {**measured, "curve": curve}


def _metrics(
    data: PreparedData, folder: pathlib.Path, model: str, epoch: int
) -> dict[str, float]:
    """Scores the lists that a model wrote after an epoch."""
    found = {}
    for part, queries in _parts(data).items():
        evaluation = read_rankings(
            folder / f"{model}-{part}-{epoch}.jsonl",
            queries,
            data.vocabulary,
            protocol=data.split.protocol,
            ks=(10,),
        )
        metrics = evaluation.metrics([parse_metric(name) for name in METRICS])
        found |= {f"{part}_{name}": value for name, value in metrics.items()}
    return found


def _parts(data: PreparedData) -> dict[str, Queries]:
    assert data.split.test is not None  # The caller has asked for them before.
    return {"validation": data.split.validation, "test": data.split.test}


def split_arrays(data: PreparedData) -> dict[str, np.ndarray]:
    """Returns what a peer needs, items counted from 0, ids as text."""
    train = data.split.train
    arrays = {
        "train_items": train.items - FIRST_ITEM_INDEX,
        "train_offsets": train.offsets,
        "item_ids": np.array(data.vocabulary.item_ids).astype(str),
    }
    for part, queries in _parts(data).items():
        items, offsets = queries.histories(np.arange(len(queries)))
        arrays |= {
            f"{part}_items": items - FIRST_ITEM_INDEX,
            f"{part}_offsets": offsets,
            f"{part}_ids": query_ids(queries).astype(str),
        }
    return arrays


def draw_curves(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws test NDCG@10 by minutes of training, a line for each model.

    Args:
        rows: As those of `peers_table`.
        path: Of the picture, whose name says its kind.
    """
    from matplotlib.figure import Figure

    from recsys.report.figures import COLORS

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row, color in zip(rows, COLORS, strict=False):
        minutes = np.cumsum([e["seconds"] for e in row["curve"]]) / 60
        ndcgs = [epoch["test_ndcg@10"] for epoch in row["curve"]]
        best = best_epoch(row["curve"])
        axes.plot(minutes, ndcgs, color=color, label=row["name"])
        axes.plot(minutes[best], ndcgs[best], "o", color=color)
    axes.set_xlabel("minutes of training (a point: best epoch on validation)")
    axes.set_ylabel("test NDCG@10")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(color="#dfe4ea")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)


def best_epoch(curve: list[dict[str, float]]) -> int:
    """Returns the epoch with the best validation NDCG@10, counted from 0."""
    return int(np.argmax([epoch["validation_ndcg@10"] for epoch in curve]))


def seconds_until(curve: list[dict[str, float]], ndcg: float) -> float | None:
    """Returns the training until the validation NDCG@10 is there; or None."""
    seconds = 0.0
    for epoch in curve:
        seconds += epoch["seconds"]
        if epoch["validation_ndcg@10"] >= ndcg:
            return seconds
    return None


def peers_table(
    ours: dict[str, Any], peers: list[dict[str, Any]]
) -> tuple[list[str], list[list[str]]]:
    """Lays out ours beside the peers, with ratios.

    Args:
        ours: What was measured of ours, by the keys of the peers' rows.
        peers: The peers' rows.

    Returns:
        The header and the rows. A ratio says how many times ours is faster;
        a dash stands for a model that learns no next items. Recall and NDCG
        are those of the test queries after the epoch that is best for the
        validation queries, `to best, s` the seconds of training until its
        end, and `ours, s` those that ours takes to a validation NDCG@10 no
        worse, or a dash where it never has it.
    """
    header = [
        "model",
        "epochs",
        "training, s",
        "s/epoch",
        "interactions/s",
        "ratio",
        "recommend, s",
        "ratio",
        "memory, GB",
        "best epoch",
        "to best, s",
        "ours, s",
        *METRICS,
    ]
    our_rate = ours["interactions per epoch"] / ours["seconds per epoch"]
    rows = []
    for row in (ours, *peers):
        rate, ratio = "-", "-"
        if row["interactions per epoch"] is not None:
            each = row["interactions per epoch"] / row["seconds per epoch"]
            rate, ratio = f"{each:,.0f}", f"{our_rate / each:.2f}"
        faster = row["recommend seconds"] / ours["recommend seconds"]
        best = best_epoch(row["curve"])
        ndcg = row["curve"][best]["validation_ndcg@10"]
        reached = [seconds_until(each["curve"], ndcg) for each in (row, ours)]
        rows.append(
            [
                row["name"],
                str(row["epochs"]),
                f"{row['training seconds']:.1f}",
                f"{row['seconds per epoch']:.1f}",
                rate,
                ratio,
                f"{row['recommend seconds']:.2f}",
                f"{faster:.2f}",
                f"{row['resident memory, GB']:.2f}",
                "-" if len(row["curve"]) < row["epochs"] else str(best + 1),
                *("-" if s is None else f"{s:.1f}" for s in reached),
                *(f"{row['curve'][best][f'test_{m}']:.4f}" for m in METRICS),
            ]
        )
    return header, rows


def _run(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(_SCRIPT), *arguments],
        # What our own environment is told is not meant for that one.
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]
