"""The processes of a run: which ones `TF_CONFIG` names, and how they meet.

TensorFlow's own connecting of processes can be neither interrupted nor asked
which process is missing. So each process first reports to the chief what it is
about to train, and training starts only when all of them have reported the
same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import ipaddress
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from recsys.config import SOURCE_FIELDS, TrainConfig
from recsys.data.prepare import TOTALS
from recsys.data.vocabulary import Vocabulary
from recsys.errors import InputError, WorkerLostError

VARIABLE = "TF_CONFIG"
_EXAMPLE = (
    '{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
# In the order in which processes are numbered.
_JOBS = ("chief", "worker")

# How long processes wait for each other (some take longer to read a log), and
# how often they report that they are still waiting.
WAIT_SECONDS = 1800.0
_SECONDS_BETWEEN_REPORTS = 10.0
_RETRY_SECONDS = 0.2
_LONGEST_MESSAGE = 2**12
# A peer gets this long to send its report; the others wait meanwhile.
_SECONDS_TO_REPORT = 5.0
# What a lost connection, or a peer that is not one of our processes, raises.
_BAD_PEER = (OSError, ValueError, TypeError, KeyError)


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run.

    Attributes:
        addresses: `host:port` of each process, the chief's first.
        index: Index of this process in `addresses`.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        """Whether this process validates and writes the workdir."""
        return self.index == 0

    def worker_name(self, index: int) -> str:
        """Names a process for messages, counting from 1."""
        return f"worker {index + 1} of {len(self.addresses)}"


def cluster_of(config: TrainConfig) -> Cluster | None:
    """Returns the processes of a run, or None for a single process.

    Raises:
        InputError: The strategy is `multi_worker` and `TF_CONFIG` is invalid,
            or names a public address without `trust_network`.
    """
    if config.strategy != "multi_worker":
        return None
    cluster = parse_cluster(os.environ.get(VARIABLE, ""))
    if not config.trust_network:
        for address in cluster.addresses:
            _check_private(address)
    return cluster


def host_and_port(address: str) -> tuple[str, int]:
    """Splits `host:port`; brackets around the host are removed."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _check_private(address: str) -> None:
    """Raises InputError for an address, if it resolves, of a public network."""
    host, port = host_and_port(address)
    with contextlib.suppress(OSError, UnicodeError):
        for *_, found in socket.getaddrinfo(host, port):
            name = str(found[0]).partition("%")[0]
            if ipaddress.ip_address(name).is_global:
                raise InputError(
                    f"{VARIABLE} must name loopback or private addresses, "
                    "since TensorFlow's ports have no authentication; "
                    "--trust_network accepts others "
                    f"(docs/distributed.md). Received: {address} ({name})"
                )


def parse_cluster(text: str) -> Cluster:
    """Parses the value of `TF_CONFIG`.

    Args:
        text: JSON with `cluster` and `task`. The chief is the task of the job
            `chief` or, without such a job, the first worker.

    Raises:
        InputError: The value is malformed or inconsistent.
    """
    try:
        value = json.loads(text)
        jobs: dict[str, Any] = value["cluster"]
        job, index = value["task"]["type"], value["task"]["index"]
        starts, addresses = {}, list[str]()
        for name in _JOBS:
            starts[name] = len(addresses)
            addresses.extend(jobs.get(name, []))
        others = sorted(jobs.keys() - set(_JOBS))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{VARIABLE} must be set with --strategy=multi_worker, such as "
            f"{_EXAMPLE}. Received: {text!r}"
        ) from error
    if others:
        raise InputError(
            f"{VARIABLE} must name jobs chief and worker only. "
            f"Received: {', '.join(others)}"
        )
    if len(jobs.get("chief", [])) > 1:
        raise InputError(
            f"{VARIABLE} must name at most one chief. Received: {text}"
        )
    for address in addresses:
        if not _is_address(address):
            raise InputError(
                f"{VARIABLE} must name processes as host:port. "
                f"Received: {address!r}"
            )
    if len(set(addresses)) < len(addresses):
        raise InputError(
            f"{VARIABLE} must name each address once. "
            f"Received: {', '.join(addresses)}"
        )
    if (
        job not in _JOBS
        or type(index) is not int
        or not 0 <= index < len(jobs.get(job, []))
    ):
        raise InputError(
            f"{VARIABLE} must name a task of its own cluster. "
            f"Received: {job!r} {index!r}"
        )
    return Cluster(tuple(addresses), starts[job] + index)


def _is_address(address: Any) -> bool:
    if not isinstance(address, str):
        return False
    host, _, port = address.rpartition(":")
    return (
        bool(host)
        and port.isdecimal()
        and len(port) <= 5
        and 0 < int(port) < 2**16
    )


