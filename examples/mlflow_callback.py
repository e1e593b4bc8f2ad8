"""Records a training run in MLflow.

pip install mlflow
python examples/mlflow_callback.py runs/mine
"""

from __future__ import annotations

import sys

import mlflow

import recsys
from recsys.training import Callback, TrainConfig, train


class MLflowCallback(Callback):
    """Logs the configuration and the measures of each epoch."""

    def on_start(self, config, workdir, progress):
        """Starts a run of MLflow."""
        mlflow.start_run(run_name=workdir.name)
        mlflow.log_params(config.to_dict())

    def on_epoch_end(self, progress):
        """Logs the measures of an epoch."""
        # MLflow allows no @ in the name of a metric.
        measures = progress.history[-1].items()
        named = {name.replace("@", "_at_"): value for name, value in measures}
        mlflow.log_metrics(named, step=progress.epoch)

    def on_end(self, progress):
        """Ends the run."""
        mlflow.end_run()


def main(workdir: str, config: TrainConfig | None = None) -> None:
    """Trains, by default on the bundled data, and records it."""
    config = config or TrainConfig(**recsys.training.PRESETS["movielens-small"])
    train(config, workdir, callbacks=[MLflowCallback()])


if __name__ == "__main__":
    main(sys.argv[1])
