"""Training: `train` is the one way in, from Python and from the commands."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import typing

from recsys.config import PRESETS, TrainConfig
from recsys.errors import InputError

if typing.TYPE_CHECKING:
    from recsys.data.prepare import PreparedData
    from recsys.evaluation.comparison import Results
    from recsys.workdir import Workdir

__all__ = ["PRESETS", "TrainConfig", "TrainResult", "train"]


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a training run leaves.

    Attributes:
        data: The data that it was trained on, with their split.
        workdir: The folder that holds the model.
        history: Per epoch `loss`, `validation_recall@10`,
            `validation_ndcg@10` (and the selection metric, if it is another),
            `seconds` and `interactions_per_second`.
        best_epoch: The epoch whose weights were kept, from 0.
        results: The model beside its baselines on the test queries; None where
            the run was finished before and its results are stored, and in
            processes that are not the chief.
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
) -> TrainResult:
    """Trains a model into a workdir, and compares it with baselines.

    A workdir with a checkpoint of the same configuration is resumed, and ends
    with the same weights, bit for bit, as if it had never stopped. A finished
    run is left as it is. Sets the global seeds of Python, NumPy and
    TensorFlow.

    With `strategy="multi_worker"` each of the processes that `TF_CONFIG` names
    calls this; the chief alone reads and writes the workdir.

    Args:
        config: The configuration.
        workdir: Where the run lives; made if missing.
        data: The data that the configuration names, if they are already read.
        verbose: Whether to describe the data on standard output and to show
            progress on standard error.
        evaluate: Whether to evaluate the best model and the baselines on the
            test queries at the end and write `metrics.json`.

    Returns:
        The result. The weights kept in `model.keras` are those of the epoch
        with the highest `selection_metric` on the validation queries.

    Raises:
        InputError: The data or the workdir cannot be used. What can be checked
            without TensorFlow is checked before it is loaded.
        OSError: A file could not be written.
        FloatingPointError: The loss is no longer finite.
        WorkerLostError: Another process did not come or was lost.
    """
    from recsys.command_line import load_tensorflow
    from recsys.data.prepare import build_data, data_summary
    from recsys.training.cluster import cluster_of
    from recsys.workdir import Workdir, best_epoch

    _check_metric(config.selection_metric)
    folder = Workdir(pathlib.Path(workdir))
    cluster = cluster_of(config)
    if cluster is not None and not cluster.is_chief:
        data = data or build_data(config)
        progress = _trainer().run_training(
            config, folder, data, cluster, verbose
        )
        best = best_epoch(progress.history, config.selection_metric)
        return TrainResult(
            data, folder.path, progress.history, best or 0, is_chief=False
        )
    folder.check(config)
    data = data or build_data(config)
    folder.check_data(data.vocabulary)
    if verbose:
        print(data_summary(data), flush=True)
    with folder.lock():
        load_tensorflow()
        progress = _trainer().run_training(
            config, folder, data, cluster, verbose
        )
        best = best_epoch(progress.history, config.selection_metric)
        assert best is not None  # A finished run has at least one epoch.
        results = None
        if evaluate and folder.stored_results() is None:
            results = _evaluate(config, folder, data, progress.history, best)
    return TrainResult(data, folder.path, progress.history, best, results)


def _trainer() -> typing.Any:
    """Imports the part that needs TensorFlow."""
    return importlib.import_module("recsys.training.trainer")


def _evaluate(
    config: TrainConfig,
    folder: Workdir,
    data: PreparedData,
    history: list[dict[str, float]],
    best: int,
) -> Results:
    """Evaluates on the test queries, for the first time, and writes that."""
    from recsys.evaluation.run import EvaluationData, evaluate_workdir

    run = evaluate_workdir(folder, config, EvaluationData(data, []))
    run.write_metrics({}, best_epoch=best + 1, training=history)
    return run.results


def _check_metric(name: str) -> None:
    from recsys.metrics import parse_metric

    try:
        parse_metric(name)
    except ValueError as error:
        raise InputError(f"--selection_metric: {error}") from error