def fingerprint(config: TrainConfig, vocabulary: Vocabulary) -> dict[str, str]:
    """Hashes what must be equal in all processes.

    The location of the log may differ.

    Args:
        config: The configuration.
        vocabulary: The items, with their `train_count`.

    Returns:
        One hash each for `flags` and `data`.
    """
    fields = config.to_dict()
    for name in SOURCE_FIELDS:
        del fields[name]
    text = json.dumps(fields, sort_keys=True)
    items = hashlib.sha256()
    for item_id in vocabulary.item_ids:
        items.update(str(item_id).encode() + b"\0")
    for name in TOTALS:
        if name in vocabulary.items.column_names:
            items.update(vocabulary.items.column(name).to_numpy().tobytes())
    return {
        "flags": hashlib.sha256(text.encode()).hexdigest(),
        "data": items.hexdigest(),
    }


def print_line(line: str) -> None:
    """Prints a line about the run to standard error."""
    print(line, file=sys.stderr, flush=True)


def meet(
    cluster: Cluster,
    about: dict[str, str],
    *,
    wait_seconds: float = WAIT_SECONDS,
    show: Callable[[str], None] = print_line,
) -> None:
    """Waits until all processes are ready to train the same model.

    Args:
        cluster: The processes.
        about: What must be equal in all of them, by name.
        wait_seconds: How long to wait.
        show: Called now and then with a line that names the missing processes.

    Raises:
        WorkerLostError: A process is missing or is about to train something
            else, or the chief's address is in use.
    """
    waiting = _Waiting(wait_seconds, show)
    if cluster.is_chief:
        answer = _collect_reports(cluster, about, waiting)
    else:
        answer = _report(cluster, about, waiting)
    if answer:
        raise WorkerLostError(answer)


class _Waiting:
    """A deadline, and progress messages until then."""

    def __init__(self, seconds: float, show: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._show = show
        self._end = time.monotonic() + seconds
        self._next_report = time.monotonic() + _SECONDS_BETWEEN_REPORTS

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    def check(self, missing: str, received: str) -> None:
        """Raises WorkerLostError when time is up; else reports now and then."""
        if self.left <= 0:
            raise WorkerLostError(
                f"expected all workers within {self._seconds:.0f} s. "
                f"Received: {received} from {missing}"
            )
        if time.monotonic() >= self._next_report:
            self._show(f"waiting for {missing}")
            self._next_report += 6 * _SECONDS_BETWEEN_REPORTS


def _collect_reports(
    cluster: Cluster, about: dict[str, str], waiting: _Waiting
) -> str:
    """Waits for all other reports, and answers them with what differs."""
    missing = {
        index: f"{cluster.worker_name(index)} ({address})"
        for index, address in enumerate(cluster.addresses)
        if index
    }
    differing: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(cluster.addresses[0]))
        peers = []
        while missing:
            waiting.check(", ".join(missing.values()), "nothing")
            listener.settimeout(min(1.0, max(waiting.left, 0.01)))
            try:
                peer, _ = listener.accept()
                stack.enter_context(peer)
                report = _read(peer, _SECONDS_TO_REPORT)
                index, theirs = int(report["index"]), dict(report["about"])
            except _BAD_PEER:
                continue
            if not 0 < index < len(cluster.addresses):
                continue
            missing.pop(index, None)
            peers.append(peer)
            names = [name for name in about if theirs.get(name) != about[name]]
            if names:
                differing[index] = (
                    f"other {' and '.join(names)} in "
                    f"{cluster.worker_name(index)}"
                )
        answer = "; ".join(differing[index] for index in sorted(differing))
        if answer:
            answer = f"expected the same in all workers. Received: {answer}"
        for peer in peers:
            # TensorFlow will notice a process that is gone by now.
            with contextlib.suppress(OSError):
                _write(peer, {"answer": answer})
    return answer


def _report(cluster: Cluster, about: dict[str, str], waiting: _Waiting) -> str:
    """Reports to the chief until it answers; returns the answer."""
    address = cluster.addresses[0]
    chief_name = f"{cluster.worker_name(0)} ({address}), the chief"
    while True:
        waiting.check(chief_name, "no answer")
        try:
            with socket.create_connection(
                host_and_port(address), timeout=5
            ) as chief:
                _write(chief, {"index": cluster.index, "about": about})
                # The chief answers when every process has reported.
                return str(_read(chief, waiting.left)["answer"])
        except _BAD_PEER:
            time.sleep(_RETRY_SECONDS)


def _listen(address: str) -> socket.socket:
    """Listens on the chief's address, and on no other of its machine."""
    host, port = host_and_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise WorkerLostError(
            f"expected to listen at {address}, the first address in "
            f"{VARIABLE}. Received: {error.strerror}"
        ) from error


def _write(peer: socket.socket, message: object) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _read(peer: socket.socket, seconds: float) -> dict[str, Any]:
    """Reads one line with a JSON object, in `seconds` however slow the peer."""
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
