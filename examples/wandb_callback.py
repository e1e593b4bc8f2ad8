"""Records a training run in Weights & Biases.

pip install wandb
WANDB_MODE=offline python examples/wandb_callback.py runs/mine
"""

from __future__ import annotations

import sys

import wandb

import recsys
from recsys.training import Callback, TrainConfig, train


class WandbCallback(Callback):
    """Logs the configuration, every step's loss and each epoch's measures."""

    def on_start(self, config, workdir, progress):
        """Starts a run of W&B."""
        self.run = wandb.init(name=workdir.name, config=config.to_dict())

    def on_step(self, progress, loss):
        """Logs the loss of a step."""
        self.run.log({"step_loss": loss}, step=progress.global_step)

    def on_epoch_end(self, progress):
        """Logs the measures of an epoch."""
        self.run.log(progress.history[-1], step=progress.global_step)

    def on_end(self, progress):
        """Ends the run."""
        self.run.finish()


def main(workdir: str, config: TrainConfig | None = None) -> None:
    """Trains, by default on the bundled data, and records it."""
    config = config or TrainConfig(**recsys.training.PRESETS["movielens-small"])
    train(config, workdir, callbacks=[WandbCallback()])


if __name__ == "__main__":
    main(sys.argv[1])
