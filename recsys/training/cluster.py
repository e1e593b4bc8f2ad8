"""Which process of a run this one is, as TF_CONFIG says."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import json
import os
import socket
from typing import Any

from recsys.config import TrainConfig
from recsys.errors import InputError

VARIABLE = "TF_CONFIG"
_EXAMPLE = (
    '{"cluster": {"worker": ["host-a:2222", "host-b:2222"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
# In the order in which processes are numbered.
_JOBS = ("chief", "worker")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run.

    Attributes:
        addresses: `host:port` of each, the chief's first.
        index: Which of them this one is.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        """Whether this is the one that validates and writes the workdir."""
        return self.index == 0

    def worker_name(self, index: int) -> str:
        """Names a process, counted from 1 as people do."""
        return f"worker {index + 1} of {len(self.addresses)}"


def cluster_of(config: TrainConfig) -> Cluster | None:
    """Returns the processes of a run; None if it has but one.

    Raises:
        InputError: The configuration asks for several, and `TF_CONFIG` does
            not say which.
    """
    if config.strategy != "multi_worker":
        return None
    cluster = parse_cluster(os.environ.get(VARIABLE, ""))
    if not config.trust_network:
        for address in cluster.addresses:
            _check_private(address)
    return cluster


def host_and_port(address: str) -> tuple[str, int]:
    """Returns the host, without brackets, and the port of `host:port`."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _check_private(address: str) -> None:
    """Raises InputError for an address on a public network.

    A host that has no address by now is left to whoever connects to it.
    """
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
    """Reads the value of `TF_CONFIG`.

    Args:
        text: JSON, with `cluster` and `task`. The chief is the task of the
            job `chief`, or the first worker where there is none.

    Raises:
        InputError: It is something else.
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
            f"{VARIABLE} must name one chief at most. Received: {text}"
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
