"""Training on several devices or in several processes as if on one.

Each replica has a copy of the model, computes the loss of some rows of each
batch, and adds its gradient to those of the others; all copies take the same
step. The loss is a sum over targets, divided by the number of targets of the
whole batch, so that the sum of the gradients is the gradient of one replica
with the whole batch, save for the order in which floats are added.

Before TensorFlow connects the processes, which cannot be interrupted and does
not say whom it waits for, each tells the chief that it is there and what it is
about to train. Only when all are there, and all are about to train the same, do
they start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recsys.config import SOURCE_FIELDS, TrainConfig
from recsys.data.pipeline import Part
from recsys.data.prepare import TRAIN_COUNT
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError, WorkerLostError
from recsys.training.checkpoints import Progress
from recsys.training.cluster import Cluster, host_and_port

# How long processes wait for each other, since some take longer to read a log,
# and how often they report that they are waiting.
WAIT_SECONDS = 1800.0
_SECONDS_BETWEEN_REPORTS = 10.0
_RETRY_SECONDS = 0.2
_LONGEST_MESSAGE = 2**12
# Whoever connects has this long to say who it is; others wait meanwhile.
_SECONDS_TO_REPORT = 5.0


def fingerprint(config: TrainConfig, vocabulary: Vocabulary) -> dict[str, str]:
    """Returns what must be the same in all processes, each as a hash.

    Where the log is read from may differ.

    Args:
        config: The configuration.
        vocabulary: The items, with their `train_count`.
    """
    fields = config.to_dict()
    for name in SOURCE_FIELDS:
        del fields[name]
    items = hashlib.sha256()
    for item_id in vocabulary.item_ids:
        items.update(str(item_id).encode())
        items.update(b"\0")
    items.update(vocabulary.items.column(TRAIN_COUNT).to_numpy().tobytes())
    text = json.dumps(fields, sort_keys=True)
    return {
        "flags": hashlib.sha256(text.encode()).hexdigest(),
        "data": items.hexdigest(),
    }


def meet(
    cluster: Cluster,
    about: dict[str, str],
    *,
    wait_seconds: float = WAIT_SECONDS,
    show: Callable[[str], None] | None = None,
) -> None:
    """Waits until all processes are there.

    Args:
        cluster: The processes.
        about: What must be the same in all of them, by name.
        wait_seconds: For how long.
        show: Takes a line that says whom this process waits for. Default:
            standard error.

    Raises:
        WorkerLostError: Some did not come, or came with something else, or
            this one's own address is not free.
    """
    waiting = _Waiting(wait_seconds, show or _show)
    if cluster.is_chief:
        _receive(cluster, about, waiting)
    else:
        _report(cluster, about, waiting)


class _Waiting:
    """How long to wait, and who hears of it."""

    def __init__(self, seconds: float, show: Callable[[str], None]) -> None:
        self.seconds = seconds
        self._show = show
        self._end = time.monotonic() + seconds
        self._next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def report(self, whom: str) -> None:
        """Shows now and then whom this process waits for."""
        if time.monotonic() >= self._next_report:
            self._show(f"waiting for {whom}")
            self._next_report += 6 * _SECONDS_BETWEEN_REPORTS


def _receive(
    cluster: Cluster, about: dict[str, str], waiting: _Waiting
) -> None:
    """Listens until every other process has reported, then answers them."""
    missing = set(range(1, len(cluster.addresses)))
    differing: dict[int, list[str]] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(cluster.addresses[0]))
        peers = []
        while missing:
            whom = ", ".join(
                f"{cluster.worker_name(index)} ({cluster.addresses[index]})"
                for index in sorted(missing)
            )
            if waiting.left <= 0:
                raise WorkerLostError(
                    f"expected all workers within {waiting.seconds:.0f} s. "
                    f"Received: nothing from {whom}"
                )
            waiting.report(whom)
            listener.settimeout(min(1.0, max(waiting.left, 0.01)))
            try:
                peer, _ = listener.accept()
                stack.enter_context(peer)
                report = _read(peer, _SECONDS_TO_REPORT)
                index, theirs = int(report["index"]), dict(report["about"])
            except (OSError, ValueError, TypeError, KeyError):
                # Nobody came, or something other than our process.
                continue
            if index not in range(1, len(cluster.addresses)):
                continue
            missing.discard(index)
            peers.append(peer)
            wrong = [name for name in about if theirs.get(name) != about[name]]
            if wrong:
                differing[index] = wrong
        answer = ""
        if differing:
            answer = "expected the same in all workers. Received: " + "; ".join(
                f"other {' and '.join(wrong)} in {cluster.worker_name(index)}"
                for index, wrong in sorted(differing.items())
            )
        for peer in peers:
            # TensorFlow notices one that is gone by now.
            with contextlib.suppress(OSError):
                _write(peer, {"answer": answer})
    if answer:
        raise WorkerLostError(answer)


def _report(cluster: Cluster, about: dict[str, str], waiting: _Waiting) -> None:
    """Reports to the chief until it answers."""
    host, port = host_and_port(cluster.addresses[0])
    whom = f"{cluster.worker_name(0)} ({cluster.addresses[0]}), the chief"
    while waiting.left > 0:
        waiting.report(whom)
        try:
            with socket.create_connection((host, port), timeout=5) as chief:
                _write(chief, {"index": cluster.index, "about": about})
                # It answers once everyone is there.
                answer = str(_read(chief, waiting.left)["answer"])
        except (OSError, ValueError, TypeError, KeyError):
            time.sleep(_RETRY_SECONDS)
            continue
        if answer:
            raise WorkerLostError(answer)
        return
    raise WorkerLostError(
        f"expected all workers within {waiting.seconds:.0f} s. "
        f"Received: no answer from {whom}"
    )


def _listen(address: str) -> socket.socket:
    """Listens at the chief's address, and at no other of its machine's."""
    host, port = host_and_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise WorkerLostError(
            f"expected to listen at {address}, the first of TF_CONFIG. "
            f"Received: {error.strerror}"
        ) from error


def _write(peer: socket.socket, message: object) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _read(peer: socket.socket, seconds: float) -> dict:
    """Reads a line of JSON, however slowly it comes, for at most so long."""
    end = time.monotonic() + seconds
    text = b""
    while not text.endswith(b"\n"):
        peer.settimeout(max(0.01, end - time.monotonic()))
        received = peer.recv(_LONGEST_MESSAGE)
        text += received
        if not received or len(text) > _LONGEST_MESSAGE:
            raise ValueError("no line of JSON")
        if time.monotonic() > end:
            raise TimeoutError("no line of JSON in time")
    message = json.loads(text)
    if not isinstance(message, dict):
        raise ValueError("no JSON object")
    return message


# What TensorFlow's collectives end with when a process is gone.
_ERRORS_OF_LOSS = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)
_TELLING_LINE = re.compile(
    r"aborted by|unhealthy|peer|connect|/task:\d", re.IGNORECASE
)


@contextlib.contextmanager
def translated_loss(cluster: Cluster | None) -> Iterator[None]:
    """Turns what TensorFlow raises when a process is lost into one error.

    Args:
        cluster: The processes; None for a single one.

    Raises:
        WorkerLostError: One was lost within the block.
    """
    try:
        yield
    except _ERRORS_OF_LOSS as error:
        if cluster is None:
            raise
        lines = [
            line.strip()
            for line in str(error.message).splitlines()
            if _TELLING_LINE.search(line)
        ]
        reason = " ".join(lines) or type(error).__name__
        raise WorkerLostError(
            f"{cluster.worker_name(cluster.index)} lost another one; rerun "
            "the command for all of them to resume from the last "
            f"checkpoint. Received: {reason}"
        ) from error


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# Numbers that are sent to the other processes at once.
_NUM_AT_ONCE = 2**22


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
            self._of_first_replica,
            input_signature=[tf.TensorSpec([None], tf.int64)],
        )

    @property
    def is_chief(self) -> bool:
        """Whether this process validates and writes the workdir."""
        return self.cluster is None or self.cluster.is_chief

    @property
    def part(self) -> Part:
        """Which rows of each batch this process makes."""
        if self.cluster is None:
            return Part(0, 1)
        return Part(self.cluster.index, len(self.cluster.addresses))

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, variables are made that each replica has a copy of."""
        scope: contextlib.AbstractContextManager[Any] = self._strategy.scope()
        return scope

    def summary(self) -> str:
        """Returns how many there are."""
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
            variables: Made within `scope()`.
        """
        for each in variables:
            variable = each.value
            num_rows = each.shape[0] if len(each.shape) else 1
            step = max(1, _NUM_AT_ONCE * num_rows // max(1, _size(each)))
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
        """Lets each replica drop out other things.

        The first one's random numbers are those of a single replica, and its
        are the seeds that a checkpoint holds.

        Args:
            model: Of which all replicas have the same seeds.
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
        """Returns the chief's values, of any type of 4 or 8 bytes."""
        bits = tf.int64 if values.dtype.size == 8 else tf.int32
        sent = tf.cast(tf.bitcast(tf.reshape(values, [-1]), bits), tf.int64)
        received = tf.cast(self._first(sent), bits)
        return tf.reshape(tf.bitcast(received, values.dtype), values.shape)

    def _of_first_replica(self, values: tf.Tensor) -> tf.Tensor:
        def share(values: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = context.replica_id_in_sync_group == 0
            return context.all_reduce(
                tf.distribute.ReduceOp.SUM, tf.where(is_first, values, 0)
            )

        return self.on_all(share)(values)


def connect(strategy: str, cluster: Cluster | None) -> Replicas | None:
    """Connects the replicas of a run.

    Args:
        strategy: As in the configuration.
        cluster: The processes, of `multi_worker`; all of them are there.

    Returns:
        The replicas; None for a single one.

    Raises:
        InputError: TensorFlow has begun to work in this process already.
    """
    if strategy == "single":
        return None
    if strategy == "mirrored":
        return Replicas(_mirrored_strategy(), None)
    try:
        connected = tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise InputError(
            "`strategy` must be other than multi_worker in a process in which "
            "TensorFlow has worked already. Received: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if threading.current_thread() is threading.main_thread():
        # TensorFlow would take the signal for a notice, and work on.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    return Replicas(connected, cluster)


@functools.cache
def _mirrored_strategy() -> tf.distribute.Strategy:
    """Returns the one strategy over all devices of this process.

    Two of them would take each other's messages for their own.
    """
    devices = tf.config.list_logical_devices("GPU")
    devices = devices or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([each.name for each in devices])


def _size(variable: keras.Variable) -> int:
    return int(np.prod(variable.shape))
