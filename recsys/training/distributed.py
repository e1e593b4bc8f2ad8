"""Training on several devices or in several processes as if on one.

Each replica has a copy of the model, computes the loss of some rows of each
batch, and adds its gradient to those of the others, so that all copies take
the same step. The loss is a sum over targets divided by the number of targets
in the whole batch. The sum of the gradients therefore equals the gradient of
one replica with the whole batch, up to the order of floating-point additions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recsys.data.pipeline import Part
from recsys.errors import InputError, WorkerLostError
from recsys.training.cluster import Cluster
from recsys.training.progress import Progress

# The most values that are sent to the other processes in one message.
_NUM_AT_ONCE = 2**22

# What TensorFlow's collectives raise when a process is gone, and the lines of
# the message that say which one.
_LOST_WORKER_ERRORS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)
_LOST_WORKER_LINE = re.compile(
    r"aborted by|unhealthy|peer|connect|/task:\d", re.IGNORECASE
)


@contextlib.contextmanager
def translated_loss(cluster: Cluster | None) -> Iterator[None]:
    """Translates the errors TensorFlow raises for a lost process into one.

    Args:
        cluster: The processes; None for a single one.

    Raises:
        WorkerLostError: A process was lost within the block.
    """
    try:
        yield
    except _LOST_WORKER_ERRORS as error:
        if cluster is None:
            raise
        lines = [
            line.strip()
            for line in str(error.message).splitlines()
            if _LOST_WORKER_LINE.search(line)
        ]
        reason = " ".join(lines) or type(error).__name__
        raise WorkerLostError(
            f"{cluster.worker_name(cluster.index)} lost another one; rerun "
            "the command for all of them to resume from the last "
            f"checkpoint. Received: {reason}"
        ) from error


def connect(strategy: str, cluster: Cluster | None) -> Replicas | None:
    """Connects the replicas of a run.

    Args:
        strategy: The configuration's strategy.
        cluster: The processes of `multi_worker`, all of them ready.

    Returns:
        The replicas; None for a single one.

    Raises:
        InputError: TensorFlow has already been used in this process.
    """
    if strategy == "single":
        return None
    if strategy == "mirrored":
        return Replicas(_mirrored_strategy(), None)
    try:
        connected = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise InputError(
            "`strategy` must not be multi_worker in a process that has already "
            f"used TensorFlow. Received: {str(error).splitlines()[0]}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # TensorFlow would treat SIGTERM as a preemption notice and carry on.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return Replicas(connected, cluster)


@functools.cache
def _mirrored_strategy() -> tf.distribute.Strategy:
    """The one strategy here: two would receive each other's messages."""
    devices = tf.config.list_logical_devices("GPU")
    devices = devices or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([each.name for each in devices])


class Replicas:
    """The replicas of a run, in this process and in others.

    Args:
        strategy: TensorFlow's strategy, which connects them.
        cluster: The processes; None if this is the only one.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, cluster: Cluster | None
    ) -> None:
        self._strategy = strategy
        self.cluster = cluster
        self._first = tf.function(
            self.on_all(_of_first_replica),
            input_signature=[tf.TensorSpec([None], tf.int64)],
        )

    @property
    def is_chief(self) -> bool:
        """Whether this process validates and writes the workdir."""
        return self.cluster is None or self.cluster.is_chief

    @property
    def part(self) -> Part:
        """Which rows of each batch this process reads."""
        if self.cluster is None:
            return Part(0, 1)
        return Part(self.cluster.index, len(self.cluster.addresses))

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context in which each variable gets a copy per replica."""
        scope: contextlib.AbstractContextManager[Any] = self._strategy.scope()
        return scope

    def summary(self) -> str:
        """Returns the number of devices and, if several, of workers."""
        devices = f"devices: {self._strategy.num_replicas_in_sync}"
        if self.cluster is None:
            return devices
        return f"workers: {len(self.cluster.addresses)}; {devices}"

    def on_all(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that calls another one on each replica.

        Args:
            step: Returns the same on all of them.
        """

        def run(*arguments: Any) -> Any:
            results = self._strategy.run(step, args=arguments)
            return tf.nest.map_structure(
                lambda each: self._strategy.experimental_local_results(each)[0],
                results,
            )

        return run

    def share(self, variables: Sequence[keras.Variable]) -> None:
        """Gives all replicas the chief's values, bit for bit.

        Args:
            variables: Variables created within `scope()`.
        """
        for each in variables:
            variable, shape = each.value, tuple(each.shape)
            num_rows = shape[0] if shape else 1
            size = max(1, math.prod(shape))
            step = max(1, _NUM_AT_ONCE * num_rows // size)
            if step >= num_rows:
                variable.assign(self._of_chief(tf.identity(variable)))
                continue
            for begin in range(0, num_rows, step):
                rows = tf.range(begin, min(begin + step, num_rows))
                values = self._of_chief(tf.gather(variable, rows))
                variable.scatter_update(tf.IndexedSlices(values, rows))

    def share_progress(self, progress: Progress) -> Progress:
        """Returns the chief's progress."""
        text = json.dumps(dataclasses.asdict(progress)).encode()
        size = int(self._first(tf.constant([len(text)], tf.int64))[0])
        codes = np.zeros(size, np.int64)
        if self.is_chief:
            codes[:] = list(text)
        codes = self._first(tf.constant(codes)).numpy()
        return Progress(**json.loads(bytes(codes.tolist())))

    def vary_seeds(self, model: keras.Model) -> None:
        """Gives each replica dropout masks of its own.

        The first replica keeps its seeds: they are those of a single replica,
        and those that checkpoints hold.

        Args:
            model: A model whose replicas all have the same seeds.
        """
        states = [
            variable.value
            for variable in model.variables
            if variable.name == "seed_generator_state"
        ]

        def shift() -> None:
            context = tf.distribute.get_replica_context()
            number = tf.cast(context.replica_id_in_sync_group, tf.int64)
            for state in states:
                state.assign(state + tf.stack([number, 0]))

        tf.function(lambda: self._strategy.run(shift))()

    def _of_chief(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the chief's values, of any dtype of 4 or 8 bytes."""
        bits = tf.int64 if values.dtype.size == 8 else tf.int32
        sent = tf.cast(tf.bitcast(tf.reshape(values, [-1]), bits), tf.int64)
        received = tf.cast(self._first(sent), bits)
        return tf.reshape(tf.bitcast(received, values.dtype), values.shape)


def _of_first_replica(values: tf.Tensor) -> tf.Tensor:
    """Returns the first replica's values, on every replica."""
    context = tf.distribute.get_replica_context()
    is_first = context.replica_id_in_sync_group == 0
    return context.all_reduce(
        tf.distribute.ReduceOp.SUM, tf.where(is_first, values, 0)
    )
