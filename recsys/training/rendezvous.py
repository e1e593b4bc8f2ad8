"""How the processes of a run meet, and what is said when one is lost.

Before TensorFlow connects them, which cannot be interrupted and does not say
whom it waits for, each tells the chief that it is there and what it is about
to train. Only when all are there, and all are about to train the same, do they
go on. Nothing is left open: TensorFlow listens at the same address next.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator

import tensorflow as tf

from recsys.data.prepare import TRAIN_COUNT
from recsys.data.vocabulary import Vocabulary
from recsys.errors import WorkerLostError
from recsys.training.cluster import Cluster
from recsys.training.config import SOURCE_FIELDS, TrainConfig

# How long processes wait for each other: reading a log takes some longer than
# others. And after how long, and how often, they say so.
WAIT_SECONDS = 1800.0
_SECONDS_UNTIL_TOLD = 10.0
_RETRY_SECONDS = 0.2
_LONGEST_MESSAGE = 2**12


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
    """How long to wait, and what is said meanwhile."""

    def __init__(self, seconds: float, show: Callable[[str], None]) -> None:
        self.seconds = seconds
        self._show = show
        self._end = time.monotonic() + seconds
        self._next_told = time.monotonic() + _SECONDS_UNTIL_TOLD

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def tell(self, whom: str) -> None:
        """Says whom for, now and then."""
        if time.monotonic() >= self._next_told:
            self._show(f"waiting for {whom}")
            self._next_told += 6 * _SECONDS_UNTIL_TOLD


def _receive(
    cluster: Cluster, about: dict[str, str], waiting: _Waiting
) -> None:
    """Listens until every other process has reported, and answers them."""
    missing = set(range(1, len(cluster.addresses)))
    differing: dict[int, list[str]] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(cluster.addresses[0]))
        peers = []
        while missing:
            whom = ", ".join(
                f"{cluster.describe(index)} ({cluster.addresses[index]})"
                for index in sorted(missing)
            )
            if waiting.left <= 0:
                raise WorkerLostError(
                    f"expected all workers within {waiting.seconds:.0f} s. "
                    f"Received: nothing from {whom}"
                )
            waiting.tell(whom)
            listener.settimeout(min(1.0, max(waiting.left, 0.01)))
            try:
                peer, _ = listener.accept()
                stack.enter_context(peer)
                peer.settimeout(10)
                report = _read(peer)
                index, theirs = int(report["index"]), dict(report["about"])
            except (OSError, ValueError, TypeError, KeyError):
                # Nobody came, or something that is no process of ours.
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
                f"other {' and '.join(wrong)} in {cluster.describe(index)}"
                for index, wrong in sorted(differing.items())
            )
        for peer in peers:
            # One that is gone by now is found out by TensorFlow.
            with contextlib.suppress(OSError):
                _write(peer, {"answer": answer})
    if answer:
        raise WorkerLostError(answer)


def _report(cluster: Cluster, about: dict[str, str], waiting: _Waiting) -> None:
    """Tells the chief, again and again until it answers."""
    host, port = _host_and_port(cluster.addresses[0])
    whom = f"{cluster.describe(0)} ({cluster.addresses[0]}), the chief"
    while waiting.left > 0:
        waiting.tell(whom)
        try:
            with socket.create_connection((host, port), timeout=5) as chief:
                _write(chief, {"index": cluster.index, "about": about})
                # It answers when everyone is there.
                chief.settimeout(max(waiting.left, 0.01))
                answer = str(_read(chief)["answer"])
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
    _, port = _host_and_port(address)
    try:
        return socket.create_server(("", port))
    except OSError as error:
        raise WorkerLostError(
            f"expected to listen at {address}, the first of TF_CONFIG. "
            f"Received: {error.strerror}"
        ) from error


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _write(peer: socket.socket, message: object) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _read(peer: socket.socket) -> dict:
    """Reads a line of JSON."""
    text = b""
    while not text.endswith(b"\n"):
        received = peer.recv(_LONGEST_MESSAGE)
        text += received
        if not received or len(text) > _LONGEST_MESSAGE:
            raise ValueError("no line of JSON")
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
    """Makes one error of what TensorFlow says when a process is gone.

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
            f"{cluster.describe(cluster.index)} lost another one; the same "
            "command, started again for all of them, goes on from the last "
            f"checkpoint. Received: {reason}"
        ) from error


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
