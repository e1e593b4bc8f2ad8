"""Checkpoints: everything that a run needs to go on exactly where it was."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recsys.errors import InputError
from recsys.training import files

_NAME = re.compile(r"step-(\d{9})")


@dataclasses.dataclass
class Progress:
    """Where a run is, besides its variables.

    Attributes:
        epoch: Number of the epoch under way, from 0.
        step: Steps of that epoch that are done.
        global_step: Steps done since the beginning.
        loss_sum: Sum of the losses of that epoch's targets so far.
        num_targets: How many targets that is.
        history: One dictionary of measures per finished epoch.
        finished: Whether the run has ended.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    loss_sum: float = 0.0
    num_targets: float = 0.0
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)
    finished: bool = False

    @property
    def best_epoch(self) -> int | None:
        """The finished epoch with the highest validation NDCG@10."""
        if not self.history:
            return None
        values = [epoch["validation_ndcg@10"] for epoch in self.history]
        return int(np.argmax(values))


class Checkpoints:
    """The checkpoints of one run: a folder of which the newest one counts.

    Each checkpoint is a folder `step-…` that appears under its name only when
    it is complete. It holds the variables of the model (the states of its
    random generators are among them) and of the optimizer, each once, and
    the run's `Progress`. The order of the batches needs no state: it follows
    from the seed, epoch and step.

    Args:
        folder: Where the checkpoints are.
        model: A built model.
        optimizer: A built optimizer.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
    ) -> None:
        self._folder = folder
        variables = [*model.variables, *optimizer.variables]
        self._state = tf.train.Checkpoint(
            variables=[variable.value for variable in variables]
        )

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint and removes the older ones.

        Raises:
            OSError: The disk is full or cannot be written. The older
                checkpoint is still there.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"step-{progress.global_step:09d}"
        with files.atomic_path(target) as temporary:
            temporary.mkdir()
            try:
                self._state.write(str(temporary / "variables"))
            except tf.errors.OpError as error:
                raise OSError(
                    f"{self._folder}: the checkpoint could not be written: "
                    f"{_reason(error)}"
                ) from error
            files.write_json(
                temporary / "progress.json", dataclasses.asdict(progress)
            )
        # Older checkpoints, and what a process killed in this function left.
        for path in self._folder.iterdir():
            if path != target:
                shutil.rmtree(path)

    def restore(self) -> Progress | None:
        """Reads the newest checkpoint, if there is one.

        Returns:
            The run's progress; None when there is no checkpoint.

        Raises:
            InputError: The checkpoint is damaged or of another model.
        """
        paths = checkpoint_paths(self._folder)
        if not paths:
            return None
        path = paths[-1] / "progress.json"
        fields: dict[str, Any] = files.read_json(path)
        try:
            progress = Progress(**fields)
        except TypeError as error:
            raise InputError(
                f"{path}: expected the progress of a run. Received: {error}"
            ) from error
        try:
            status = self._state.read(str(paths[-1] / "variables"))
            status.assert_consumed()
        except (tf.errors.OpError, ValueError, AssertionError) as error:
            raise InputError(
                f"{paths[-1]}: expected a checkpoint of this model. Received: "
                f"{str(error).splitlines()[0]}"
            ) from error
        return progress


def _reason(error: tf.errors.OpError) -> str:
    """Returns the system's reason, without TensorFlow's names around it."""
    reason = str(error.message).rpartition(";")[2]
    return reason.partition("[Op:")[0].strip()


def checkpoint_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the complete checkpoints in a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if _NAME.fullmatch(p.name))
