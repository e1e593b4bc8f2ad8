"""Training that reads the test queries after each epoch, for a benchmark.

Nothing is chosen by what is read here: the run is the one that
`recsys.training.train` makes, step by step, and keeps the weights of the best
validation result. Only the moment at which the benchmark stops depends on the
test queries, because the published figures that it is compared with are of
these. No other code reads them before a run has ended.
"""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from recsys.config import TrainConfig
from recsys.data.prepare import PreparedData
from recsys.evaluation import evaluate
from recsys.metrics import parse_metric
from recsys.training.checkpoints import Progress
from recsys.training.trainer import Trainer
from recsys.workdir import Workdir

METRICS = ("recall@10", "ndcg@10")


@dataclasses.dataclass(frozen=True)
class QualityCurve:
    """What a run reached, and when.

    Attributes:
        epochs: Per epoch what `recsys.training.train` measures, besides
            `test_recall@10`, `test_ndcg@10`, and `training_seconds`: the time
            in steps until its end, without any evaluation.
        reached: Whether the last epoch has the NDCG@10 that was asked for.
        training_seconds: Time in the steps of all epochs.
        wall_clock_seconds: Time from before the model was built to the end
            of the last epoch, evaluations and checkpoints included.
        recommend_seconds: Time to encode all test histories and to find the
            ten best items of each; the median of three.
    """

    epochs: list[dict[str, float]]
    reached: bool
    training_seconds: float
    wall_clock_seconds: float
    recommend_seconds: float


class TestedTrainer(Trainer):
    """A trainer that also measures the test queries after each epoch.

    Args:
        until_ndcg: Ends the run after the first epoch with this NDCG@10.
        max_epochs: Ends it after so many epochs of its schedule.
        *args: Of `Trainer`.
    """

    def __init__(
        self, until_ndcg: float | None, max_epochs: int | None, *args: Any
    ) -> None:
        super().__init__(*args)
        self._until_ndcg = until_ndcg
        self._max_epochs = max_epochs

    def _run_epoch(self, progress: Progress) -> Progress:
        progress = super()._run_epoch(progress)
        progress.finished |= self.reached(progress)
        progress.finished |= progress.epoch == self._max_epochs
        return progress

    def reached(self, progress: Progress) -> bool:
        """Says whether the epoch that ended last is good enough."""
        if self._until_ndcg is None:
            return False
        return progress.history[-1]["test_ndcg@10"] >= self._until_ndcg

    def _validate(self) -> dict[str, float]:
        evaluation = evaluate(
            self._recommender,
            self._data.split.test,
            protocol=self._data.split.protocol,
            ks=(10,),
            lists=False,
            exclude_history=self._config.excludes_history,
        )
        found = evaluation.metrics([parse_metric(name) for name in METRICS])
        return {
            **super()._validate(),
            **{f"test_{name}": value for name, value in found.items()},
        }

    def recommend_seconds(self) -> float:
        """Times ten recommendations for every test query."""
        queries = self._data.split.test
        histories = queries.histories(np.arange(len(queries)))
        times = []
        for _ in range(3):
            began = time.perf_counter()
            self._recommender.recommend_indices(*histories, k=10)
            times.append(time.perf_counter() - began)
        return float(np.median(times))


def train_until(
    config: TrainConfig,
    data: PreparedData,
    *,
    until_ndcg: float | None = None,
    max_epochs: int | None = None,
) -> QualityCurve:
    """Trains until the test queries' NDCG@10 is reached, or to the end.

    Args:
        config: The configuration, whose whole learning-rate schedule is
            followed.
        data: The log and its split, with test queries.
        until_ndcg: Where to stop; None does not.
        max_epochs: After how many epochs to stop; None takes the schedule's.

    Returns:
        What was reached, and when.
    """
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        trainer = TestedTrainer(
            until_ndcg,
            max_epochs,
            config,
            Workdir(pathlib.Path(folder)),
            data,
            True,
        )
        progress = trainer.run()
        wall_clock = time.perf_counter() - began
    seconds = np.cumsum([epoch["seconds"] for epoch in progress.history])
    return QualityCurve(
        epochs=[
            {**epoch, "training_seconds": float(so_far)}
            for epoch, so_far in zip(progress.history, seconds, strict=True)
        ],
        reached=trainer.reached(progress),
        training_seconds=float(seconds[-1]),
        wall_clock_seconds=wall_clock,
        recommend_seconds=trainer.recommend_seconds(),
    )
