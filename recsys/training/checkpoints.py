"""Checkpoints of a run."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform
import shutil

import keras
import numpy as np
import tensorflow as tf

from recsys import files
from recsys.errors import InputError
from recsys.training.progress import Progress
from recsys.workdir import checkpoint_paths, epoch_measures

_RUNTIME_FILE = "runtime.json"


class Checkpoints:
    """The checkpoints of one run, of which the newest one counts.

    Each checkpoint is a folder `step-…` that gets its name only when it is
    complete. It holds the variables of the model (including the states of its
    random generators) and of the optimizer, each once, the run's `Progress`
    and the `runtime` that wrote it. The order of the batches needs no state:
    it follows from the seed, the epoch and the step.

    Args:
        folder: Folder of the checkpoints.
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
            OSError: The disk is full or read-only. The older checkpoint is
                kept.
        """
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"step-{progress.global_step:09d}"
        with files.atomic_path(target, is_ours=True) as temporary:
            temporary.mkdir()
            try:
                self._state.write(str(temporary / "variables"))
            except tf.errors.OpError as error:
                raise OSError(
                    f"{folder}: the checkpoint could not be written: "
                    f"{_reason(error)}"
                ) from error
            files.write_json(
                temporary / "progress.json", dataclasses.asdict(progress)
            )
            files.write_json(temporary / _RUNTIME_FILE, runtime())
        for path in checkpoint_paths(folder):
            if path != target:
                shutil.rmtree(path)
        for path in folder.iterdir():
            files.remove_if_stale(path)

    def restore(self) -> Progress | None:
        """Reads the newest checkpoint, if there is one.

        Returns:
            The run's progress; None when there is no checkpoint.

        Raises:
            InputError: The checkpoint is damaged or belongs to another model.
        """
        paths = checkpoint_paths(self._folder)
        if not paths:
            return None
        progress = read_progress(paths[-1])
        try:
            status = self._state.read(str(paths[-1] / "variables"))
            status.assert_consumed()
        except (
            tf.errors.OpError,
            AssertionError,
            # What TensorFlow makes of a file that is cut short or damaged.
            IndexError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = str(error).strip().partition("\n")[0] or repr(error)
            raise InputError(
                f"{paths[-1]}: expected a checkpoint of this model. "
                f"Received: {reason}"
            ) from error
        return progress

    def runtime_changes(self) -> list[str]:
        """Lists what has changed since the newest checkpoint was written.

        Returns:
            One "name: old, now new" for each entry of `runtime` that differs;
            nothing for a checkpoint of an earlier version of this package,
            which recorded none, or without a checkpoint.

        Raises:
            InputError: The record is damaged.
        """
        paths = checkpoint_paths(self._folder)
        if not paths or not (paths[-1] / _RUNTIME_FILE).exists():
            return []
        now = runtime()
        before = files.read_json_object(
            paths[-1] / _RUNTIME_FILE, **dict.fromkeys(now, str)
        )
        return [
            f"{name}: {before[name]}, now {value}"
            for name, value in now.items()
            if before[name] != value
        ]


def runtime() -> dict[str, str]:
    """Describes what the last bits of a weight depend on besides the seed.

    Returns:
        The versions of TensorFlow, Keras and NumPy, the number of threads, the
        processor's vector instructions, TensorFlow's setting of oneDNN, and
        the number of GPUs.
    """
    num_threads = tf.config.threading.get_intra_op_parallelism_threads()
    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    instructions = [*simd.get("baseline", []), *simd.get("found", [])]
    return {
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "NumPy": np.__version__,
        "threads": str(num_threads or files.num_usable_cores()),
        "processor": " ".join([platform.machine(), *instructions]),
        "oneDNN": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "default"),
        "GPUs": str(len(tf.config.list_physical_devices("GPU"))),
    }


def read_progress(checkpoint: pathlib.Path) -> Progress:
    """Reads the progress of a run from one of its checkpoints.

    Raises:
        InputError: The file is missing or damaged.
    """
    path = checkpoint / "progress.json"
    fields = files.read_json_object(
        path,
        epoch=int,
        step=int,
        global_step=int,
        loss_sum=(float, int),
        num_targets=(float, int),
        history=list,
        finished=bool,
    )
    epoch_measures(path, fields, "history")
    try:
        progress = Progress(**fields)
    except TypeError as error:
        raise InputError(
            f"{path}: expected the progress of a run. Received: {error}"
        ) from error
    # Earlier versions did not write it.
    files.checked_object(vars(progress), path, skips_padding=bool)
    return progress


def _reason(error: tf.errors.OpError) -> str:
    """Returns the system's reason, without TensorFlow's names around it."""
    reason = str(error.message).rpartition(";")[2]
    return reason.partition("[Op:")[0].strip()
