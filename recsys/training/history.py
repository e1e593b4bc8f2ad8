"""The measures of a run's epochs, as its workdir keeps them."""

from __future__ import annotations

from recsys.training import files
from recsys.training.checkpoints import Progress, checkpoint_paths
from recsys.training.workdir import Workdir


def read_history(
    folder: Workdir,
) -> tuple[list[dict[str, float]], int | None]:
    """Reads what a run measured in each epoch.

    The newest checkpoint knows; where checkpoints were deleted, so does the
    `metrics.json` that recsys.train writes.

    Args:
        folder: The workdir.

    Returns:
        One dictionary per finished epoch, and the best epoch, from 0. An
        empty list and None where nothing is known.

    Raises:
        InputError: A file is damaged.
    """
    history: list[dict[str, float]] = []
    paths = checkpoint_paths(folder.checkpoints)
    if paths:
        history = files.read_json(paths[-1] / "progress.json")["history"]
    elif folder.metrics.is_file():
        history = files.read_json(folder.metrics).get("training", [])
    return history, Progress(history=history).best_epoch
