"""Training: `train` runs it, from Python and from the commands."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from recsys.command_line import load_tensorflow
from recsys.config import PRESETS, TrainConfig
from recsys.data.prepare import (
    PreparedData,
    build_data,
    choose,
    data_summary,
)
from recsys.errors import InputError
from recsys.evaluation.comparison import Results
from recsys.evaluation.run import EvaluationData, evaluate_workdir
from recsys.metrics import parse_metric
from recsys.training.cluster import cluster_of
from recsys.training.progress import Callback
from recsys.workdir import Workdir, best_epoch

__all__ = ["PRESETS", "Callback", "TrainConfig", "TrainResult", "train"]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        data: The data that the model was trained on, with their split.
        workdir: The folder that holds the model.
        history: Per epoch `loss`, `validation_recall@10`,
            `validation_ndcg@10` (and the selection metric, if it is another),
            `seconds` and `interactions_per_second`.
        best_epoch: The epoch whose weights were kept, from 0.
        results: The model and its baselines on the test queries. None if they
            were not evaluated, if the run had already finished and its results
            are stored, and in processes other than the chief.
        is_chief: Whether this process wrote the workdir; false in the other
            processes of `strategy="multi_worker"`.
    """

    data: PreparedData
    workdir: pathlib.Path
    history: list[dict[str, float]]
    best_epoch: int
    results: Results | None = None
    is_chief: bool = True


def train(
    config: TrainConfig,
    workdir: str | os.PathLike[str],
    *,
    data: PreparedData | None = None,
    verbose: bool = True,
    evaluate: bool = True,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Trains a model into a workdir and compares it with baselines.

    A workdir with a checkpoint of the same configuration is resumed and ends
    with the same weights, bit for bit, as an uninterrupted run. A finished run
    is left as it is. Sets the global seeds of Python, NumPy and TensorFlow.

    With `strategy="multi_worker"`, each process that `TF_CONFIG` names calls
    this function; only the chief reads and writes the workdir.

    Args:
        config: The configuration.
        workdir: The folder of the run; created if missing.
        data: The data that the configuration names, if already read.
        verbose: Whether to describe the data on standard output and to show
            progress on standard error.
        evaluate: Whether to evaluate the best model and the baselines on the
            test queries at the end and write `metrics.json`.
        callbacks: Follow the run, in this order; see `Callback`.

    Returns:
        The result. The weights kept in `model.keras` are those of the epoch
        with the highest `selection_metric` on the validation queries.

    Raises:
        InputError: The data or the workdir cannot be used. Most such errors
            are raised before TensorFlow is loaded.
        OSError: A file could not be written.
        FloatingPointError: The loss is not finite.
        WorkerLostError: Another process did not come or was lost.
    """
    folder = Workdir(pathlib.Path(workdir))
    cluster = cluster_of(config)
    is_chief = cluster is None or cluster.is_chief
    config, data, why = _check(config, folder if is_chief else None, data)
    if is_chief and verbose:
        print("\n".join([data_summary(data), *why]), flush=True)
    with folder.lock() if is_chief else contextlib.nullcontext():
        load_tensorflow()
        # Imports TensorFlow, which must be quiet and have its settings by now.
        from recsys.training.trainer import run_training

        progress = run_training(
            config, folder, data, cluster, verbose, callbacks
        )
        history = progress.history
        best = best_epoch(history, config.selection_metric)
        assert best is not None  # A finished run has at least one epoch.
        results = None
        if is_chief and evaluate and folder.stored_results() is None:
            run = evaluate_workdir(folder, config, EvaluationData(data, []))
            run.write_metrics({}, best_epoch=best + 1, training=history)
            results = run.results
    return TrainResult(data, folder.path, history, best, results, is_chief)


def _check(
    config: TrainConfig, folder: Workdir | None, data: PreparedData | None
) -> tuple[TrainConfig, PreparedData, list[str]]:
    """Checks everything that does not need TensorFlow, and reads the data.

    Args:
        config: The configuration.
        folder: The workdir; None in processes that do not use it.
        data: The data, if already read.

    Returns:
        The configuration with the fields that depend on the data, the data,
        and the reasons for what was chosen, if anything was.
    """
    try:
        parse_metric(config.selection_metric)
    except ValueError as error:
        raise InputError(f"--selection_metric: {error}") from error
    if folder is not None:
        config = folder.check(config)
    data = data or build_data(config)
    if folder is not None:
        folder.check_data(data.vocabulary)
    config, why = choose(config, data)
    return config, data, why


def __getattr__(name: str) -> Any:
    """Imports a module that needs TensorFlow on first use."""
    if name in ("extension", "growth", "trainer"):
        return importlib.import_module(f"recsys.training.{name}")
    raise AttributeError(f"module 'recsys.training' has no attribute {name!r}")
