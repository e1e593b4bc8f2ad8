"""Checkpoints of a run, and how its progress is shown."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shutil
import sys
import types
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tqdm

from recsys import files
from recsys.errors import InputError
from recsys.workdir import Workdir

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


class ProgressDisplay:
    """A progress bar for one epoch, shown on a terminal only.

    Use it as a context manager.

    Args:
        progress: Where the run is at the start.
        num_epochs: Epochs of the run.
        num_steps: Steps of the epoch.
        verbose: Whether to show anything.
    """

    def __init__(
        self, progress: Progress, num_epochs: int, num_steps: int, verbose: bool
    ) -> None:
        self._bar = tqdm.tqdm(
            total=num_steps,
            initial=progress.step,
            desc=_epoch(progress.epoch, num_epochs),
            unit="step",
            leave=False,
            dynamic_ncols=True,
            disable=not (verbose and sys.stderr.isatty()),
        )
        self._targets_before = progress.num_targets

    def update(self, progress: Progress) -> None:
        """Shows one more step."""
        if self._bar.disable:
            return
        seconds = max(self._bar.format_dict["elapsed"], 1e-9)
        rate = (progress.num_targets - self._targets_before) / seconds
        loss = progress.loss_sum / max(progress.num_targets, 1)
        self._bar.set_postfix_str(
            f"loss {loss:.3f}, {rate:,.0f} interactions/s", refresh=False
        )
        self._bar.update()

    def __enter__(self) -> ProgressDisplay:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        self._bar.close()


def show_start(progress: Progress, num_epochs: int) -> None:
    """Says where a run goes on, unless it is at its beginning.

    Args:
        progress: Where the run is.
        num_epochs: Epochs of the run.
    """
    if progress.finished:
        _show(
            f"this run is finished: {len(progress.history)} epochs, "
            "nothing to train"
        )
    elif progress.global_step:
        step = f", step {progress.step + 1}" if progress.step else ""
        _show(f"going on with {_epoch(progress.epoch, num_epochs)}{step}")


def show_method(text: str) -> None:
    """Shows what was chosen where the configuration says `auto`.

    Args:
        text: One line.
    """
    _show(text)


def show_epoch(progress: Progress, num_epochs: int) -> None:
    """Shows a line for the epoch that was finished last.

    Args:
        progress: Where the run is; its history ends with that epoch.
        num_epochs: Epochs of the run.
    """
    epoch = len(progress.history) - 1
    measures = progress.history[epoch]
    _show(
        f"{_epoch(epoch, num_epochs)}  "
        f"loss {measures['loss']:.4f}  "
        f"validation recall@10 {measures['validation_recall@10']:.4f}  "
        f"ndcg@10 {measures['validation_ndcg@10']:.4f}  "
        f"{measures['interactions_per_second']:>7,.0f} interactions/s  "
        f"{measures['seconds']:.1f} s"
        + ("  best so far" if progress.best_epoch == epoch else "")
    )


def _epoch(epoch: int, num_epochs: int) -> str:
    """Names an epoch, counted from 1, in a width that keeps lines aligned."""
    width = len(str(num_epochs))
    return f"epoch {epoch + 1:>{width}}/{num_epochs}"


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
